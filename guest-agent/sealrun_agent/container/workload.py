"""Which process may run, where a tenant asked for protection: the image's own.

The host writes config.json, and with it the program, its arguments and its environment. A host that
could choose `cat /key`, or set LD_PRELOAD, would need no key to read a sealed container. So, where
there is an init-data, unless its [container] says `insecure_any_process`:

- args: the image's entrypoint and command, or one of `commands`, whole;
- env: the image's. The host may add variables that `environment` names, and TERM, HOSTNAME and
  `container`, which engines always set; its PATH and HOME give way to the image's or the usual ones;
- user and directory: the image's, whatever the host says;
- mounts: where engines always mount something of the kernel's or empty, or a file that the host
  prepares (names of hosts, secrets), and where `[host]` says `insecure_shared_directories`, and
  nowhere else: a mount can hide a file of the image;
- masked paths: of /proc and /sys, and where the host may share directories: a mask hides a file as a mount does;
- device nodes: none under the name of another one (/dev/zero as /dev/urandom would give no random bytes);
- volumes of the sandbox's own: where the image declares one, which then begins with the image's content,
  where `volumes` says so, and in the usual places for empty ones;
- block devices of the host: only where `[host]` says `insecure_block_devices`;
- later programs (exec): only with `allow_exec`;
- a pid namespace that the containers of a pod share: only with `share_pid`.
- output: with a TEE, the host gets none of it but with `allow_output`: streams end at once, and what is
  written goes nowhere; a terminal is refused.

Hooks that run in the guest (createContainer, startContainer) are programs of the host's choice with the
rights of the guest's root: they have to be in `hooks`, whole, and are called by their own names, also under `insecure_any_process` and where
there is no init-data.

What the host chooses all the same (limits, capabilities, seccomp, host names) makes a container
weaker or stops it, and does not read it.
"""

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol import devices, init_data
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.container.mounts import VOLUME
from sealrun_agent.container.runtime_spec import Hooks, Linux, Process, Spec, User
from sealrun_agent.container.spec import Accepted
from sealrun_agent.errors import StartError

_ENGINES_OWN: Final = ("TERM", "HOSTNAME", "container")
_GIVES_WAY: Final = ("PATH", "HOME")
_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_EMPTY: Final = ("/tmp", "/run", "/var/tmp")  # for a root that is read-only
_MOUNT_POINTS: Final = frozenset(
    (
        *("/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys", "/sys/fs/cgroup"),
        *("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"),
        *_EMPTY,
    )
)
_KERNEL_S_FILE: Final = re.compile(r"/+(proc|sys)/+[^/].*", re.DOTALL)
_SECRETS: Final = "/run/secrets/"
_LAST_WORDS: Final = (
    "/dev/termination-log"  # Kubernetes' default place; no image has anything in /dev
)


class Program(NamedTuple):
    """What an image says about its process. env: NAME=value. groups: additional ones. volumes: where it
    wants some."""

    args: tuple[str, ...]
    env: tuple[str, ...]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    volumes: tuple[str, ...] = ()


class Tenant(NamedTuple):
    """Who asked for protection. container: what may run. host: what is left to the host. output: whether
    the host may read what is written."""

    container: init_data.Container
    host: init_data.Host
    output: bool = True


def check_shares(shared: Iterable[str], tenant: Tenant | None, *, root: bool) -> None:
    """What a container gets from the host. shared: where the host's directories and files are
    mounted. root: whether its root file system is one of them. Raises StartError(POLICY_DENIED)."""
    if tenant is None:
        return
    if root and not tenant.host.insecure_shared_root:
        raise _denied("root", "it is a directory of the host", "[host]")
    for destination in shared:
        if not tenant.host.may_share_at(destination):
            raise _denied("mounts", f"{destination!a:.300} is a directory of the host", "[host]")


def check_disks(places: Iterable[str], tenant: Tenant | None) -> None:
    """Where a container gets block devices of the host. Raises StartError(POLICY_DENIED)."""
    if tenant is None:
        return
    for place in places:
        if not tenant.host.may_give_disk_at(place):
            why = f"{place!a:.300} is a block device of the host"
            raise _denied("linux.devices", why, "[host]")


def check_joins(joins: Iterable[str], tenant: Tenant | None) -> None:
    """Which namespaces a container may share with others. Who shares its processes' ids can trace them, and
    read what they hold. Raises StartError(POLICY_DENIED)."""
    if tenant is not None and "pid" in joins and not tenant.container.share_pid:
        raise _denied("linux.namespaces", "the pid namespace is shared with the pod")


def restrict(spec: Spec, program: Program, tenant: Tenant) -> Spec:
    """The spec with the tenant's process. Raises StartError(POLICY_DENIED)."""
    wishes = tenant.container
    if wishes.insecure_any_process:
        return spec
    given = spec.process
    if given.args not in (program.args, *wishes.commands):
        raise _denied("process.args", f"{_shown(given.args)} is not the image's own program")
    for index, mount in enumerate(spec.mounts or ()):
        place = mount.destination
        if mount.source.startswith(f"{VOLUME}/"):
            continue  # see check_volumes
        known = place in _MOUNT_POINTS or place.startswith(_SECRETS)
        if not known and not tenant.host.may_share_at(place):
            raise _denied(f"mounts[{index}]", f"nothing may be mounted at {place!a}")
    _check_names(spec.linux, tenant.host)
    process = msgspec.structs.replace(
        given,
        env=_environment(given, program, wishes.environment),
        cwd=program.cwd,
        user=User(
            uid=program.uid,
            gid=program.gid,
            umask=given.user.umask,
            additionalGids=program.groups or None,
        ),
    )
    return msgspec.structs.replace(spec, process=process)


def _check_names(linux: Linux, host: init_data.Host) -> None:
    """What would hide a file, or a device, behind another one. Raises StartError(POLICY_DENIED)."""
    for index, path in enumerate(linux.maskedPaths or ()):
        if not _KERNEL_S_FILE.fullmatch(path) and not host.may_share_at(path):
            raise _denied(f"linux.maskedPaths[{index}]", f"nothing may be hidden at {path!a:.300}")
    for index, device in enumerate(linux.devices or ()):
        if not devices.has_its_own_name(device.path, device.type, device.major, device.minor):
            raise _denied(
                f"linux.devices[{index}]", f"another device is called {device.path!a:.300}"
            )


def check_volumes(accepted: Accepted, program: Program, tenant: Tenant) -> Accepted:
    """With the volumes of the sandbox's own as the tenant wants them. Raises StartError(POLICY_DENIED)."""
    wishes = tenant.container
    if wishes.insecure_any_process:
        return accepted
    declared = {place.rstrip("/") for place in program.volumes}
    named = {place.rstrip("/") for place in (*wishes.volumes, *_EMPTY, _SECRETS, _LAST_WORDS)}
    volumes = dict(accepted.volumes)
    for number, (destination, volume) in accepted.volumes.items():
        place = destination.rstrip("/")
        if place in named or tenant.host.may_share_at(place):
            continue
        # A file, or a part of it, is not what the image has there.
        if place not in declared or volume.file or volume.subpath:
            raise _denied(f"mounts[{number}]", f"no volume may be mounted at {place!a:.300}")
        # The host must not be able to hide what the image has there.
        copied = msgspec.structs.replace(volume, copy_up=True)
        volumes[number] = accepted.volumes[number]._replace(volume=copied)
    return accepted._replace(volumes=volumes)


def check_hooks(spec: Spec, tenant: Tenant | None) -> None:
    """Raises StartError(POLICY_DENIED)."""
    allowed = tenant.container.hooks if tenant is not None else ()
    names = tenant.container.environment if tenant is not None else ()
    given = spec.hooks or Hooks()
    for kind in ("createContainer", "startContainer"):
        for index, hook in enumerate(getattr(given, kind) or ()):
            path = f"hooks.{kind}[{index}]"
            command = (hook.path, *(hook.args or ())[1:])
            if command not in allowed:
                raise _denied(path, f"{_shown(command)} runs in the guest")
            called = (hook.args or (hook.path,))[0]
            if called not in (hook.path, hook.path.rpartition("/")[2]):
                # Some programs are another one by another name (busybox).
                raise _denied(f"{path}.args[0]", f"it is called {called!a:.100}")
            for number, variable in enumerate(hook.env or ()):
                name, _ = _split(variable)
                if not any(_matches(pattern, name) for pattern in names):
                    raise _denied(f"{path}.env[{number}]", f"the host may not set {name!a}")


def may_execute(tenant: Tenant | None) -> bool:
    """Whether the host may run further programs in a container."""
    if tenant is None:
        return True
    return tenant.container.allow_exec or tenant.container.insecure_any_process


def may_read(tenant: Tenant | None) -> bool:
    """Whether the host gets what the programs of a container write."""
    return tenant is None or tenant.output


def check_terminal(wanted: bool, tenant: Tenant | None) -> None:
    """A terminal without output would be none. Raises StartError(POLICY_DENIED)."""
    if wanted and not may_read(tenant):
        raise _denied("process.terminal", "the host could read it")


def _environment(given: Process, program: Program, allowed: Iterable[str]) -> tuple[str, ...]:
    names = tuple(allowed)
    variables = {"PATH": _PATH} | dict(_split(variable) for variable in program.env)
    for index, variable in enumerate(given.env or ()):
        name, value = _split(variable)
        if any(_matches(pattern, name) for pattern in names):
            variables[name] = value
        elif name in _ENGINES_OWN:
            variables.setdefault(name, value)
        elif name not in _GIVES_WAY and variables.get(name) != value:
            raise _denied(f"process.env[{index}]", f"the host may not set {name!a}")
    return tuple(f"{name}={value}" for name, value in variables.items())


def _shown(command: Iterable[str]) -> str:
    """As an init-data writes it."""
    words = ", ".join(f'"{ascii(word)[1:-1]}"' for word in command)
    return f"[{words}"[:300] + "]"


def _split(variable: str) -> tuple[str, str]:
    name, _, value = variable.partition("=")
    return name, value


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def _denied(path: str, why: str, section: str = "[container]") -> StartError:
    text = f"{path}: {why}, and {section} of the init-data does not allow it"
    return StartError(ErrorCode.POLICY_DENIED, text)
