"""What becomes of the mounts of the host's config.json.

    proc sysfs mqueue tmpfs devpts cgroup   mounted in the guest, with known options only
    /etc/hosts /etc/hostname /etc/resolv.conf /run/.containerenv
                                            a file that the guest writes: the content is what the
                                            host sent with the request, empty where it sent none
    /dev/shm (from the host)                a tmpfs of the guest. Its size is the VM's memory:
                                            --shm-size stands in the host's mount, not in config.json
    /proc /sys /sys/fs/cgroup /dev/mqueue /dev/pts (the host's own, at the same place)
                                            the guest's own of that kind: --network=host, --ipc=host
    any other directory of the host         refused

Mounts keep their order. Sources are the guest's own, whatever the host wrote there. Where config.json
has no mounts at all, the file systems that config-linux.md says should be there are mounted.
"""

import re
from collections.abc import Sequence
from typing import Final

from sealrun_agent.container.runtime_spec import Mount, refused

PREPARED_FILES: Final = {
    "/etc/hosts": "hosts",
    "/etc/hostname": "hostname",
    "/etc/resolv.conf": "resolv.conf",
    "/run/.containerenv": "containerenv",
}
"""Destination in the container, name of the file in the bundle's `files` directory."""

_ENGINE_INIT: Final = "/run/podman-init"
_BIND: Final = frozenset({"bind", "rbind"})
_FLAGS: Final = re.compile(
    r"defaults|r?(ro|rw|sync|async|dirsync)|r?(no)?(suid|dev|exec|atime|diratime|relatime|strictatime|mand)"
    r"|r?(private|slave|shared|unbindable)"
)
_NUMBER: Final = r"=[0-9]{1,20}"
_SIZE: Final = r"=[0-9]{1,20}[kKmMgG%]?"
# Options of each kind besides _FLAGS.
_KINDS: Final = {
    "proc": re.compile(r"(?!)"),
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
_SHARED_MEMORY: Final = Mount(
    "/dev/shm", "tmpfs", "shm", ("nosuid", "noexec", "nodev", "mode=1777")
)
_DEFAULT: Final = (
    Mount("/proc", "proc", "proc", ("nosuid", "noexec", "nodev")),
    Mount("/dev", "tmpfs", "tmpfs", ("nosuid", "strictatime", "mode=755", "size=65536k")),
    Mount("/dev/pts", "devpts", "devpts", ("nosuid", "noexec", "newinstance", "ptmxmode=0666")),
    _SHARED_MEMORY,
    Mount("/dev/mqueue", "mqueue", "mqueue", ("nosuid", "noexec", "nodev")),
    Mount("/sys", "sysfs", "sysfs", ("nosuid", "noexec", "nodev", "ro")),
)


def accept_mounts(mounts: Sequence[Mount]) -> tuple[Mount, ...]:
    """The mounts that crun gets, at least one. The source of a prepared file is its name in
    PREPARED_FILES, still without a directory. Raises StartError(SPEC_REFUSED)."""
    if not mounts:
        return _DEFAULT
    return tuple(_accept(f"mounts[{index}]", mount) for index, mount in enumerate(mounts))


def is_prepared_file(mount: Mount) -> bool:
    """Whether an accepted mount's source is a file that the guest writes."""
    return mount.type == "bind"


def _accept(path: str, mount: Mount) -> Mount:
    # The specification, since 1.2: a relative one is relative to the root.
    destination = mount.destination if mount.destination[:1] == "/" else f"/{mount.destination}"
    check_absolute(f"{path}.destination", destination)
    if destination == "/":
        raise refused(f"{path}.destination", "the root is the image's")
    options = mount.options or ()
    if mount.type == "bind" or (mount.type in {"", "none"} and _BIND.intersection(options)):
        if mount.source != destination or destination not in _KERNEL_S:
            return _accept_bind(path, destination, options)
        options = tuple(option for option in options if option not in _BIND)
        mount = Mount(destination, _KERNEL_S[destination], "", options)
    kind = "cgroup" if mount.type == "cgroup2" else mount.type
    known = _KINDS.get(kind)
    if known is None:
        raise refused(f"{path}.type", f"a mount of type {kind!a} is not supported in the guest")
    for index, option in enumerate(options):
        if not _FLAGS.fullmatch(option) and not known.fullmatch(option):
            raise refused(f"{path}.options[{index}]", f"option {option!a} is not accepted")
    return Mount(destination, kind, kind, options)


def _accept_bind(path: str, destination: str, options: Sequence[str]) -> Mount:
    if destination == "/dev/shm":
        return _SHARED_MEMORY
    name = PREPARED_FILES.get(destination)
    if name is not None:
        access = "ro" if "ro" in options else "rw"
        return Mount(destination, "bind", name, ("bind", "nosuid", "nodev", "noexec", access))
    if destination == _ENGINE_INIT:
        raise refused(
            path, f"{destination}: the engine's init program (--init) is a file of the host, "
            "and the guest does not run the host's programs"
        )  # fmt: skip
    raise refused(path, f"{destination}: host directories cannot be shared with the guest yet")


def check_absolute(path: str, value: str) -> None:
    """Raises StartError(SPEC_REFUSED) unless `value` is an absolute path without dots."""
    parts = value.split("/")
    if not value.startswith("/") or "." in parts or ".." in parts:
        raise refused(path, f"{value!a} is not an absolute path")
