"""The Linux calls that the standard library lacks: openat2(2), mount(2), umount2(2), unshare(2).

Each raises OSError as `os` does.
"""

import ctypes
import os
from typing import Final

RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10
CLONE_FS: Final = 0x200
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

_SYS_OPENAT2: Final = 437  # the same number on every architecture
_EAGAIN_ATTEMPTS: Final = 16

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(directory: int, path: bytes, flags: int, resolve: int) -> int:
    """A file descriptor, close-on-exec. No creation of files."""
    how = _OpenHow(flags | os.O_CLOEXEC, 0, resolve)
    for _ in range(_EAGAIN_ATTEMPTS):
        fd: int = _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(directory),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        # EAGAIN: something was renamed anywhere while `..` was resolved (openat2(2)).
        if fd >= 0 or ctypes.get_errno() != 11:
            break
    if fd < 0:
        raise _error(path)
    return fd


def mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    """mount(2)."""
    if _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode()
    ):
        raise _error(target)


def umount(target: str, flags: int) -> None:
    """umount2(2)."""
    if _libc.umount2(target.encode(), flags):
        raise _error(target)


def unshare(flags: int) -> None:
    """unshare(2) for the calling thread."""
    if _libc.unshare(flags):
        raise _error("unshare")


def _error(name: str | bytes) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), name)
