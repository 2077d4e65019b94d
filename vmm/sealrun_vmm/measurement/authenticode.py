"""The digest of a PE image as UEFI firmware measures it: all but its checksum and its signatures.

Windows Authenticode Portable Executable Signature Format, "Calculating the PE Image Hash"; offsets: PE
Format, "Optional Header".
"""

import hashlib
import struct
from typing import Final

from sealrun_vmm.errors import CannotMeasure

_PE_OFFSET: Final = 0x3C
_OPTIONAL: Final = 24  # from the signature to the optional header
_CHECKSUM, _HEADERS_BYTES = 64, 60
_PE32_PLUS: Final = 0x20B
_DIRECTORIES: Final = 112  # in the optional header of PE32+
_CERTIFICATES: Final = 4
_SECTION_BYTES: Final = 40


def digest(image: bytes, algorithm: str) -> bytes:
    """algorithm: as hashlib names it. Raises CannotMeasure."""
    try:
        return _digest(image, algorithm)
    except struct.error as error:
        raise CannotMeasure("the kernel's PE headers are damaged") from error


def _digest(image: bytes, algorithm: str) -> bytes:
    """Raises CannotMeasure, struct.error."""
    start = _u32(image, _PE_OFFSET)
    optional = start + _OPTIONAL
    if image[start : start + 4] != b"PE\0\0" or _u16(image, optional) != _PE32_PLUS:
        raise CannotMeasure("the kernel is no PE image for 64 bits: it has no EFI stub")
    headers = _u32(image, optional + _HEADERS_BYTES)
    checksum = optional + _CHECKSUM
    entries = _u32(image, optional + _DIRECTORIES - 4)
    hasher = hashlib.new(algorithm, image[:checksum])
    signatures = 0
    if entries > _CERTIFICATES:
        entry = optional + _DIRECTORIES + 8 * _CERTIFICATES
        signatures = _u32(image, entry + 4)
        hasher.update(image[checksum + 4 : entry])
        hasher.update(image[entry + 8 : headers])
    else:
        hasher.update(image[checksum + 4 : headers])
    end = headers
    table = optional + _u16(image, start + 20)
    sections = [
        struct.unpack_from("<II", image, table + index * _SECTION_BYTES + 16)
        for index in range(_u16(image, start + 6))
    ]
    for size, offset in sorted(sections, key=lambda section: section[1]):
        hasher.update(image[offset : offset + size])
        end += size
    hasher.update(image[end : max(end, len(image) - signatures)])
    return hasher.digest()


def _u16(data: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<H", data, offset)[0]
    return value


def _u32(data: bytes, offset: int) -> int:
    value: int = struct.unpack_from("<I", data, offset)[0]
    return value
