"""The character devices that a container can have: those of every kernel. No I/O.

The guest refuses any other, and the host does before it boots a VM.
"""

from typing import Final

_OWN: Final = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
}
"""Documentation/admin-guide/devices.txt in the kernel's sources."""
_EVERYBODYS: Final = frozenset(_OWN.values())
_MADE_ANYWAY: Final = {"/dev/console": (5, 1), "/dev/ptmx": (5, 2)}
NAMES: Final = "null, zero, full, random, urandom and tty"


def is_everybodys(major: int | None, minor: int | None) -> bool:
    """Whether a node of this number can be made in the guest."""
    return (major, minor) in _EVERYBODYS


def has_its_own_name(path: str, kind: str, major: int | None, minor: int | None) -> bool:
    """False where each container has another device at `path`. kind: as in linux.devices."""
    own = _OWN.get("/" + "/".join(filter(None, path.split("/"))))
    return own is None or (kind in ("c", "u") and (major, minor) == own)


def is_made_anyway(path: str, major: int | None, minor: int | None) -> bool:
    """Whether crun gives each container this one, asked or not."""
    return _MADE_ANYWAY.get(path) == (major, minor)
