"""WWW-Authenticate headers (RFC 9110, 11.6.1) as registries send them. No I/O."""

import re
from typing import Final, NamedTuple

_PARAMETER: Final = re.compile(
    r"""[\s,]*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?=,|$)"""
)
_SCHEME: Final = re.compile(r"[\s,]*([A-Za-z0-9_-]+)(?=[\s,]|$)")


class Challenge(NamedTuple):
    """scheme: lower case. parameters: names in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse(header: str) -> tuple[Challenge, ...]:
    """The challenges of a header, or of several that are joined by commas. From where it cannot be
    read on, it is left out."""
    found: list[Challenge] = []
    position = 0
    while True:
        if found and (match := _PARAMETER.match(header, position)):
            name, quoted, token = match.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else token
            found[-1].parameters.setdefault(name.lower(), value)
        elif match := _SCHEME.match(header, position):
            found.append(Challenge(match[1].lower(), {}))
        else:
            return tuple(found)
        position = match.end()
