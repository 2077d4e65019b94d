"""The system calls of namespaces and mounts that Python 3.11 lacks, by way of ctypes.

Imported by `create`, `run` and `exec` only, and before anything is entered: a process that pivoted cannot import.
All raise OSError.
"""

import ctypes
import os
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
MS_SLAVE: Final = 0x80000
MNT_DETACH: Final = 0x2

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
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


def _check(result: int, path: str | None = None) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
