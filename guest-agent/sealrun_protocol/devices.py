"""The character devices that a container can have: those of every kernel. No I/O.

The guest refuses any other, and the host does before it boots a VM.
"""

from typing import Final

_EVERYBODYS: Final = frozenset({(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)})
"""null, zero, full, random, urandom, tty (Documentation/admin-guide/devices.txt in the kernel's sources)."""
_MADE_ANYWAY: Final = {"/dev/console": (5, 1), "/dev/ptmx": (5, 2)}
NAMES: Final = "null, zero, full, random, urandom and tty"


def is_everybodys(major: int | None, minor: int | None) -> bool:
    """Whether a node of this number can be made in the guest."""
    return (major, minor) in _EVERYBODYS


def is_made_anyway(path: str, major: int | None, minor: int | None) -> bool:
    """Whether crun gives each container this one, asked or not."""
    return _MADE_ANYWAY.get(path) == (major, minor)
