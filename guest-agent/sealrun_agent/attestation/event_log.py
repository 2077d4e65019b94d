"""The event log in the TCG's crypto-agile form: the agent's own entries, and the firmware's before them.

TCG PC Client Platform Firmware Profile, 9.2.2 and 9.4.5.1; the agent's entries are AAEL, each in an
event of type EV_EVENT_TAG (kbs-protocol, 9). No I/O.
"""

import hashlib
import struct
from typing import Final, NamedTuple

DOMAIN: Final = "github.com/confidential-containers"  # of the events that CoCo defines
OURS: Final = "sealrun"  # of our own
END: Final = b"\xff" * 8

_EV_NO_ACTION: Final = 0x3
_EV_EVENT_TAG: Final = 0x6
_AAEL: Final = 0x4141454C
_ALGORITHMS: Final = {"sha1": 0x4, "sha256": 0xB, "sha384": 0xC, "sha512": 0xD}
_SIZES: Final = {number: hashlib.new(name).digest_size for name, number in _ALGORITHMS.items()}
_SIZES_UNKNOWN: Final = {0x12: 32}  # SM3, which hashlib may lack


class Entry(NamedTuple):
    """digest: what the register is extended with. data: the entry as it stands in the log."""

    digest: bytes
    data: bytes


def entry(register: int, algorithm: str, domain: str, operation: str, content: str) -> Entry:
    """One entry of the agent. The words hold no white space, the content no line feed."""
    text = f"{domain} {operation} {content}".encode()
    event = struct.pack("<II", _AAEL, len(text)) + text
    digest = hashlib.new(algorithm, event).digest()
    head = struct.pack("<III", register, _EV_EVENT_TAG, 1)
    head += struct.pack("<H", _ALGORITHMS[algorithm]) + digest
    return Entry(digest, head + struct.pack("<I", len(event)) + event)


def header(algorithm: str) -> bytes:
    """What a log begins with where the firmware gives none: the Spec ID event."""
    number = _ALGORITHMS[algorithm]
    declared = struct.pack("<IHH", 1, number, _SIZES[number])
    data = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2) + declared + b"\0"
    return struct.pack("<II20sI", 0, _EV_NO_ACTION, bytes(20), len(data)) + data


def joined(firmware: bytes, algorithm: str, entries: bytes) -> bytes:
    """One log of both. Raises ValueError where the firmware's cannot be read."""
    before = trimmed(firmware)
    if not before and not entries:
        return b""
    return (before or header(algorithm)) + entries + END


def trimmed(log: bytes) -> bytes:
    """A log without the padding behind its last event; empty where there is none. Raises ValueError."""
    if not log.strip(b"\0\xff"):
        return b""
    at = _behind_header(log)
    while at < len(log) and log[at : at + 8] not in (bytes(8), END):
        (count,) = _unpack("<I", log, at + 8)
        at += 12
        for _ in range(count):
            (algorithm,) = _unpack("<H", log, at)
            size = (_SIZES | _SIZES_UNKNOWN).get(algorithm)
            if size is None:
                raise ValueError(f"the firmware's event log has a digest of kind 0x{algorithm:x}")
            at += 2 + size
        (size,) = _unpack("<I", log, at)
        at += 4 + size
    if at > len(log):
        raise ValueError("the firmware's event log is cut off")
    return log[:at]


def _behind_header(log: bytes) -> int:
    _, kind, size = _unpack("<II20xI", log, 0)
    if kind != _EV_NO_ACTION:
        raise ValueError("the firmware's event log does not begin with its specification's id")
    return 32 + int(size)


def _unpack(form: str, log: bytes, at: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, log, at)
    except struct.error as error:
        raise ValueError("the firmware's event log is cut off") from error
