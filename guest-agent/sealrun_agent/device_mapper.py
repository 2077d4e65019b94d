"""Block devices of the kernel's device mapper, by its control device (linux/dm-ioctl.h).

A device has one target here, over its whole length. Lengths and offsets are in sectors of 512 bytes.
"""

import fcntl
import os
import struct
from typing import Final, NamedTuple

CONTROL: Final = "/dev/mapper/control"
SECTOR: Final = 512

_VERSION: Final = (4, 0, 0)
_CREATE, _REMOVE, _RESUME, _LOAD, _STATUS = 3, 4, 6, 9, 12
_STATUS_BYTES: Final = 1024  # of a question for it, with its answer
_SECURE: Final = 1 << 15  # the kernel wipes its copies of what it is given
_HEADER: Final = struct.Struct("=6Ii3IQ128s129s7x")
_TARGET: Final = struct.Struct("=QQiI16s")
_IOCTL: Final = 0xC0000000 | _HEADER.size << 16 | 0xFD << 8  # linux/ioctl.h: _IOWR


class Target(NamedTuple):
    """What a device is made of. kind: as "crypt". parameters: as the kernel's documentation of that
    kind says; may hold a key."""

    length: int
    kind: str
    parameters: bytes


def create(name: str, target: Target) -> str:
    """Make a device; its node. Raises OSError."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        made = _call(control, _CREATE, name)
        try:
            _call(control, _LOAD, name, target)
            _call(control, _RESUME, name)
        except OSError:
            _call(control, _REMOVE, name)
            raise
    finally:
        os.close(control)
    device = _HEADER.unpack_from(made)[10]
    return f"/dev/dm-{os.minor(device)}"


def remove(name: str) -> None:
    """Take a device away that nobody uses. Raises OSError."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        _call(control, _REMOVE, name)
    finally:
        os.close(control)


def status(name: str) -> str:
    """What the target of a device says of itself; the words are those of its kind. Raises OSError."""
    sizes = (_STATUS_BYTES, _HEADER.size, 0)
    head = _HEADER.pack(*_VERSION, *sizes, 0, 0, 0, 0, 0, name.encode(), b"")
    data = bytearray(head.ljust(_STATUS_BYTES, b"\0"))
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(control, _IOCTL | _STATUS, data)
    finally:
        os.close(control)
    words = bytes(data[_HEADER.size + _TARGET.size :]).partition(b"\0")[0]
    return words.decode(errors="replace")


def request(name: str, target: Target | None = None) -> bytearray:
    """What the kernel is given."""
    table = b""
    if target is not None:
        padded = target.parameters + bytes(8 - len(target.parameters) % 8)
        head = (0, target.length, 0, _TARGET.size + len(padded), target.kind.encode())
        table = _TARGET.pack(*head) + padded
    sizes = (_HEADER.size + len(table), _HEADER.size, int(target is not None))
    flags = _SECURE if target is not None else 0
    return bytearray(_HEADER.pack(*_VERSION, *sizes, 0, flags, 0, 0, 0, name.encode(), b"") + table)


def _call(control: int, number: int, name: str, target: Target | None = None) -> bytearray:
    data = request(name, target)
    try:
        fcntl.ioctl(control, _IOCTL | number, data)
        return data
    finally:
        if target is not None:
            data[_HEADER.size :] = bytes(len(data) - _HEADER.size)
