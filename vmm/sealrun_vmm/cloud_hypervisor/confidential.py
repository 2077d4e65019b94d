"""The part of Cloud Hypervisor's configuration that a TEE needs: pure, and compared with golden files.

SEV-SNP: firmware and first CPU states come in an IGVM file; kernel, initrd and command line over fw_cfg,
and their hashes into a measured page. Which parts go over fw_cfg is stated, since with an IGVM file
nobody checks that what is asked for is there.
"""

import os
from typing import Any, Final

from sealrun_vmm.cloud_hypervisor import program
from sealrun_vmm.cloud_hypervisor.program import Build
from sealrun_vmm.errors import SpecRefused
from sealrun_vmm.spec import Tee, VmSpec
from sealrun_vmm.tee import snp

FEATURES: Final[dict[Tee, frozenset[str]]] = {
    Tee.NONE: frozenset({"kvm"}),
    Tee.TPM: frozenset({"kvm"}),
    Tee.SNP: frozenset({"kvm", "sev_snp", "igvm", "fw_cfg"}),
}
"""What a VM takes to have been built in, as `vmm.ping` calls it."""

_OLDEST_WITH_TPM: Final = (53, 0)  # 52 asks swtpm something that it answers only when it is on
_OVER_FW_CFG: Final = ("e820", "kernel", "cmdline", "initramfs", "acpi_tables")


def check(spec: VmSpec) -> None:
    """Raise SpecRefused for what this VMM cannot do."""
    if spec.tee not in FEATURES:
        raise SpecRefused(
            f"cannot start a VM with {spec.tee} by Cloud Hypervisor",
            remedy="set vm.driver to qemu in sealrun.toml",
        )
    if spec.tee is Tee.TPM and not spec.tpm:
        raise SpecRefused("cannot start a VM with tpm without a TPM")
    if spec.tee is Tee.SNP:
        if not spec.firmware:
            raise SpecRefused("cannot start a VM with snp without an IGVM file")
        if spec.shares:
            raise SpecRefused("a VM with snp cannot share directories with the host")
        if len(spec.host_data) != snp.HOST_DATA_BYTES:
            raise SpecRefused(f"the host data of a VM with snp has {snp.HOST_DATA_BYTES} bytes")
    elif spec.firmware:
        raise SpecRefused("Cloud Hypervisor starts the kernel without firmware")


def require(build: Build, tee: Tee) -> None:
    """Raise HostUnfit where a program cannot start VMs with `tee`."""
    oldest = _OLDEST_WITH_TPM if tee is Tee.TPM else program.OLDEST
    program.require(build, FEATURES[tee], oldest)


def payload(spec: VmSpec) -> dict[str, Any]:
    """What the VM boots."""
    booted = {"kernel": spec.kernel, "initramfs": spec.initrd, "cmdline": spec.cmdline}
    if spec.tee is not Tee.SNP:
        return booted
    return booted | {
        "igvm": spec.firmware,
        "host_data": spec.host_data.hex(),
        "fw_cfg_config": dict.fromkeys(_OVER_FW_CFG, True),
    }


def members(spec: VmSpec) -> dict[str, Any]:
    """What the TEE adds to the VmConfig."""
    added: dict[str, Any] = {}
    if spec.tee is Tee.SNP:
        added["platform"] = {"sev_snp": True}
    if spec.tpm:
        # Landlock rules are derived from what stands before the last slash.
        added["tpm"] = {"socket": spec.tpm if os.path.isabs(spec.tpm) else f"./{spec.tpm}"}
    return added
