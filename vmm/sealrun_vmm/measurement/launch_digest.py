"""SEV-SNP's launch digest: a hash chain over all pages that are put into the VM before it starts.

SEV Secure Nested Paging Firmware ABI Specification, 8.17.2 (SNP_LAUNCH_UPDATE), PAGE_INFO.
"""

import hashlib
import struct
from enum import IntEnum
from typing import Final

PAGE_BYTES: Final = 4096
# A CPU's state has no address in the guest; it is recorded with the highest one that there can be.
VMSA_ADDRESS: Final = 0xFFFF_FFFF_F000
_PAGE_INFO: Final = struct.Struct("<48s48sHBBBBBBQ")
_NOTHING: Final = bytes(48)


class PageType(IntEnum):
    """PAGE_TYPE of the specification. Of the last four only type and address are measured."""

    NORMAL = 1
    VMSA = 2
    ZERO = 3
    UNMEASURED = 4
    SECRETS = 5
    CPUID = 6


class LaunchDigest:
    """The digest so far; pages are added in the order in which the VMM adds them."""

    def __init__(self) -> None:
        self.value = _NOTHING

    def add(self, kind: PageType, address: int, content: bytes = b"") -> None:
        """One page. content: its 4096 bytes, where they are measured."""
        measured = kind in (PageType.NORMAL, PageType.VMSA)
        if measured and len(content) != PAGE_BYTES:
            raise ValueError(f"a page has {PAGE_BYTES} bytes, not {len(content)}")
        contents = hashlib.sha384(content).digest() if measured else _NOTHING
        info = _PAGE_INFO.pack(self.value, contents, _PAGE_INFO.size, kind, 0, 0, 0, 0, 0, address)
        self.value = hashlib.sha384(info).digest()

    def add_range(self, kind: PageType, address: int, size: int) -> None:
        """Pages whose content is not measured. size: in bytes."""
        for offset in range(0, size, PAGE_BYTES):
            self.add(kind, address + offset)

    def add_normal(self, address: int, data: bytes) -> None:
        """Consecutive pages with content."""
        for offset in range(0, len(data), PAGE_BYTES):
            self.add(PageType.NORMAL, address + offset, data[offset : offset + PAGE_BYTES])
