"""A writer of event logs in the TCG's crypto-agile form, the honest and the other kind."""

import hashlib
import struct
from collections.abc import Iterable, Mapping

ALGORITHMS = {"sha1": 0x4, "sha256": 0xB, "sha384": 0xC, "sha512": 0xD}
AAEL = 0x4141454C
END = b"\xff" * 8


def header(*algorithms: str) -> bytes:
    """The Spec ID event."""
    declared = b"".join(
        struct.pack("<HH", ALGORITHMS[name], hashlib.new(name).digest_size) for name in algorithms
    )
    data = b"Spec ID Event03\0" + struct.pack("<IBBBB", 0, 0, 2, 0, 2)
    data += struct.pack("<I", len(algorithms)) + declared + b"\0"
    return struct.pack("<II20sI", 0, 3, bytes(20), len(data)) + data


def event(
    register: int, kind: int, data: bytes, digests: Mapping[str, bytes] | Iterable[str]
) -> bytes:
    """One entry; digests: by name, or the names of algorithms, and then they are those of `data`."""
    if not isinstance(digests, Mapping):
        digests = {name: hashlib.new(name, data).digest() for name in digests}
    written = b"".join(
        struct.pack("<H", ALGORITHMS[name]) + value for name, value in digests.items()
    )
    return (
        struct.pack("<III", register, kind, len(digests))
        + written
        + struct.pack("<I", len(data))
        + data
    )


def tagged(text: bytes, tag: int = AAEL) -> bytes:
    """The data of an EV_EVENT_TAG."""
    return struct.pack("<II", tag, len(text)) + text


def extended(algorithm: str, *digests: bytes) -> bytes:
    """The register after these extensions."""
    value = bytes(hashlib.new(algorithm).digest_size)
    for digest in digests:
        value = hashlib.new(algorithm, value + digest).digest()
    return value
