"""What becomes of the mounts of the host's config.json.

    proc sysfs mqueue tmpfs devpts cgroup   mounted in the guest, with known options only
    a bind whose source the host sent       a copy: hosts, hostname, resolv.conf, secrets
    a bind whose source the host shares     that directory or file, live
    a bind that is a volume of the sandbox's own   a directory of the guest's (volumes.py)
    /dev/shm (from the host)                a tmpfs of the guest, of the size that the host says; the pod's
                                            where the container shares its ipc namespace
    /proc /sys /sys/fs/cgroup /dev/mqueue /dev/pts (the host's own, at the same place)
                                            the guest's own of that kind: --network=host, --ipc=host
    /sys/fs/cgroup/systemd (the host's own, at the same place)
                                            left out: the guest's groups are of version 2
    /etc/passwd, /etc/group (not shared)    left out: the image's own stand
    /dev/null and the like (from the host)  the guest's own: they hide files, or give none
    any other bind                          refused

In a user namespace a sysfs is read-only, and /sys/fs/cgroup is mounted over: it is the VM's own that crun
then binds there, whose files the container's root owns.

Mounts keep their order. Sources are the guest's own, whatever the host wrote there. Where config.json
has no mounts at all, the file systems that config-linux.md says should be there are mounted.
"""

import re
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol import limits

from sealrun_agent.container.runtime_spec import Mount, refused

COPY: Final = "copy"
SHARE: Final = "share"
SANDBOX: Final = "sandbox"
VOLUME: Final = "volume"
"""What stands before the name in the source of an accepted bind, until the places are known."""

_BIND: Final = frozenset({"bind", "rbind"})
_ENGINE_S: Final = frozenset({"copy", "nocopy"})  # how Podman fills a volume; it hands them on
_FLAGS: Final = re.compile(
    r"defaults|r?(ro|rw|sync|async|dirsync)|r?(no)?(suid|dev|exec|atime|diratime|relatime|strictatime|mand)"
    r"|r?(private|slave|shared|unbindable)"
)
_NUMBER: Final = r"=[0-9]{1,20}"
_SIZE: Final = r"=[0-9]{1,20}[kKmMgG%]?"
# Options of each kind besides _FLAGS.
_KINDS: Final = {
    "proc": re.compile(
        r"hidepid=([0124]|off|noaccess|invisible|ptraceable)|gid=[0-9]{1,10}|subset=pid"
    ),
    "sysfs": re.compile(r"(?!)"),
    "mqueue": re.compile(r"(?!)"),
    "cgroup": re.compile(r"(?!)"),
    "tmpfs": re.compile(rf"tmpcopyup|(mode|uid|gid|nr_inodes){_NUMBER}|(size|nr_blocks){_SIZE}"),
    "devpts": re.compile(rf"newinstance|(ptmxmode|mode|uid|gid|max){_NUMBER}"),
}
_KERNEL_S: Final = {
    "/proc": "proc",
    "/sys": "sysfs",
    "/sys/fs/cgroup": "cgroup",
    "/dev/mqueue": "mqueue",
    "/dev/pts": "devpts",
}
_IMAGE_S: Final = frozenset({"/etc/passwd", "/etc/group"})
"""Engines write them anew from their copy of the image, for users whom that does not know."""
_OF_VERSION_1: Final = "/sys/fs/cgroup/systemd"
"""Engines bind it beside /sys/fs/cgroup for systemd; control groups of version 2 have it not."""
_KERNEL_S_DEVICES: Final = frozenset(
    ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
)
_SHARED_MEMORY: Final = Mount(
    "/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777")
)
_DEVICES: Final = Mount(
    "/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")
)
_GROUPS: Final = Mount(
    "/sys/fs/cgroup", "cgroup", "cgroup", ("nosuid", "noexec", "nodev", "relatime", "ro")
)
_DEFAULT: Final = (
    Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    _DEVICES,
    Mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666")),
    _SHARED_MEMORY,
    Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)


class Sources(NamedTuple):
    """Where the host says that the binds of a container come from: indices of its mounts. own: those that
    are volumes of the sandbox's own. shm_bytes:
    the size of /dev/shm, 0 where it is not said. pod_shm: it is the pod's."""

    copied: Collection[int] = ()
    shared: Collection[int] = ()
    own: Collection[int] = ()
    shm_bytes: int = 0
    pod_shm: bool = False


def accept_mounts(
    mounts: Sequence[Mount], sources: Sources, *, shared_root: bool, own_users: bool = False
) -> tuple[Mount, ...]:
    """The mounts that crun gets, at least one. Some sources are still `copy/N`, `share/N`,
    `volume/N` or `sandbox/shm`.
    Raises StartError(SPEC_REFUSED)."""
    if len(sources.shared) > limits.SHARES:
        raise refused("mounts", f"more than {limits.SHARES} are directories of the host")
    kinds = (sources.copied, sources.shared, sources.own)
    for index in {*sources.copied, *sources.shared, *sources.own}:
        if sum(index in kind for kind in kinds) > 1:
            raise refused(f"mounts[{index}]", "two sources were sent for it")
        if not 0 <= index < len(mounts):
            raise refused(f"mounts[{index}]", "there is no such mount, but a source for it")
    accepted: tuple[Mount, ...] = _DEFAULT
    if mounts:
        accepted = tuple(
            _accept(f"mounts[{index}]", index, mount, sources)
            for index, mount in enumerate(mounts)
            if not _is_left_out(index, mount, sources)
        )
    if own_users:
        accepted = _for_own_users(accepted)
    if shared_root and not any(mount.destination.rstrip("/") == "/dev" for mount in accepted):
        # crun would make the device nodes in the root itself, and no host takes a guest's.
        return (_DEVICES, *accepted)
    return accepted


def is_placed(mount: Mount) -> bool:
    """Whether an accepted mount's source is not a path yet."""
    return mount.type == "bind" and not mount.source.startswith("/")


def _is_left_out(index: int, mount: Mount, sources: Sources) -> bool:
    """What hides nothing of the image where it is not mounted."""
    given = any(index in kind for kind in (sources.copied, sources.shared, sources.own))
    if given or mount.type != "bind":
        return False
    version_1 = mount.source == mount.destination == _OF_VERSION_1
    engine_s = mount.destination in _IMAGE_S and mount.source not in _KERNEL_S_DEVICES
    return version_1 or engine_s


def _for_own_users(mounts: tuple[Mount, ...]) -> tuple[Mount, ...]:
    systems = [index for index, mount in enumerate(mounts) if mount.type == "sysfs"]
    for index in systems:
        if "ro" not in (mounts[index].options or ()):
            raise refused(f"mounts[{index}].options", "a sysfs in a user namespace has to be ro")
    groups = any(mount.destination.rstrip("/") == _GROUPS.destination for mount in mounts)
    if not systems or groups:
        return mounts
    after = systems[-1] + 1
    return (*mounts[:after], _GROUPS, *mounts[after:])


def _accept(path: str, index: int, mount: Mount, sources: Sources) -> Mount:
    # The specification, since 1.2: a relative one is relative to the root.
    destination = mount.destination if mount.destination[:1] == "/" else f"/{mount.destination}"
    check_absolute(f"{path}.destination", destination)
    if destination == "/":
        raise refused(f"{path}.destination", "the root is the image's")
    options = mount.options or ()
    if mount.type == "bind" or (mount.type in {"", "none"} and _BIND.intersection(options)):
        if mount.source != destination or destination not in _KERNEL_S:
            return _accept_bind(path, index, mount, destination, sources)
        options = tuple(option for option in options if option not in _BIND)
        mount = Mount(destination, _KERNEL_S[destination], "", options)
    if any(index in kind for kind in (sources.copied, sources.shared, sources.own)):
        raise refused(path, "a source was sent for what is no bind")
    kind = "cgroup" if mount.type == "cgroup2" else mount.type
    known = _KINDS.get(kind)
    if known is None:
        raise refused(f"{path}.type", f"a mount of type {kind!a} is not supported in the guest")
    for position, option in enumerate(options):
        if not _FLAGS.fullmatch(option) and not known.fullmatch(option):
            raise refused(f"{path}.options[{position}]", f"option {option!a} is not accepted")
    return Mount(destination, kind, kind, options)


def _accept_bind(path: str, index: int, mount: Mount, destination: str, sources: Sources) -> Mount:
    options = mount.options or ()
    if index in sources.copied:
        access = "ro" if "ro" in options else "rw"
        flags = ("bind", "nosuid", "nodev", "noexec", access)
        return Mount(destination, "bind", f"{COPY}/{index}", flags)
    if destination == "/dev/shm" and sources.pod_shm:
        return Mount(destination, "bind", f"{SANDBOX}/shm", ("bind", "nosuid", "nodev", "noexec"))
    if destination == "/dev/shm":
        size = (f"size={sources.shm_bytes}",) if sources.shm_bytes > 0 else ()
        return msgspec.structs.replace(
            _SHARED_MEMORY, options=(*(_SHARED_MEMORY.options or ()), *size)
        )
    source = f"{VOLUME if index in sources.own else SHARE}/{index}"
    if index not in sources.shared and index not in sources.own:
        if mount.source not in _KERNEL_S_DEVICES:
            raise refused(path, f"{destination}: the host shares no directory or file for it")
        source = mount.source
    for position, option in enumerate(options):
        if not (_FLAGS.fullmatch(option) or option in _BIND or option in _ENGINE_S):
            raise refused(f"{path}.options[{position}]", f"option {option!a} is not accepted")
    kept = (option for option in options if option not in _BIND and option not in _ENGINE_S)
    return Mount(destination, "bind", source, ("rbind", *kept))


def check_absolute(path: str, value: str) -> None:
    """Raises StartError(SPEC_REFUSED) unless `value` is an absolute path without dots."""
    parts = value.split("/")
    if not value.startswith("/") or "." in parts or ".." in parts:
        raise refused(path, f"{value!a} is not an absolute path")
