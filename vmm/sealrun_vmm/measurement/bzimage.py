"""A bzImage as QEMU hands it to firmware: it fills in what a boot loader tells the kernel.

QEMU, hw/i386/x86.c (x86_load_linux); fields: Documentation/arch/x86/boot.rst. QEMU leaves the file as
it is for SEV-SNP, whose hashes are over the file.
"""

import struct
from typing import Final

from sealrun_vmm.errors import CannotMeasure

_MAGIC: Final = (0x202, b"HdrS")
_PROTOCOL: Final = 0x206
_OLDEST: Final = 0x20C  # every kernel since 3.8
_LOADER, _LOADER_QEMU = 0x210, 0xB0
_FLAGS, _HEAP_END_IS_VALID = 0x211, 0x80
_INITRD, _HEAP_END, _CMDLINE, _INITRD_MAX, _XLOADFLAGS = 0x218, 0x224, 0x228, 0x22C, 0x236
_ABOVE_4G: Final = 0b10  # of xloadflags: initrd and command line may lie anywhere

_SETUP_ADDRESS, _CMDLINE_ADDRESS = 0x10000, 0x20000
_ACPI_BYTES: Final = 0x28000  # kept free at the end of low memory
_MIB: Final = 1 << 20
# q35: with more than 2.75 GiB, low memory ends at 2 GiB.
_Q35_LIMIT, _Q35_LOW = 0xB000_0000, 0x8000_0000


def as_loaded(kernel: bytes, initrd_bytes: int, memory_mib: int) -> bytes:
    """The kernel's bytes after QEMU's q35 machine has placed an initrd of `initrd_bytes`.

    Raises CannotMeasure."""
    offset, magic = _MAGIC
    if kernel[offset : offset + len(magic)] != magic:
        raise CannotMeasure("the kernel is no bzImage")
    image = bytearray(kernel)
    (protocol,) = struct.unpack_from("<H", image, _PROTOCOL)
    if protocol < _OLDEST:
        raise CannotMeasure(f"the kernel speaks version {protocol:#x} of the boot protocol")
    (flags,) = struct.unpack_from("<H", image, _XLOADFLAGS)
    (highest,) = struct.unpack_from("<I", image, _INITRD_MAX)
    if flags & _ABOVE_4G:
        highest = 0xFFFF_FFFF
    memory = memory_mib * _MIB
    low = _Q35_LOW if memory >= _Q35_LIMIT else memory
    highest = min(highest, low - _ACPI_BYTES - 1)
    image[_LOADER] = _LOADER_QEMU
    image[_FLAGS] |= _HEAP_END_IS_VALID
    struct.pack_into("<H", image, _HEAP_END, _CMDLINE_ADDRESS - _SETUP_ADDRESS - 0x200)
    struct.pack_into("<I", image, _CMDLINE, _CMDLINE_ADDRESS)
    struct.pack_into("<II", image, _INITRD, (highest - initrd_bytes) & ~0xFFF, initrd_bytes)
    return bytes(image)
