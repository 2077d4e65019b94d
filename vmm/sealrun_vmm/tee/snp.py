"""AMD SEV-SNP: memory and CPU state encrypted, the launch measured and signed by the CPU.

Cloud Hypervisor takes firmware and CPU state as an IGVM file and kernel, initrd and command line over
fw_cfg; QEMU takes OVMF in the build for SEV (AmdSev), which checks them against a table of their
hashes that is part of the measurement.
"""

from typing import Final

from sealrun_vmm import kvm
from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.spec import Tee
from sealrun_vmm.tee.launch import Launch, Options
from sealrun_vmm.tee.platform import SNP_VM, Platform

DRIVERS: Final = (DriverName.CLOUD_HYPERVISOR, DriverName.QEMU)
HOST_DATA_BYTES: Final = 32
# The launch measurement covers the CPU's signature, so it must be the same on every host of a kind.
CPU_MODEL: Final = "EPYC-v4"
OLDEST_KERNEL: Final = (6, 11)  # the first whose KVM starts SNP guests
POLICY: Final = 0x30000  # SMT is allowed, bit 17 is always set; no debugging, no migration

FIRMWARE: Final = ("/usr/share/ovmf/OVMF.amdsev.fd", "/usr/share/edk2/ovmf/OVMF.amdsev.fd")


def require(platform: Platform, _options: Options) -> None:
    """Raise HostUnfit for the first thing that is missing."""
    if "sev_snp" not in platform.cpu_flags:
        raise HostUnfit(
            "cannot use SEV-SNP: the CPU does not show sev_snp",
            remedy="take an EPYC 7003 or newer, switch SEV-SNP on in its setup, or set tee to auto",
        )
    platform.require_kernel(OLDEST_KERNEL, "SEV-SNP")
    if platform.kvm:
        raise HostUnfit(f"cannot use SEV-SNP: {platform.kvm}", remedy=kvm.remedy("load kvm_amd"))
    if not platform.is_on(Tee.SNP):
        raise HostUnfit(
            "cannot use SEV-SNP: kvm_amd was loaded without sev_snp",
            remedy="load kvm_amd with sev_snp=1, and boot with IOMMU and without nosev",
        )
    if "/dev/sev" not in platform.devices:
        raise HostUnfit(
            "cannot use SEV-SNP: there is no /dev/sev",
            remedy="load the module ccp; its messages in the kernel's log say what it lacks",
        )
    if not platform.starts(SNP_VM):
        raise HostUnfit(
            "cannot use SEV-SNP: KVM does not start VMs of that type", remedy="see the kernel's log"
        )


def launch(driver: DriverName, options: Options) -> Launch:
    """A VM whose memory is encrypted, with the init-data's digest as HOST_DATA. Raises HostUnfit."""
    from sealrun_vmm.tee import firmware  # most VMs have none

    if driver is DriverName.CLOUD_HYPERVISOR:
        found = firmware.find(
            options.firmware,
            (),
            "the IGVM file for SEV-SNP",
            "set vm.firmware in sealrun.toml to one",
            firmware.igvm_for_snp,
        )
    else:
        found = firmware.find(
            options.firmware,
            FIRMWARE,
            "OVMF's build for SEV (AmdSev)",
            "install it, or set vm.firmware in sealrun.toml",
            firmware.ovmf_for_sev,
        )
    return Launch(
        tee=Tee.SNP,
        firmware=found,
        cpu_model=CPU_MODEL if driver is DriverName.QEMU else "",
        host_data=options.digest[:HOST_DATA_BYTES].ljust(HOST_DATA_BYTES, b"\0"),
    )
