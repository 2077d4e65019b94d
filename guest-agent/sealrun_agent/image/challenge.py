"""WWW-Authenticate headers (RFC 9110, 11.6.1) as registries send them. No I/O."""

import re
from typing import Final, NamedTuple

_PARAMETER: Final = re.compile(
    r"""\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))\s*(?:,|$)"""
)


class Challenge(NamedTuple):
    """scheme: lower case. parameters: names in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse(header: str) -> Challenge:
    """One challenge; what cannot be read of its parameters is left out."""
    scheme, _, rest = header.strip().partition(" ")
    parameters: dict[str, str] = {}
    position = 0
    while match := _PARAMETER.match(rest, position):
        name, quoted, token = match.groups()
        value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else token
        parameters.setdefault(name.lower(), value)
        position = match.end()
    return Challenge(scheme.lower(), parameters)
