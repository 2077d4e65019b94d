"""IGVM files: firmware and first CPU states for SEV-SNP with Cloud Hypervisor, and their launch digest.

Format: the IGVM specification (crate igvm_defs). A fixed header, then variable headers of u32 type, u32
length and content, each padded to 8 bytes; contents of pages lie behind, at offsets in the file.

Digest, as Cloud Hypervisor launches on KVM: the pages in the order of the directives; the table of
hashes in its page, where the file has one there, else in a page behind all others; then one state per
CPU, which KVM makes from the registers in the file.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import vmsa
from sealrun_vmm.measurement.kernel_hashes import BYTES, KernelHashes
from sealrun_vmm.measurement.launch_digest import (
    PAGE_BYTES,
    VMSA_ADDRESS,
    LaunchDigest,
    PageType,
)

HASHES_ADDRESS: Final = 0x10C00  # where Cloud Hypervisor puts the table
_HASHES_PAGE: Final = HASHES_ADDRESS & ~(PAGE_BYTES - 1)

_FIXED: Final = struct.Struct("<4sIIIII")  # magic, version, headers' offset and size, total, crc
_MAGIC: Final = b"IGVM"
_VERSION: Final = 1
_VARIABLE: Final = struct.Struct("<II")
_PLATFORM: Final = struct.Struct("<IBBHQ")  # mask, VTL, type, version, boundary
_PAGE: Final = struct.Struct("<QIIIHH")  # address, mask, offset, flags, type
_AREA: Final = struct.Struct("<QII")  # bytes, index, offset
_INSERT: Final = struct.Struct("<QII")  # address, mask, index
_CONTEXT: Final = struct.Struct("<QIIHH")  # address, mask, offset, CPU

_SNP_PLATFORM: Final = 2
_UNMEASURED, _LARGE = 0b010, 0b001
_HEADERS: Final = range(0x1, 0x401)
_TYPE_PLATFORM, _TYPE_AREA, _TYPE_PAGE, _TYPE_INSERT, _TYPE_CONTEXT = (
    0x1,
    0x301,
    0x302,
    0x303,
    0x304,
)
# what says something to the guest, and is not measured by itself
_PASSED_OVER: Final = frozenset({0x101, 0x305, 0x307, 0x30B, 0x30C, 0x30E})
_KINDS: Final = {0: PageType.NORMAL, 1: PageType.SECRETS, 2: PageType.CPUID}


class Page(NamedTuple):
    """One page, in the order of the file. content: empty where there is none."""

    kind: PageType
    address: int
    content: bytes


class IgvmFile(NamedTuple):
    """What a file says about SEV-SNP. contexts: VMSA by CPU."""

    pages: tuple[Page, ...]
    contexts: dict[int, bytes]


def parse(data: bytes) -> IgvmFile:
    """Raises CannotMeasure."""
    pages: list[Page] = []
    contexts: dict[int, bytes] = {}
    areas: dict[int, int] = {}
    mask = 0
    try:
        for kind, content in _headers(data):
            if kind == _TYPE_PLATFORM:
                platform_mask, _, platform, _, _ = _PLATFORM.unpack(content)
                mask |= platform_mask if platform == _SNP_PLATFORM else 0
            elif kind == _TYPE_AREA:
                size, index, _ = _AREA.unpack(content)
                areas[index] = size
            elif kind == _TYPE_INSERT:
                address, wanted, index = _INSERT.unpack(content)
                if wanted & mask:
                    pages += _inserted(address, areas[index])
            elif kind == _TYPE_PAGE:
                address, wanted, offset, flags, what, _ = _PAGE.unpack(content)
                if wanted & mask:
                    pages.append(_page(address, _content(data, offset), flags, what))
            elif kind == _TYPE_CONTEXT:
                _, wanted, offset, cpu, _ = _CONTEXT.unpack(content)
                if wanted & mask:
                    contexts[cpu] = _content(data, offset)
            elif kind not in _PASSED_OVER:
                raise _damaged(f"it has a header of type {kind:#x}, which is not known here")
    except (struct.error, KeyError) as error:
        raise _damaged("its headers are damaged") from error
    if not mask:
        raise _damaged("it is not for SEV-SNP")
    return IgvmFile(tuple(pages), contexts)


def require_snp(data: bytes) -> None:
    """Raise CannotMeasure for what is not an IGVM file with a part for SEV-SNP.

    What a VMM makes of its other headers is the VMM's to say."""
    try:
        platforms = [
            _PLATFORM.unpack(content)[2]
            for kind, content in _headers(data)
            if kind == _TYPE_PLATFORM
        ]
    except struct.error as error:
        raise _damaged("its headers are damaged") from error
    if _SNP_PLATFORM not in platforms:
        raise _damaged("it is not for SEV-SNP")


def digest(file: IgvmFile, hashes: KernelHashes, cpus: int) -> bytes:
    """48 bytes. Raises CannotMeasure."""
    launch = LaunchDigest()
    hashed = False
    for page in file.pages:
        if page.address == _HASHES_PAGE and page.kind is not PageType.CPUID:
            launch.add(PageType.NORMAL, page.address, _with_hashes(page.content, hashes))
            hashed = True
        else:
            launch.add(page.kind, page.address, page.content)
    if not hashed:
        launch.add(PageType.NORMAL, _HASHES_PAGE, _with_hashes(b"", hashes))
    if sorted(file.contexts) != list(range(cpus)):
        raise CannotMeasure(
            f"the IGVM file is for {len(file.contexts)} CPUs, and the VM has {cpus}",
            remedy="set vm.cpus in sealrun.toml, or build an IGVM file for as many",
        )
    for cpu in range(cpus):
        launch.add(PageType.VMSA, VMSA_ADDRESS, vmsa.from_context(file.contexts[cpu]))
    return launch.value


def _headers(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Raises CannotMeasure, struct.error."""
    if data[:4] != _MAGIC:
        raise _damaged("it does not begin with IGVM")
    _, version, offset, size, total, checksum = _FIXED.unpack_from(data)
    end = offset + size
    if version != _VERSION or total != len(data) or end > len(data) or offset < _FIXED.size:
        raise _damaged("its header is damaged, or of another version")
    unsummed = _FIXED.pack(_MAGIC, version, offset, size, total, 0)
    if zlib.crc32(unsummed + data[_FIXED.size : end]) != checksum:
        raise _damaged("its checksum is wrong")
    while offset < end:
        kind, length = _VARIABLE.unpack_from(data, offset)
        offset += _VARIABLE.size
        if kind not in _HEADERS or offset + length > end:
            raise _damaged("its headers are damaged")
        yield kind, data[offset : offset + length]
        offset += (length + 7) & ~7


def _page(address: int, content: bytes, flags: int, what: int) -> Page:
    """Raises CannotMeasure."""
    if flags & _LARGE or what not in _KINDS or address % PAGE_BYTES:
        raise _damaged("it has a page that Cloud Hypervisor does not take")
    kind = _KINDS[what]
    if kind is PageType.NORMAL and flags & _UNMEASURED:
        kind = PageType.UNMEASURED
    elif kind is PageType.NORMAL and not content:
        kind = PageType.ZERO
    return Page(kind, address, content)


def _inserted(address: int, size: int) -> list[Page]:
    """The pages of a parameter area. Raises CannotMeasure."""
    if address % PAGE_BYTES or size % PAGE_BYTES or size > 1 << 30:
        raise _damaged("a parameter area does not consist of pages")
    if address <= HASHES_ADDRESS < address + size:
        raise CannotMeasure("the IGVM file puts parameters where the table of hashes has to be")
    return [
        Page(PageType.UNMEASURED, address + offset, b"") for offset in range(0, size, PAGE_BYTES)
    ]


def _content(data: bytes, offset: int) -> bytes:
    """Raises CannotMeasure."""
    if offset == 0:
        return b""
    if offset + PAGE_BYTES > len(data):
        raise _damaged("the content of a page lies behind its end")
    return data[offset : offset + PAGE_BYTES]


def _with_hashes(content: bytes, hashes: KernelHashes) -> bytes:
    page = bytearray(content.ljust(PAGE_BYTES, b"\0"))
    offset = HASHES_ADDRESS - _HASHES_PAGE
    # Cloud Hypervisor clears the whole block of 1 KiB.
    page[offset:] = hashes.table().ljust(PAGE_BYTES - offset, b"\0")
    assert PAGE_BYTES - offset >= BYTES
    return bytes(page)


def _damaged(why: str) -> CannotMeasure:
    return CannotMeasure(f"cannot read the IGVM file: {why}")
