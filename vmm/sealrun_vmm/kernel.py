"""Whether a kernel can be booted directly: an ELF with a PVH entry point, or a bzImage; by firmware: a
bzImage.

The entry point stands in a note called Xen of type 18 (XEN_ELFNOTE_PHYS32_ENTRY,
xen/include/public/elfnote.h). The bzImage's magic: Documentation/arch/x86/boot.rst.
"""

import struct
from typing import Final

_ELF_MAGIC: Final = b"\x7fELF\x02\x01"  # 64 bits, little endian
_PROGRAM_HEADERS: Final = struct.Struct("<32xQ14xHH")  # offset, size and number in the ELF header
_PROGRAM_HEADER: Final = struct.Struct("<I4xQ16xQ")  # type, offset and size of a segment
_NOTE: Final = struct.Struct("<III")  # lengths of name and content, type
_PT_NOTE: Final = 4
_PHYS32_ENTRY: Final = 18
_NOTES_BYTES: Final = 1 << 20
_BZIMAGE_MAGIC: Final = (0x202, b"HdrS")


def obstacle(path: str, *, by_firmware: bool = False) -> str | None:
    """Why the kernel at `path` cannot be booted, as the end of a sentence; None where it can."""
    try:
        return _obstacle(path, by_firmware=by_firmware)
    except OSError as error:
        return error.strerror or str(error)


def _obstacle(path: str, *, by_firmware: bool) -> str | None:
    """Raises OSError."""
    with open(path, "rb") as file:
        head = file.read(4096)
        offset, magic = _BZIMAGE_MAGIC
        if head[offset : offset + len(magic)] == magic:
            return None
        if by_firmware:
            return "it is no bzImage, and firmware starts no other"
        if not head.startswith(_ELF_MAGIC):
            return "it is neither an ELF file for 64 bits nor a bzImage"
        try:
            table, size, number = _PROGRAM_HEADERS.unpack_from(head)
            for index in range(number):
                file.seek(table + index * size)
                kind, start, length = _PROGRAM_HEADER.unpack_from(file.read(size))
                if kind == _PT_NOTE and length <= _NOTES_BYTES:
                    file.seek(start)
                    if _has_entry(file.read(length)):
                        return None
        except (struct.error, OverflowError, ValueError):
            return "its ELF headers are damaged"
    return "it has no PVH entry point"


def _has_entry(notes: bytes) -> bool:
    """Raises struct.error."""
    position = 0
    while position < len(notes):
        name, content, kind = _NOTE.unpack_from(notes, position)
        position += _NOTE.size
        if kind == _PHYS32_ENTRY and notes[position : position + name].rstrip(b"\0") == b"Xen":
            return True
        position += _padded(name) + _padded(content)
    return False


def _padded(length: int) -> int:
    return (length + 3) & ~3
