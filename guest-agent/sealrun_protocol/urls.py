"""Addresses as init-data writes them: `http[s]://host[:port][/path]` and `host:port`. No I/O."""

import re
from typing import Final

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
HOST: Final = (
    rf"(?:\[(?P<v6>[0-9A-Fa-f:.]{{2,45}})\]|(?P<host>(?=[^:/]{{1,253}}(?:[:/]|$)){_LABEL}(?:\.{_LABEL})*))"
    r"(?::(?P<port>[0-9]{1,5}))?"
)
URL: Final = re.compile(
    rf"(?P<scheme>https?)://{HOST}(?P<path>(?:/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)*)/?"
)
_DEFAULTS: Final = {"http": 80, "https": 443}


def has_port(found: "re.Match[str]") -> bool:
    """Whether the port is there and one of TCP's."""
    return bool(found["port"]) and 0 < int(found["port"]) < 65536


def endpoint(found: "re.Match[str]") -> tuple[str, int]:
    """Host without brackets and port of what a pattern with a scheme matched."""
    return found["v6"] or found["host"], int(found["port"] or _DEFAULTS[found["scheme"]])


def url_endpoint(url: str) -> tuple[str, int]:
    """Host without brackets and port of what URL matches."""
    found = URL.fullmatch(url)
    assert found is not None
    return endpoint(found)
