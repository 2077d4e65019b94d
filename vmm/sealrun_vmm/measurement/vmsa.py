"""A virtual CPU's first state, as KVM measures it at the end of a launch: one page per CPU.

AMD64 Architecture Programmer's Manual, volume 2, appendix B, table B-4 (the VMSA). KVM writes a state
of its own from the registers that the VMM set, so that what a VMM cannot set is the same for all.
"""

import struct
from typing import Final

from sealrun_vmm.measurement.launch_digest import PAGE_BYTES

RESET_ADDRESS: Final = 0xFFFF_FFF0  # where the first CPU starts
SEV_FEATURES: Final = 1  # SNP is on, and nothing else

_SEGMENT: Final = struct.Struct("<HHIQ")  # selector, attributes, limit, base
# offsets of segments: es cs ss ds fs gs gdtr ldtr idtr tr
_SEGMENTS: Final = {
    "es": 0x00, "cs": 0x10, "ss": 0x20, "ds": 0x30, "fs": 0x40,
    "gs": 0x50, "gdtr": 0x60, "ldtr": 0x70, "idtr": 0x80, "tr": 0x90,
}  # fmt: skip
_REGISTERS: Final = {
    "efer": 0x0D0, "cr4": 0x148, "cr3": 0x150, "cr0": 0x158, "dr7": 0x160, "dr6": 0x168,
    "rflags": 0x170, "rip": 0x178, "rsp": 0x1D8, "rax": 0x1F8, "g_pat": 0x268, "rcx": 0x308,
    "rdx": 0x310, "rbx": 0x318, "rbp": 0x328, "rsi": 0x330, "rdi": 0x338, "r8": 0x340, "r9": 0x348,
    "r10": 0x350, "r11": 0x358, "r12": 0x360, "r13": 0x368, "r14": 0x370, "r15": 0x378,
    "sev_features": 0x3B0, "xcr0": 0x3E8,
}  # fmt: skip
_MXCSR, _X87_FCW = 0x408, 0x410

_EFER_SVME: Final = 0x1000  # KVM sets it in every guest
_CR4_MCE: Final = 0x40  # as on the host
_CR0_CACHE: Final = 0x6000_0000  # CD and NW, which KVM clears
_GENERAL: Final = (
    "cr3 rflags rip rsp rax rcx rdx rbx rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
)


def at_reset(address: int, signature: int) -> bytes:
    """A CPU as QEMU starts it. address: of its first instruction; signature: EAX of CPUID 1."""
    page = _plain()
    cs_base, rip = address & 0xFFFF_0000, address & 0xFFFF
    for name, attributes in (("es", 0x93), ("ss", 0x93), ("ds", 0x93), ("fs", 0x93), ("gs", 0x93)):
        _set_segment(page, name, 0, attributes, 0xFFFF, 0)
    _set_segment(page, "cs", 0xF000, 0x9B, 0xFFFF, cs_base)
    _set_segment(page, "gdtr", 0, 0, 0xFFFF, 0)
    _set_segment(page, "idtr", 0, 0, 0xFFFF, 0)
    _set_segment(page, "ldtr", 0, 0x82, 0xFFFF, 0)
    _set_segment(page, "tr", 0, 0x8B, 0xFFFF, 0)
    values = {"efer": _EFER_SVME, "cr4": _CR4_MCE, "cr0": 0x10, "rflags": 2, "rip": rip}
    for name, value in (values | {"rdx": signature}).items():
        _set(page, name, value)
    return bytes(page)


def from_context(context: bytes) -> bytes:
    """A CPU as Cloud Hypervisor starts it, from an IGVM file's VP context, a VMSA itself."""
    page = _plain()
    for name, offset in _SEGMENTS.items():
        segment = context[offset : offset + _SEGMENT.size]
        if name in ("gdtr", "idtr"):  # of these, only base and limit are registers
            _, _, limit, base = _SEGMENT.unpack(segment)
            segment = _SEGMENT.pack(0, 0, limit, base)
        page[offset : offset + _SEGMENT.size] = segment
    for name in _GENERAL:
        _set(page, name, _get(context, name))
    _set(page, "efer", _get(context, "efer") | _EFER_SVME)
    _set(page, "cr4", _get(context, "cr4") | _CR4_MCE)
    _set(page, "cr0", _get(context, "cr0") & ~_CR0_CACHE)
    return bytes(page)


def _plain() -> bytearray:
    """What no VMM sets."""
    page = bytearray(PAGE_BYTES)
    _set(page, "dr7", 0x400)
    _set(page, "dr6", 0xFFFF_0FF0)
    _set(page, "g_pat", 0x0007_0406_0007_0406)
    _set(page, "sev_features", SEV_FEATURES)
    _set(page, "xcr0", 1)
    struct.pack_into("<I", page, _MXCSR, 0x1F80)
    struct.pack_into("<H", page, _X87_FCW, 0x37F)
    return page


def _set_segment(page: bytearray, name: str, *values: int) -> None:
    """values: selector, attributes, limit, base."""
    _SEGMENT.pack_into(page, _SEGMENTS[name], *values)


def _set(page: bytearray, name: str, value: int) -> None:
    struct.pack_into("<Q", page, _REGISTERS[name], value)


def _get(page: bytes, name: str) -> int:
    value: int = struct.unpack_from("<Q", page, _REGISTERS[name])[0]
    return value
