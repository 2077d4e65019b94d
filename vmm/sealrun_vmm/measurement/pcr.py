"""The PCRs of a VM that OVMF measured, SHA-256.

Not computed: PCR 0 covers the firmware after it has set itself up in memory, and so depends on memory
size and number of CPUs in ways that only running it tells; PCR 1 its own list of boot options; PCR 10
is a sum over the others that the kernel's IMA adds.
"""

import hashlib
from typing import Final

from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import measured_boot
from sealrun_vmm.measurement.measured_boot import Event
from sealrun_vmm.spec import VmSpec

ALGORITHM: Final = "sha256"
INIT_DATA: Final = 8
COMPUTED: Final = (2, 3, 4, 5, 6, 7, 9)


def events(spec: VmSpec) -> list[Event]:
    """What goes into the PCRs of `COMPUTED`. Raises CannotMeasure, OSError."""
    if not spec.firmware:
        raise CannotMeasure(
            "nothing measures what this VM boots: it starts without firmware",
            remedy="set vm.insecure_unmeasured_boot to false in sealrun.toml",
        )
    return measured_boot.events(spec, ALGORITHM)


def values(found: list[Event]) -> dict[int, bytes]:
    """Each computed PCR after the boot."""
    return {
        number: measured_boot.replay([e.digest for e in found if e.pcr == number], ALGORITHM)
        for number in COMPUTED
    }


def with_init_data(digest: bytes) -> bytes:
    """PCR 8 after the agent put an init-data's digest there (kbs-protocol, section 8)."""
    if len(digest) != hashlib.new(ALGORITHM).digest_size:
        raise CannotMeasure(
            "a TPM takes init-data whose algorithm is sha256 only",
            remedy='write algorithm = "sha256" in the init-data',
        )
    return measured_boot.replay([digest], ALGORITHM)
