"""Names of the resources that a key broker holds: `repository/type/tag`.

The URI is KBS's (`kbs[+plugin]://[host[:port]]/repository/type/tag`). Its host is ignored, as CoCo's
data hub does: which broker is asked stands in the init-data alone. Other plugins than `resource`,
and queries, are refused.
"""

import re
from typing import Final, NamedTuple

_PART: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*")
_PART_CHARACTERS: Final = 255  # a part is a file name in many a store
_URI: Final = re.compile(r"kbs(?P<plugin>\+[^:/]*)?://(?P<authority>[^/?#]*)/(?P<path>.*)", re.S)


class ResourceNameInvalid(Exception):
    """Not the name of a resource; the text says why, in one line."""


class ResourceName(NamedTuple):
    """One resource. A part never begins with a dot, so a name is safe as a relative path."""

    repository: str
    type: str
    tag: str

    def __str__(self) -> str:
        return "/".join(self)


def parse_name(text: str) -> ResourceName:
    """`repository/type/tag`. Raises ResourceNameInvalid."""
    parts = text.split("/")
    if len(parts) != 3 or not all(
        _PART.fullmatch(part) and len(part) <= _PART_CHARACTERS for part in parts
    ):
        raise ResourceNameInvalid(
            f"{text[:200]!a} is not repository/type/tag of letters, digits, '_', '-' and '.'"
        )
    return ResourceName(*parts)


def parse_uri(uri: str) -> ResourceName:
    """`kbs:///repository/type/tag`. Raises ResourceNameInvalid."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise ResourceNameInvalid(f"{uri[:200]!a} is not kbs:///repository/type/tag")
    if found["plugin"] not in (None, "+resource"):
        raise ResourceNameInvalid(f"{uri[:200]!a}: only the plugin 'resource' is supported")
    return parse_name(found["path"])
