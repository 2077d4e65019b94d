"""The namespaces that take the place of a VM, and its control groups."""

from pathlib import Path

_OPTIONS = "--fork --pid --kill-child --mount --mount-proc --net --ipc --uts"
_INSIDE = "inside"
# The control group is left for one below it once it is the root of the cgroup namespace: a kernel lets
# no group that holds processes, but its own root, hand controllers down, and crun tries for two
# seconds.
_ENTER = (
    'echo $$ >"$0/cgroup.procs" && exec unshare --cgroup '
    f'sh -c \'echo $$ >"$0/{_INSIDE}/cgroup.procs" && exec "$@"\' "$0" "$@"'
)


def cgroups() -> Path:
    """Where control groups of version 2 are."""
    unified = Path("/sys/fs/cgroup/unified")
    return unified if unified.is_dir() else Path("/sys/fs/cgroup")


def command(group: Path) -> list[str]:
    """What runs the command behind it as PID 1 of namespaces of its own. Makes the control group
    `group`, which is the root of its control groups."""
    (group / _INSIDE).mkdir(parents=True)
    return ["sh", "-c", _ENTER, str(group), "unshare", *_OPTIONS.split()]
