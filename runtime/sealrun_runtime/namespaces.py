"""The system calls of namespaces and mounts that Python 3.11 lacks, by way of ctypes.

Imported by `create`, `run`, `exec` and the shim only, and before anything is entered: a process that
pivoted cannot import. All raise OSError.
"""

import ctypes
import errno
import os
import socket
from contextlib import suppress
from typing import Final

# linux/sched.h
CLONE: Final = {
    "mount": 0x00020000,
    "cgroup": 0x02000000,
    "uts": 0x04000000,
    "ipc": 0x08000000,
    "user": 0x10000000,
    "pid": 0x20000000,
    "network": 0x40000000,
}
# linux/mount.h
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 0x2
CLONE_FS: Final = 0x200
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
_MOUNT_ATTR_IDMAP: Final = 0x100000
# linux/fcntl.h, linux/mount.h, and the numbers of the calls, which are those of every architecture
_AT_FDCWD: Final = -100
_AT_RECURSIVE: Final = 0x8000
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 0x1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432
_FSOPEN_CLOEXEC, _FSMOUNT_CLOEXEC = 0x1, 0x1
_FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 1, 6

_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)


class _MountAttributes(ctypes.Structure):
    _fields_ = (
        ("set", ctypes.c_uint64),
        ("clear", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("user_namespace", ctypes.c_uint64),
    )


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags))


def setns(descriptor: int, flags: int) -> None:
    """setns(2): enter the namespace of an open /proc/PID/ns file, or of the process of a pidfd."""
    _check(_libc.setns(descriptor, flags))


def mount(source: str, target: str, kind: str, flags: int) -> None:
    """mount(2) without data."""
    arguments = (os.fsencode(source), os.fsencode(target), os.fsencode(kind), flags, None)
    _check(_libc.mount(*arguments), target)


def adopt_orphans(*, adopt: bool) -> None:
    """prctl(PR_SET_CHILD_SUBREAPER): whether descendants that lose their parent become children of
    this process."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0))


def set_hostname(name: str) -> None:
    """sethostname(2)."""
    encoded = os.fsencode(name)
    _check(_libc.sethostname(encoded, len(encoded)))


def set_domainname(name: str) -> None:
    """setdomainname(2)."""
    encoded = os.fsencode(name)
    _check(_libc.setdomainname(encoded, len(encoded)))


def pivot_to(root: str) -> None:
    """Make `root` the root of this mount namespace, for every process in it that had the old root,
    and let go of everything else that is mounted. pivot_root(2), "pivot_root(".", ".")"."""
    mount(root, root, "", MS_BIND | MS_REC)
    os.chdir(root)
    _check(_libc.pivot_root(b".", b"."), root)
    _check(_libc.umount2(b".", MNT_DETACH), root)
    os.chdir("/")


def clone_tree(path: str, *, recursive: bool) -> int:
    """open_tree(2): a mount of what `path` is, mounted nowhere; with the mounts below it if
    `recursive`. It ends with its descriptor, unless `attach_tree` took it."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _call(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags, path=path)


def make_tmpfs() -> int:
    """fsopen(2), fsmount(2): an empty file system in memory, mounted nowhere, for its owner alone and
    for device nodes. It ends with its last descriptor."""
    context = _call(_SYS_FSOPEN, b"tmpfs", _FSOPEN_CLOEXEC)
    try:
        for name, value in ((b"mode", b"700"), (b"size", b"64k")):
            _call(_SYS_FSCONFIG, context, _FSCONFIG_SET_STRING, name, value, 0)
        _call(_SYS_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0)
        attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NOEXEC
        return _call(_SYS_FSMOUNT, context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def restrict_tree(
    descriptor: int, attributes: int, propagation: int = 0, *, recursive: bool
) -> None:
    """mount_setattr(2): set attributes, and the propagation where it is not 0, of the mount of an
    open directory or file."""
    wanted = _MountAttributes(attributes, 0, propagation, 0)
    _set_attributes(descriptor, b"", _AT_EMPTY_PATH, wanted, recursive=recursive)


def map_tree(descriptor: int, users: int, *, recursive: bool) -> None:
    """mount_setattr(2): files below a mount that is mounted nowhere yet have the owners that the user
    namespace `users` maps theirs to."""
    wanted = _MountAttributes(_MOUNT_ATTR_IDMAP, 0, 0, users)
    _set_attributes(descriptor, b"", _AT_EMPTY_PATH, wanted, recursive=recursive)


def user_namespace(uid_map: str, gid_map: str) -> int:
    """A descriptor of a new user namespace with these maps, which no process is in
    (user_namespaces(7))."""
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        with suppress(OSError):
            ours.close()
            unshare(CLONE["user"])
            theirs.send(b"x")
            theirs.recv(1)  # until the maps are written
        os._exit(0)
    theirs.close()
    try:
        with ours:
            if not ours.recv(1):
                raise OSError(errno.EPERM, "cannot make a user namespace")
            for name, content in (("uid_map", uid_map), ("gid_map", gid_map)):
                with open(f"/proc/{pid}/{name}", "w") as file:
                    file.write(content)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.waitpid(pid, 0)


def is_rootless() -> bool:
    """Whether this process's root is one in a user namespace only (user_namespaces(7))."""
    with open("/proc/self/uid_map", "rb") as file:
        return file.read().split() != [b"0", b"0", b"4294967295"]


def restrict_mount(path: str, attributes: int) -> None:
    """mount_setattr(2) of the mount at `path`."""
    wanted = _MountAttributes(attributes, 0, 0, 0)
    _set_attributes(_AT_FDCWD, os.fsencode(path), 0, wanted, recursive=False)


def attach_tree(descriptor: int, target: str) -> None:
    """move_mount(2): mount what `clone_tree` returned."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH
    _call(_SYS_MOVE_MOUNT, descriptor, b"", _AT_FDCWD, os.fsencode(target), flags, path=target)


def detach(path: str) -> None:
    """umount2(2), lazily and with everything below."""
    _check(_libc.umount2(os.fsencode(path), MNT_DETACH), path)


def _set_attributes(
    directory: int, path: bytes, flags: int, wanted: _MountAttributes, *, recursive: bool
) -> None:
    flags |= _AT_RECURSIVE if recursive else 0
    size = ctypes.sizeof(wanted)
    _call(_SYS_MOUNT_SETATTR, directory, path, flags, ctypes.byref(wanted), size)


def _call(number: int, *arguments: object, path: str | None = None) -> int:
    words = (ctypes.c_long(word) if isinstance(word, int) else word for word in arguments)
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    _check(min(result, 0), path)
    return result


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
