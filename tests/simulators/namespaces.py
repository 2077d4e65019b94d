"""The namespaces that take the place of a VM, and its control groups."""

import re
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
    if unified.is_dir():
        return unified
    mount = Path("/sys/fs/cgroup")
    # What a user has is handed down to their systemd.
    handed_down = re.match(
        r"0::/(.*/user@\d+\.service)(/|\n)", Path("/proc/self/cgroup").read_text()
    )
    return mount / handed_down[1] if handed_down else mount


def command(group: Path) -> list[str]:
    """What runs the command behind it as PID 1 of namespaces of its own. Makes the control group
    `group`, which is the root of its control groups."""
    (group / _INSIDE).mkdir(parents=True)
    return ["sh", "-c", _ENTER, str(group), "unshare", *_OPTIONS.split()]
