"""SEV-SNP's launch digest for a VM that QEMU starts with OVMF.

In this order: the firmware's pages; what its metadata asks for (memory that is zero, the pages of
secrets and CPUID, the table of hashes); one state per CPU.
"""

from typing import Final

from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import vmsa
from sealrun_vmm.measurement.kernel_hashes import BYTES, KernelHashes
from sealrun_vmm.measurement.launch_digest import (
    PAGE_BYTES,
    VMSA_ADDRESS,
    LaunchDigest,
    PageType,
)
from sealrun_vmm.measurement.ovmf import SEV_HASH_TABLE, SEV_RESET_BLOCK, Ovmf

# OvmfPkg/ResetVector/X64/OvmfSevMetadata.asm
_MEMORY, _SECRETS, _CPUID, _CALLING_AREA, _KERNEL_HASHES = 1, 2, 3, 4, 0x10
_PAGES: Final = {
    _MEMORY: PageType.ZERO,
    _SECRETS: PageType.SECRETS,
    _CPUID: PageType.CPUID,
    _CALLING_AREA: PageType.ZERO,
}
SIGNATURES: Final = {"EPYC-v4": 0x0080_0F12}
"""EAX of CPUID 1 of QEMU's CPU models."""


def digest(firmware: Ovmf, hashes: KernelHashes, cpus: int, cpu_model: str) -> bytes:
    """48 bytes. Raises CannotMeasure."""
    if cpu_model not in SIGNATURES:
        raise CannotMeasure(f"the CPU model {cpu_model or 'of the host'} has no known signature")
    require_hashes(firmware)
    launch = LaunchDigest()
    launch.add_normal(firmware.address, firmware.data)
    for section in firmware.sev_sections():
        if section.kind == _KERNEL_HASHES:
            launch.add(PageType.NORMAL, section.address, _page(firmware, section.address, hashes))
        elif section.kind in _PAGES:
            launch.add_range(_PAGES[section.kind], section.address, section.size)
        else:
            raise CannotMeasure(f"the firmware asks for memory of the unknown kind {section.kind}")
    reset = firmware.number(SEV_RESET_BLOCK)
    for index in range(cpus):
        address = reset if index else vmsa.RESET_ADDRESS
        state = vmsa.at_reset(address, SIGNATURES[cpu_model])
        launch.add(PageType.VMSA, VMSA_ADDRESS, state)
    return launch.value


def require_hashes(firmware: Ovmf) -> None:
    """Raise CannotMeasure for firmware that does not compare what it boots with hashes that are measured."""
    kinds = [section.kind for section in firmware.sev_sections()]
    if _KERNEL_HASHES not in kinds or not firmware.number(SEV_HASH_TABLE):
        raise CannotMeasure(
            "the firmware does not compare kernel, initrd and command line with hashes",
            remedy="take OVMF's build for SEV (AmdSev)",
        )


def _page(firmware: Ovmf, address: int, hashes: KernelHashes) -> bytes:
    """The page of the table of hashes. Raises CannotMeasure."""
    table = firmware.number(SEV_HASH_TABLE)
    offset = table - address
    if not 0 <= offset <= PAGE_BYTES - BYTES:
        raise CannotMeasure("the firmware's table of hashes lies outside of its page")
    return (bytes(offset) + hashes.table()).ljust(PAGE_BYTES, b"\0")
