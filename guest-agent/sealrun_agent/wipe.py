"""Overwrites keys that are not needed any more.

Python cannot change `bytes`; their memory can be written to all the same, where nobody else has the
object. This reaches the copy that is given, and no other: what OpenSSL made of a key it clears itself
when the key is freed, and what the parsers of PEM, DER and JSON copied stays until its memory is used for
something else. The VM's end takes the rest (docs/threat-model.md, 7).
"""

from collections.abc import Iterable
from typing import Final

_BEFORE: Final = bytes.__basicsize__ - 1  # of an object, in front of its first byte


def wipe(secrets: Iterable[bytes]) -> None:
    """Fill with zeros. Only what was received or computed, never what a program holds as a constant:
    equal constants are one object."""
    import ctypes  # felt in an emulated guest, and seldom needed

    for secret in secrets:
        if len(secret) > 1:  # CPython has one object for each single byte
            ctypes.memset(id(secret) + _BEFORE, 0, len(secret))
