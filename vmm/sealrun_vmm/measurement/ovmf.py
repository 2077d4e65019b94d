"""What OVMF's image says about itself to a VMM: a table of entries with GUIDs at its end.

Layout: OvmfPkg/ResetVector/Ia16/ResetVectorVtf0.asm in edk2. The table ends 32 bytes before the end of
the image and is read backwards; each entry is its data, u16 length of the whole entry, GUID. TDX
metadata: Intel TDX Virtual Firmware Design Guide, 11.
"""

import struct
import uuid
from typing import Final, NamedTuple, TypeVar

from sealrun_vmm.errors import CannotMeasure

FOUR_GIB: Final = 1 << 32
_FOOTER: Final = "96b582de-1fb2-45f7-baea-a366c55a082d"
SEV_HASH_TABLE: Final = "7255371f-3a3b-4b04-927b-1da6efa8d454"
SEV_RESET_BLOCK: Final = "00f771de-1a7e-4fcb-890e-68c77e2fb44e"
_SEV_METADATA: Final = "dc886566-984a-4798-a75e-5585a7bf67cc"
_TDX_METADATA: Final = "e47a6535-984a-4798-865e-4685a7bf8ec2"
_BEHIND_TABLE: Final = 32
_ENTRY: Final = struct.Struct("<H16s")
_METADATA: Final = struct.Struct("<4sIII")  # signature, length, version, number of sections
_SEV_SECTION: Final = struct.Struct("<III")  # address, size, type
_TDX_SECTION: Final = struct.Struct("<IIQQII")  # see TdxSection
_SECTIONS: Final = 256
_MEMORY_BYTES: Final = 256 << 20


class SevSection(NamedTuple):
    """Memory that the VMM has to prepare: address, bytes, kind (OvmfPkg/Include/WorkArea.h)."""

    address: int
    size: int
    kind: int


class TdxSection(NamedTuple):
    """data_offset, raw_size: in the image, 0 where it has no content. attributes: bit 0 measured, bit
    1 added at run time."""

    data_offset: int
    raw_size: int
    address: int
    size: int
    kind: int
    attributes: int


_Section = TypeVar("_Section", SevSection, TdxSection)


class Ovmf:
    """One image. It ends at 4 GiB of the guest's memory."""

    def __init__(self, data: bytes) -> None:
        """Raises CannotMeasure where it has no table."""
        self.data = data
        self._entries = _table(data)

    @property
    def address(self) -> int:
        """Where it begins in the guest's memory."""
        return FOUR_GIB - len(self.data)

    def number(self, guid: str) -> int:
        """The first 32 bits of an entry; 0 where there is no such entry."""
        content = self._entries.get(guid, b"")
        return int.from_bytes(content[:4], "little")

    def sev_sections(self) -> list[SevSection]:
        """In their order. Raises CannotMeasure."""
        sections = self._sections(_SEV_METADATA, b"ASEV", _SEV_SECTION)
        return _bounded([SevSection(*section) for section in sections])

    def tdx_sections(self) -> list[TdxSection]:
        """In their order. Raises CannotMeasure."""
        sections = self._sections(_TDX_METADATA, b"TDVF", _TDX_SECTION)
        return _bounded([TdxSection(*section) for section in sections])

    def _sections(self, guid: str, signature: bytes, form: struct.Struct) -> list[tuple[int, ...]]:
        start = len(self.data) - self.number(guid)
        if guid not in self._entries or start < 0 or start + _METADATA.size > len(self.data):
            raise CannotMeasure(f"the firmware has no {signature.decode()} metadata")
        found, _, _, count = _METADATA.unpack_from(self.data, start)
        end = start + _METADATA.size + count * form.size
        if found != signature or count > _SECTIONS or end > len(self.data):
            raise CannotMeasure(f"the firmware's {signature.decode()} metadata is damaged")
        return list(form.iter_unpack(self.data[start + _METADATA.size : end]))


def _bounded(sections: list[_Section]) -> list[_Section]:
    """Raises CannotMeasure for what no firmware needs and would take minutes to measure."""
    if sum(section.size for section in sections) > _MEMORY_BYTES:
        raise CannotMeasure("the firmware's metadata asks for more memory than any needs")
    return sections


def _table(data: bytes) -> dict[str, bytes]:
    """Raises CannotMeasure."""
    end = len(data) - _BEHIND_TABLE
    if len(data) % 4096 or end < _ENTRY.size:
        text = f"the firmware is no image of OVMF: it has {len(data)} bytes, and those are pages"
        raise CannotMeasure(text)
    size, guid = _ENTRY.unpack_from(data, end - _ENTRY.size)
    if str(uuid.UUID(bytes_le=guid)) != _FOOTER or not _ENTRY.size <= size <= end:
        raise CannotMeasure("the firmware is no image of OVMF: it has no table at its end")
    entries: dict[str, bytes] = {}
    first, position = end - size, end - _ENTRY.size
    while position - _ENTRY.size >= first:
        size, guid = _ENTRY.unpack_from(data, position - _ENTRY.size)
        if not _ENTRY.size <= size <= position - first:
            raise CannotMeasure("the firmware's table is damaged")
        name = str(uuid.UUID(bytes_le=guid))
        entries[name] = data[position - size : position - _ENTRY.size]
        position -= size
    return entries
