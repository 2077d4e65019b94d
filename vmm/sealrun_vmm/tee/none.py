"""No TEE: the host can read the VM's memory."""

from typing import Final

from sealrun_vmm.driver import DriverName
from sealrun_vmm.tee.launch import Launch, Options
from sealrun_vmm.tee.platform import Platform

DRIVERS: Final = (DriverName.CLOUD_HYPERVISOR, DriverName.QEMU)


def require(_platform: Platform, _options: Options) -> None:
    """Every machine can do without."""


def launch(_driver: DriverName, _options: Options) -> Launch:
    """A plain VM, whose kernel the VMM starts."""
    return Launch()
