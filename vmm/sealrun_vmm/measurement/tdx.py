"""Intel TDX: MRTD, RTMR 1 and RTMR 2 of a VM that QEMU starts with OVMF's build for TDX.

MRTD (Intel TDX Module specification, "TD Measurement"): SHA-384 over a record for each page that is
added and, where the section is measured, one for each 256 bytes of it. KVM adds and measures page by
page, in the order of the firmware's sections.

Not computed: RTMR 0 covers the list of memory ranges, ACPI tables and variables that QEMU makes of the
whole command line; RTMR 3 is the agent's.
"""

import hashlib
import struct
from typing import Final, NamedTuple

from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import authenticode, measured_boot
from sealrun_vmm.measurement.measured_boot import Event
from sealrun_vmm.measurement.ovmf import Ovmf
from sealrun_vmm.spec import VmSpec

ALGORITHM: Final = "sha384"
_PAGE_BYTES: Final = 4096
_CHUNK_BYTES: Final = 256
_RECORD: Final = struct.Struct("<16sQ104x")
_MEASURED: Final = 0b01  # MR.EXTEND of a section's attributes
_ADDED_LATER: Final = 0b10  # PAGE.AUG: the guest accepts it at run time
_FIRST_PCRS, _SECOND_PCRS = range(2, 7), range(8, 16)


def mrtd(firmware: Ovmf) -> bytes:
    """48 bytes. Raises CannotMeasure."""
    hasher = hashlib.sha384()
    for section in firmware.tdx_sections():
        if section.attributes & _ADDED_LATER:
            continue
        end = section.data_offset + section.raw_size
        if (
            section.size % _PAGE_BYTES
            or end > len(firmware.data)
            or section.raw_size > section.size
        ):
            raise CannotMeasure("the firmware's TDVF metadata is damaged")
        content = firmware.data[section.data_offset : end].ljust(section.size, b"\0")
        for offset in range(0, section.size, _PAGE_BYTES):
            hasher.update(_RECORD.pack(b"MEM.PAGE.ADD", section.address + offset))
            if section.attributes & _MEASURED:
                for chunk in range(offset, offset + _PAGE_BYTES, _CHUNK_BYTES):
                    hasher.update(_RECORD.pack(b"MR.EXTEND", section.address + chunk))
                    hasher.update(content[chunk : chunk + _CHUNK_BYTES])
    return hasher.digest()


class Rtmr1(NamedTuple):
    """how: the firmware and VMM that give this value."""

    how: str
    value: bytes


def events(spec: VmSpec) -> list[Event]:
    """What goes into RTMR 1 and 2, with the PCR that each event would go into on a TPM. Raises
    CannotMeasure, OSError."""
    found = measured_boot.events(spec, ALGORITHM)
    # The firmware draws one line between itself and what it boots, not one for each PCR.
    return [e for e in found if e.pcr != 7 and (e.what != "separator" or e.pcr == 4)]


def plain_kernel(spec: VmSpec) -> bytes:
    """The kernel's digest as it is in its file. Raises CannotMeasure, OSError."""
    with open(spec.kernel, "rb") as stream:
        return authenticode.digest(stream.read(), ALGORITHM)


def rtmr1(found: list[Event], plain: bytes) -> list[Rtmr1]:
    """Kernel and the firmware's actions; which of the values a VM has depends on the firmware's age.

    plain: see plain_kernel. QEMU 10 offers the kernel's file beside the one that it filled in, and
    newer firmware prefers it. Older firmware draws no line in RTMR 1."""
    return [
        Rtmr1(
            f"{'the kernel as in its file' if kernel else 'the kernel as QEMU fills it in'}, "
            f"{'a' if line else 'no'} separator",
            measured_boot.replay(_first(found, kernel, line=line), ALGORITHM),
        )
        for kernel in (b"", plain)
        for line in (True, False)
    ]


def rtmr2(found: list[Event]) -> bytes:
    """Command line and initrd."""
    return measured_boot.replay([e.digest for e in found if e.pcr in _SECOND_PCRS], ALGORITHM)


def _first(found: list[Event], kernel: bytes, *, line: bool) -> list[bytes]:
    """The events of RTMR 1; kernel: its digest, where it is not the one of `found`."""
    return [
        kernel if kernel and event.what.startswith("kernel ") else event.digest
        for event in found
        if event.pcr in _FIRST_PCRS and (line or event.what != "separator")
    ]
