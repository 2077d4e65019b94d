"""Users and groups of a root file system: its /etc/passwd and /etc/group, as untrusted as the rest of it."""

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from sealrun_agent import syscall

_FILE_BYTES: Final = 1 << 20
_RESOLVE: Final = syscall.RESOLVE_IN_ROOT | syscall.RESOLVE_NO_MAGICLINKS
_LARGEST_ID: Final = 2**32 - 2


class User(NamedTuple):
    """A line of /etc/passwd."""

    name: str
    uid: int
    gid: int


class Group(NamedTuple):
    """A line of /etc/group. members: names of users."""

    name: str
    gid: int
    members: tuple[str, ...]


def users(root: str) -> Iterator[User]:
    """Those with proper numbers. root: a directory."""
    for fields in _lines(root, b"etc/passwd"):
        if len(fields) >= 4:
            uid, gid = number(fields[2]), number(fields[3])
            if uid is not None and gid is not None:
                yield User(fields[0], uid, gid)


def groups(root: str) -> Iterator[Group]:
    """Those with a proper number. root: a directory."""
    for fields in _lines(root, b"etc/group"):
        gid = number(fields[2]) if len(fields) >= 3 else None
        if gid is not None:
            members = fields[3].split(",") if len(fields) >= 4 else ()
            yield Group(fields[0], gid, tuple(members))


def number(text: str) -> int | None:
    """An id; None where it is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    found = int(text)
    return found if found <= _LARGEST_ID else None


def _lines(root: str, path: bytes) -> Iterator[list[str]]:
    try:
        directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            # O_NONBLOCK: it may be a FIFO.
            descriptor = syscall.openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK, _RESOLVE)
        finally:
            os.close(directory)
    except OSError:
        return
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        text = stream.read(_FILE_BYTES).decode("utf-8", "replace")
    for line in text.split("\n"):
        yield line.split(":")
