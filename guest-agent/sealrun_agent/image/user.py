"""Who an image's `User` is: a name or number, and the groups (image specification, config.md).

    "" | user | uid | user:group | uid:gid | uid:group | user:gid

Names are looked up in the image's own /etc/passwd and /etc/group, as untrusted as the rest of it.
Without a group, the user's own groups apply; a number that /etc/passwd does not know has group 0.
"""

import os
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import VerifyError
from sealrun_agent.image import syscall

_FILE_BYTES: Final = 1 << 20
_RESOLVE: Final = syscall.RESOLVE_IN_ROOT | syscall.RESOLVE_NO_MAGICLINKS
_LARGEST_ID: Final = 2**32 - 2


class Ids(NamedTuple):
    """What a process is started with. groups: additional ones, sorted."""

    uid: int
    gid: int
    groups: tuple[int, ...]


def find_user(root: str, text: str) -> Ids:
    """The ids of `text`. root: a mounted root file system. Raises VerifyError(MANIFEST_INVALID)."""
    user, colon, group = text.partition(":")
    if not user and not colon:
        return Ids(0, 0, ())
    uid, gid, name = _user(root, user)
    if group:
        return Ids(uid, _group(root, group), ())
    return Ids(uid, gid, tuple(sorted(_memberships(root, name))) if name else ())


def _user(root: str, user: str) -> tuple[int, int, str]:
    """uid, gid and name; the name is empty where nobody has that number."""
    number = _number(user)
    for name, uid, gid in _entries(root, "passwd"):
        if name == user or (number is not None and uid == number):
            return uid, gid, name
    if number is None:
        raise _invalid(f"user {user[:64]!a} is not in its /etc/passwd")
    return number, 0, ""


def _group(root: str, group: str) -> int:
    number = _number(group)
    if number is not None:
        return number
    for name, gid, _ in _entries(root, "group"):
        if name == group:
            return gid
    raise _invalid(f"group {group[:64]!a} is not in its /etc/group")


def _memberships(root: str, user: str) -> set[int]:
    return {
        int(fields[2])
        for fields in _lines(root, "group")
        if len(fields) >= 4 and _number(fields[2]) is not None and user in fields[3].split(",")
    }


def _entries(root: str, file: str) -> Iterator[tuple[str, int, int]]:
    """Name and the two fields behind the password, of lines where those are numbers (passwd), or
    name, number and 0 (group)."""
    for fields in _lines(root, file):
        first = _number(fields[2]) if len(fields) > 2 else None
        second = _number(fields[3]) if file == "passwd" and len(fields) > 3 else 0
        if first is not None and second is not None:
            yield fields[0], first, second


def _lines(root: str, file: str) -> Iterator[list[str]]:
    directory = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = f"etc/{file}".encode()
        # O_NONBLOCK: it may be a FIFO.
        descriptor = syscall.openat2(directory, path, os.O_RDONLY | os.O_NONBLOCK, _RESOLVE)
    except OSError:
        return
    finally:
        os.close(directory)
    with open(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return
        text = stream.read(_FILE_BYTES).decode("utf-8", "replace")
    for line in text.split("\n"):
        yield line.split(":")


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        return None
    number = int(text)
    return number if number <= _LARGEST_ID else None


def _invalid(why: str) -> VerifyError:
    return VerifyError(ErrorCode.MANIFEST_INVALID, f"the image's configuration: {why}")
