"""What one sandbox boots: the VM of the settings (machine.py beside this folder), with what the host
shares with it."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from sealrun_vmm import cmdline
from sealrun_vmm.assets import GuestImage
from sealrun_vmm.driver import Machine
from sealrun_vmm.growth import Size
from sealrun_vmm.spec import Accelerator, Tee, VmSpec
from sealrun_vmm.tee.launch import Launch

from sealrun_runtime import block_devices, machine
from sealrun_runtime.demand import Demand
from sealrun_runtime.handover import Handover
from sealrun_runtime.machine import Plan, Tenant
from sealrun_runtime.settings import MOST_CPUS, VmSettings
from sealrun_runtime.shim import disks, shared_tree
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.shim.shared_tree import SharedTree
from sealrun_runtime.shim.wires import Namespace

LATER_DEVICES: Final = 8
"""Networks (network.py) and disks (disks.py) that a VM can get after it was launched. QEMU needs a port for
each from the beginning; they cost the boot nothing that can be measured."""


class Host(NamedTuple):
    """This machine, as far as it bounds a VM. pmem_bytes: what it has as block devices."""

    size: Size
    pmem_bytes: int = 0


class Launched(NamedTuple):
    """A VM that was launched. driver: its name. channel: the descriptor on which its agent is
    awaited. attendants: what it depends on. tree: what the host shares with it. network: the namespace
    of config.json whose interfaces it took over."""

    driver: str
    machine: Machine
    spec: VmSpec
    channel: int
    attendants: tuple[Attendant, ...]
    tree: SharedTree | None = None
    network: Namespace | None = None


Planner = Callable[[Handover], Plan]
"""Raises VmmError."""


def plan(handover: Handover) -> Plan:
    """What this machine boots for the sandbox. Raises HostUnfit, SpecRefused."""
    tenant = Tenant(handover.init_data_digest, handover.accepted_tees)
    planned = machine.plan(handover.id, handover.config, handover.guest_image, tenant)
    return planned._replace(spec=_for_sandbox(handover, planned.spec, this_host()))


def this_host() -> Host:
    """As it is now."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return Host(Size(min(os.cpu_count() or 1, MOST_CPUS), memory), block_devices.pmem_bytes())


def vm_spec(
    handover: Handover, image: GuestImage, accelerator: Accelerator, launch: Launch, host: Host
) -> VmSpec:
    """The VM of a sandbox on the machine `host`. Pure: the same arguments, the same VM.

    Raises SpecRefused."""
    spec = machine.vm_spec(handover.id, handover.config, image, accelerator, launch)
    return _for_sandbox(handover, spec, host)


def size_for(settings: VmSettings, demands: Iterable[Demand], most: Size) -> Size:
    """What a VM has to be for all its containers, but no more than `most`: what is configured, and
    on top of it all that their memory limits allow; as many CPUs as their quotas fill."""
    demands = tuple(demands)
    time = sum(one.quota / one.period for one in demands)
    memory = settings.memory + sum(one.memory_mib for one in demands)
    cpus = max(settings.cpus, math.ceil(round(time, 6)))
    return Size(min(cpus, most.cpus), min(memory, most.memory_mib))


def _for_sandbox(handover: Handover, spec: VmSpec, host: Host) -> VmSpec:
    """Raises SpecRefused."""
    if spec.tee is Tee.NONE:  # what a TEE measures must be predictable from the settings
        spec = _sized(handover, spec, host.size)
    spec = dataclasses.replace(
        spec,
        pmem_mib=disks.pmem_mib(spec, host.pmem_bytes),
        shares=shared_tree.device(handover, spec.tee),
        later_devices=0 if spec.tee in machine.ENCRYPTED else LATER_DEVICES,
    )
    return dataclasses.replace(spec, disks=disks.of_sandbox(handover, spec))


def _sized(handover: Handover, spec: VmSpec, host: Size) -> VmSpec:
    """As large as its container's limits make it, and able to grow."""
    settings = handover.config.vm
    most = Size(
        max(settings.cpus, settings.max_cpus or host.cpus),
        max(settings.memory, min(settings.max_memory or host.memory_mib, host.memory_mib)),
    )
    size = size_for(settings, (handover.container.demand,), most)
    grows = most.memory_mib > size.memory_mib
    return dataclasses.replace(
        spec,
        cpus=size.cpus,
        memory_mib=size.memory_mib,
        max_cpus=most.cpus,
        max_memory_mib=most.memory_mib,
        cmdline=cmdline.growing(spec.cmdline) if grows else spec.cmdline,
    )
