"""The table of hashes through which SEV-SNP measures kernel, initrd and command line.

The VMM puts it into a measured page; the firmware compares what it is then given (QEMU, target/i386/
sev.c; Cloud Hypervisor writes the same).
"""

import hashlib
import struct
import uuid
from typing import Final, NamedTuple

_TABLE: Final = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_CMDLINE: Final = uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_INITRD: Final = uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
_KERNEL: Final = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b")
_ENTRY: Final = struct.Struct("<16sH32s")
_HEADER: Final = struct.Struct("<16sH")
_LENGTH: Final = _HEADER.size + 3 * _ENTRY.size
BYTES: Final = 176  # the table, padded to 16


class KernelHashes(NamedTuple):
    """SHA-256 of the files, and of the command line with the byte 0 behind it."""

    kernel: bytes
    initrd: bytes
    cmdline: bytes

    def table(self) -> bytes:
        """The padded table."""
        entries = ((_CMDLINE, self.cmdline), (_INITRD, self.initrd), (_KERNEL, self.kernel))
        body = b"".join(_ENTRY.pack(guid.bytes_le, _ENTRY.size, value) for guid, value in entries)
        return (_HEADER.pack(_TABLE.bytes_le, _LENGTH) + body).ljust(BYTES, b"\0")


def hash_all(kernel: bytes, initrd: bytes, cmdline: str) -> KernelHashes:
    """The hashes of what the VM boots."""
    return KernelHashes(
        hashlib.sha256(kernel).digest(),
        hashlib.sha256(initrd).digest(),
        hashlib.sha256(cmdline.encode() + b"\0").digest(),
    )
