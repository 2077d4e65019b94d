"""The few things the builder reads from and does to ELF files (64-bit, little-endian)."""

import struct
from typing import NamedTuple

from sealrun_guest_image.errors import BuildError

MAGIC = b"\x7fELF"

_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB = 0, 1, 5
_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_DYNAMIC = struct.Struct("<QQ")


class _Segment(NamedTuple):
    kind: int
    offset: int
    address: int
    file_size: int


def is_elf(data: bytes) -> bool:
    """Whether `data` is a 64-bit little-endian ELF file."""
    return data[:4] == MAGIC and data[4:6] == b"\x02\x01"


def needed(data: bytes) -> list[str]:
    """What the dynamic loader must find for this file: its interpreter's path, then sonames."""
    segments = _segments(data)
    names = [_string(data, segment.offset) for segment in segments if segment.kind == _PT_INTERP]
    for segment in segments:
        if segment.kind != _PT_DYNAMIC:
            continue
        table = data[segment.offset : segment.offset + segment.file_size]
        entries = list(_DYNAMIC.iter_unpack(table[: len(table) // 16 * 16]))
        strings = next(value for tag, value in entries if tag == _DT_STRTAB)
        base = _file_offset(segments, strings)
        for tag, value in entries:
            if tag == _DT_NULL:
                break
            if tag == _DT_NEEDED:
                names.append(_string(data, base + value))
    return names


def without_sections(data: bytes) -> bytes:
    """The file without section headers and what lies behind the last segment: symbols and debug
    information. The loader reads segments only; a manylinux wheel may carry 10 MB behind them."""
    end = max(
        (segment.offset + segment.file_size for segment in _segments(data)), default=len(data)
    )
    fields = list(_HEADER.unpack_from(data))
    fields[6] = fields[12] = fields[13] = 0  # e_shoff, e_shnum, e_shstrndx
    return _HEADER.pack(*fields) + data[_HEADER.size : end]


def section(data: bytes, name: str) -> bytes:
    """The content of section `name`, empty without one."""
    header = _HEADER.unpack_from(data)
    offset, entry_size, count, names_index = header[6], header[11], header[12], header[13]
    sections = [_SECTION.unpack_from(data, offset + index * entry_size) for index in range(count)]
    names = sections[names_index][4]
    for fields in sections:
        if _string(data, names + fields[0]) == name:
            return data[fields[4] : fields[4] + fields[5]]
    return b""


def _segments(data: bytes) -> list[_Segment]:
    if not is_elf(data):
        raise BuildError("cannot read a file as ELF: not 64-bit little-endian")
    header = _HEADER.unpack_from(data)
    offset, entry_size, count = header[5], header[9], header[10]
    segments = []
    for index in range(count):
        fields = _SEGMENT.unpack_from(data, offset + index * entry_size)
        segments.append(_Segment(fields[0], fields[2], fields[3], fields[5]))
    return segments


def _file_offset(segments: list[_Segment], address: int) -> int:
    for segment in segments:
        if (
            segment.kind == _PT_LOAD
            and segment.address <= address < segment.address + segment.file_size
        ):
            return address - segment.address + segment.offset
    raise BuildError("cannot read an ELF file: an address lies in no segment")


def _string(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()
