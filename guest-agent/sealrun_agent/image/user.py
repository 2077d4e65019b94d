"""Who an image's `User` is: a name or number, and the groups (image specification, config.md).

    "" | user | uid | user:group | uid:gid | uid:group | user:gid

Names are looked up in the image's own /etc/passwd and /etc/group, as untrusted as the rest of it.
Without a group, the user's own groups apply; a number that /etc/passwd does not know has group 0.
"""

from typing import NamedTuple

from sealrun_protocol.errors import ErrorCode

from sealrun_agent import accounts
from sealrun_agent.errors import VerifyError


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
    found = _user(root, user)
    if group:
        return Ids(found.uid, _group(root, group), ())
    own = {one.gid for one in accounts.groups(root) if found.name and found.name in one.members}
    return Ids(found.uid, found.gid, tuple(sorted(own)))


def _user(root: str, user: str) -> accounts.User:
    """The name is empty where nobody has that number."""
    number = accounts.number(user)
    for one in accounts.users(root):
        if one.name == user or (number is not None and one.uid == number):
            return one
    if number is None:
        raise _invalid(f"user {user[:64]!a} is not in its /etc/passwd")
    return accounts.User("", number, 0)


def _group(root: str, group: str) -> int:
    number = accounts.number(group)
    if number is not None:
        return number
    for one in accounts.groups(root):
        if one.name == group:
            return one.gid
    raise _invalid(f"group {group[:64]!a} is not in its /etc/group")


def _invalid(why: str) -> VerifyError:
    return VerifyError(ErrorCode.MANIFEST_INVALID, f"the image's configuration: {why}")
