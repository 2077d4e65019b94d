"""Intel TDX: memory and CPU state encrypted, the launch measured, quotes signed by a service.

QEMU only: Cloud Hypervisor has had TDX switched off at compile time since v53, and what older ones
have does not fit the kernel's interface.
"""

import os
import stat
from typing import Final

from sealrun_vmm import kvm
from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import Tee
from sealrun_vmm.tee.launch import Launch, Options
from sealrun_vmm.tee.platform import TDX_VM, Platform

DRIVERS: Final = (DriverName.QEMU,)
HOST_DATA_BYTES: Final = 48
OLDEST_KERNEL: Final = (6, 16)  # the first whose KVM starts TDs

FIRMWARE: Final = ("/usr/share/ovmf/OVMF.inteltdx.fd", "/usr/share/edk2/ovmf/OVMF.inteltdx.fd")


def require(platform: Platform, _options: Options) -> None:
    """Raise HostUnfit for the first thing that is missing."""
    if "tdx_host_platform" not in platform.cpu_flags:
        raise HostUnfit(
            "cannot use TDX: the CPU does not show tdx_host_platform",
            remedy="take a Xeon with TDX, switch it on in its setup, or set tee to auto",
        )
    platform.require_kernel(OLDEST_KERNEL, "TDX")
    if platform.kvm:
        raise HostUnfit(f"cannot use TDX: {platform.kvm}", remedy=kvm.remedy("load kvm_intel"))
    if not platform.is_on(Tee.TDX):
        raise HostUnfit(
            "cannot use TDX: kvm_intel was loaded without tdx",
            remedy="load kvm_intel with tdx=1",
        )
    if not platform.starts(TDX_VM):
        raise HostUnfit(
            "cannot use TDX: KVM does not start VMs of that type",
            remedy="see the kernel's log for what the TDX module says",
        )


def launch(driver: DriverName, options: Options) -> Launch:
    """A TD with the init-data's digest as MRCONFIGID. Raises HostUnfit, SpecRefused."""
    if driver is not DriverName.QEMU:
        raise SpecRefused(
            "cannot start a VM with tdx by Cloud Hypervisor: TDX is broken in it, and has been "
            "switched off since v53",
            remedy="set vm.driver to qemu in sealrun.toml",
        )
    from sealrun_vmm.tee import firmware  # most VMs have none

    found = firmware.find(
        options.firmware,
        FIRMWARE,
        "OVMF's build for TDX (IntelTdx)",
        "install it, or set vm.firmware in sealrun.toml",
        firmware.ovmf_for_tdx,
    )
    if options.quote_service:
        _require_quotes(options.quote_service)
    return Launch(
        tee=Tee.TDX,
        firmware=found,
        host_data=options.digest[:HOST_DATA_BYTES].ljust(HOST_DATA_BYTES, b"\0"),
        quote_service=options.quote_service,
    )


def _require_quotes(path: str) -> None:
    """Raise HostUnfit where nobody can listen."""
    try:
        why = "" if stat.S_ISSOCK(os.stat(path).st_mode) else f"{path} is no socket"
    except FileNotFoundError:
        why = f"there is no {path}"
    except OSError as error:
        why = f"{path}: {error.strerror}"
    if why:
        raise HostUnfit(
            f"cannot sign TDX quotes: {why}",
            remedy="start the TDX quote generation service, or set vm.quote_service in sealrun.toml",
        )
