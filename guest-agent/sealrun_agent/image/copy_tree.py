"""A directory's content as a copy elsewhere: what a volume begins with.

The source is an image's and may hold anything: no symbolic link of it is followed, files are opened below
open directories only. Kept are owners, modes, times, extended attributes and hard links within the tree;
sockets and devices are left out.
"""

import os
import stat
from contextlib import ExitStack
from typing import Final

from sealrun_agent import syscall
from sealrun_agent.image import metadata

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_IN_ROOT: Final = syscall.RESOLVE_IN_ROOT | syscall.RESOLVE_NO_MAGICLINKS
_WITHIN: Final = syscall.RESOLVE_IN_ROOT | syscall.RESOLVE_NO_SYMLINKS
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW

_Links = dict[tuple[int, int], bytes]


def copy_from(root: str, place: str, target: str) -> bool:
    """Fill the empty directory `target` from the directory `place` of a root file system, whose own links
    are followed on the way there; whether there is one. Raises OSError."""
    with ExitStack() as opened:
        top = _opened(os.open(root, _DIRECTORY), opened)
        try:
            found = syscall.openat2(top, place.encode(), _DIRECTORY, _IN_ROOT)
        except (FileNotFoundError, NotADirectoryError):
            return False
        source = _opened(found, opened)
        _copy(source, _opened(os.open(target, _DIRECTORY), opened))
    return True


def _opened(descriptor: int, until: ExitStack) -> int:
    until.callback(os.close, descriptor)
    return descriptor


def _copy(source: int, target: int) -> None:
    links: _Links = {}
    done: list[bytes] = []
    waiting = [b"."]
    while waiting:
        path = waiting.pop()
        done.append(path)
        with ExitStack() as opened:
            here = _opened(syscall.openat2(source, path, _DIRECTORY, _WITHIN), opened)
            there = _opened(syscall.openat2(target, path, _DIRECTORY, _WITHIN), opened)
            for text in os.listdir(here):
                name = os.fsencode(text)
                below = path + b"/" + name
                status = os.stat(name, dir_fd=here, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode):
                    os.mkdir(name, 0o700, dir_fd=there)
                    waiting.append(below)
                elif status.st_nlink > 1 and (known := _known(links, status, below)):
                    os.link(known, name, src_dir_fd=target, dst_dir_fd=there, follow_symlinks=False)
                else:
                    _copy_one(here, there, name, status)
    # Last, and from below: making what is in a directory changes its times.
    for path in reversed(done):
        with ExitStack() as opened:
            here = _opened(syscall.openat2(source, path, _DIRECTORY, _WITHIN), opened)
            there = _opened(syscall.openat2(target, path, _DIRECTORY, _WITHIN), opened)
            metadata.copy(here, there)


def _known(links: _Links, status: os.stat_result, path: bytes) -> bytes | None:
    """Where the file is that this is another name of; None where this is the first."""
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None
    file = (status.st_dev, status.st_ino)
    first = links.setdefault(file, path)
    return None if first == path else first


def _copy_one(here: int, there: int, name: bytes, status: os.stat_result) -> None:
    if stat.S_ISREG(status.st_mode):
        with ExitStack() as opened:
            file = _opened(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=here), opened)
            copy = _opened(os.open(name, _NEW, 0o600, dir_fd=there), opened)
            while os.sendfile(copy, file, None, 1 << 30):
                pass
            metadata.copy(file, copy)
        return
    if stat.S_ISLNK(status.st_mode):
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
        mode = None
    elif stat.S_ISFIFO(status.st_mode):
        os.mkfifo(name, 0o600, dir_fd=there)
        mode = stat.S_IMODE(status.st_mode)
    else:
        return
    metadata.set_on_name(there, name, (status.st_uid, status.st_gid), mode, {})
    times = (status.st_mtime_ns, status.st_mtime_ns)
    os.utime(name, ns=times, dir_fd=there, follow_symlinks=False)
