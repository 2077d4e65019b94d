"""The kernel's two halves: the ELF inside a bzImage, and modules in the order they must be loaded.

A PVH boot of the bare ELF (`vmlinux`) skips the decompressor, which emulation makes slow. Setup
header: Documentation/arch/x86/boot.rst in the kernel's sources.
"""

import lzma
import struct
import zlib
from collections.abc import Callable, Iterable

from sealrun_guest_image import elf
from sealrun_guest_image.errors import BuildError

_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_SETUP_SECTORS, _HEADER_MAGIC, _PAYLOAD = 0x1F1, 0x202, 0x248


def vmlinux(bzimage: bytes) -> bytes | None:
    """The ELF file that `bzimage` decompresses to; None where this Python cannot decompress it.

    Raises BuildError for what is no bzImage."""
    if bzimage[_HEADER_MAGIC : _HEADER_MAGIC + 4] != b"HdrS":
        raise BuildError("cannot read the kernel: it is no bzImage")
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    start = (bzimage[_SETUP_SECTORS] + 1) * 512 + offset
    payload = memoryview(bzimage)[start : start + length - 4]  # the last 4 bytes are the size
    image = _decompress(bytes(payload))
    if image is not None and not elf.is_elf(image):
        raise BuildError("cannot read the kernel: its payload is no ELF file")
    return image


def _decompress(payload: bytes) -> bytes | None:
    if payload.startswith(_LZ4_LEGACY):
        return _lz4(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload)
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    return None


def _lz4(payload: bytes) -> bytes:
    """LZ4's legacy frame: a magic, then blocks, each behind its compressed size (lz4_Frame_format)."""
    out = bytearray()
    position = len(_LZ4_LEGACY)
    while position + 4 <= len(payload):
        (size,) = struct.unpack_from("<I", payload, position)
        position += 4
        out += _lz4_block(payload[position : position + size])
        position += size
    return bytes(out)


def _lz4_block(block: bytes) -> bytearray:
    """One LZ4 block: (literals, match) pairs, the last without a match (lz4_Block_format)."""
    out = bytearray()
    position, end = 0, len(block)
    while position < end:
        token = block[position]
        position += 1
        count = token >> 4
        if count == 15:
            while block[position] == 255:
                count += 255
                position += 1
            count += block[position]
            position += 1
        out += block[position : position + count]
        position += count
        if position >= end:
            break
        distance = block[position] | block[position + 1] << 8
        position += 2
        count = token & 15
        if count == 15:
            while block[position] == 255:
                count += 255
                position += 1
            count += block[position]
            position += 1
        count += 4
        start = len(out) - distance
        if distance >= count:
            out += out[start : start + count]
        else:
            out += (out[start:] * (count // distance + 1))[:count]
    return out


def dependencies(module: bytes) -> list[str]:
    """The modules that `module` (a .ko file) says must be there first."""
    for field in elf.section(module, ".modinfo").split(b"\0"):
        if field.startswith(b"depends="):
            return [canonical(name) for name in field[8:].decode().split(",") if name]
    return []


def canonical(name: str) -> str:
    """The kernel's own spelling: a file may be called virtio-rng.ko, the module is virtio_rng."""
    return name.removesuffix(".ko").replace("-", "_")


def load_order(
    wanted: Iterable[str], builtin: set[str], depends: Callable[[str], list[str]]
) -> list[str]:
    """`wanted` modules and all they need, each behind what it needs, without built-in ones.

    `depends` gives a module's direct needs and raises BuildError where there is no such module."""
    order: list[str] = []

    def visit(name: str, above: tuple[str, ...]) -> None:
        if name in order or name in builtin:
            return
        if name in above:
            raise BuildError(f"cannot order the kernel's modules: {name} needs itself")
        for need in depends(name):
            visit(need, (*above, name))
        order.append(name)

    for name in wanted:
        visit(name, ())
    return order
