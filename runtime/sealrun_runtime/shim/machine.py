"""From the operator's settings to the VM: which driver, and the VmSpec that it boots.

`vm_spec` is the one pure function of the design's "Config + ContainerSpec -> VmSpec"; what is booted
and what is measured are renderings of its value. `plan` looks at this machine and calls it.
"""

from collections.abc import Callable
from typing import NamedTuple

from sealrun_vmm import assets, cmdline, driver, kvm
from sealrun_vmm.assets import GuestImage
from sealrun_vmm.driver import Driver, DriverName, Machine
from sealrun_vmm.errors import VmmError
from sealrun_vmm.process import VmmProcess
from sealrun_vmm.spec import Accelerator, Tee, VmSpec

from sealrun_runtime.handover import Handover
from sealrun_runtime.settings import VmSettings
from sealrun_runtime.shim import shared_root


class Plan(NamedTuple):
    """Which VMM boots what."""

    name: DriverName
    driver: Driver
    spec: VmSpec


class Launched(NamedTuple):
    """A VM that was launched. driver: its name. channel: the descriptor on which its agent is
    awaited. server: of the root file system that it shares with the host."""

    driver: str
    machine: Machine
    spec: VmSpec
    channel: int
    server: VmmProcess | None


Planner = Callable[[Handover], Plan]
"""Raises VmmError."""


def plan(handover: Handover) -> Plan:
    """What this machine boots for the sandbox. Raises HostUnfit."""
    settings = handover.config.vm
    if settings.accelerator != "auto":
        accelerator = Accelerator(settings.accelerator)
    elif settings.driver == "cloud-hypervisor":
        accelerator = Accelerator.KVM  # it knows no other, and says what KVM lacks
    else:
        accelerator = kvm.choose_accelerator()
    spec = vm_spec(handover, assets.locate(handover.guest_image), accelerator)
    name = choose_driver(settings, spec)
    return Plan(name, _load(name, settings), spec)


def choose_driver(settings: VmSettings, spec: VmSpec) -> DriverName:
    """Which VMM boots `spec`: the one that is asked for, else Cloud Hypervisor where it can."""
    if settings.driver != "auto":
        return DriverName(settings.driver)
    if spec.accelerator is Accelerator.KVM:
        try:
            _load(DriverName.CLOUD_HYPERVISOR, settings).check(spec)
        except VmmError:
            return DriverName.QEMU
        return DriverName.CLOUD_HYPERVISOR
    return DriverName.QEMU


def _load(name: DriverName, settings: VmSettings) -> Driver:
    binary = settings.qemu if name is DriverName.QEMU else settings.cloud_hypervisor
    return driver.load(name, binary)


def vm_spec(handover: Handover, image: GuestImage, accelerator: Accelerator) -> VmSpec:
    """The VM of a sandbox. Pure: the same arguments, the same VM. Raises SpecRefused."""
    return VmSpec(
        name=handover.id,
        accelerator=accelerator,
        cpus=handover.config.vm.cpus,
        memory_mib=handover.config.vm.memory,
        kernel=image.kernel,
        initrd=image.initrd,
        cmdline=cmdline.base(accelerator),
        shares=shared_root.shares(handover, Tee.NONE),
        landlock=not handover.config.vm.insecure_no_landlock,
        tee=Tee.NONE,
    )
