"""The PCRs of a VM with a TPM, SHA-256: of what OVMF measured, or else of what the launcher did (tee/tpm_relay.py).

Not computed of OVMF's: PCR 0 covers the firmware after it has set itself up in memory, and so depends on
memory size and number of CPUs in ways that only running it tells; PCR 1 its own list of boot options.
Never: PCR 10, a sum over the others that the kernel's IMA adds.
"""

import hashlib
from typing import Final

from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import measured_boot
from sealrun_vmm.measurement.measured_boot import Event
from sealrun_vmm.spec import VmSpec

ALGORITHM: Final = "sha256"
INIT_DATA: Final = 8
KERNEL, OPTIONS = 4, 9
"""Where the launcher puts the kernel; and command line and initrd: where the EFI stub has them, too."""
_BY_FIRMWARE: Final = (2, 3, 4, 5, 6, 7, 9)
_BY_LAUNCHER: Final = (0, 1, *_BY_FIRMWARE)


def events(spec: VmSpec) -> list[Event]:
    """What goes into the PCRs before the kernel runs. Raises CannotMeasure, OSError."""
    if spec.firmware:
        return measured_boot.events(spec, ALGORITHM)
    return [
        Event(KERNEL, f"kernel {spec.kernel}", _digest(spec.kernel)),
        Event(
            OPTIONS,
            f"command line: {spec.cmdline}",
            hashlib.new(ALGORITHM, spec.cmdline.encode()).digest(),
        ),
        Event(OPTIONS, f"initrd {spec.initrd}", _digest(spec.initrd)),
    ]


def values(spec: VmSpec, found: list[Event]) -> dict[int, bytes]:
    """Each computed PCR after the boot of `spec`, of which `found` was measured."""
    return {
        number: measured_boot.replay([e.digest for e in found if e.pcr == number], ALGORITHM)
        for number in (_BY_FIRMWARE if spec.firmware else _BY_LAUNCHER)
    }


def with_init_data(digest: bytes) -> bytes:
    """PCR 8 after the agent put an init-data's digest there (kbs-protocol, section 8)."""
    if len(digest) != hashlib.new(ALGORITHM).digest_size:
        raise CannotMeasure(
            "a TPM takes init-data whose algorithm is sha256 only",
            remedy='write algorithm = "sha256" in the init-data',
        )
    return measured_boot.replay([digest], ALGORITHM)


def _digest(path: str) -> bytes:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, ALGORITHM).digest()
