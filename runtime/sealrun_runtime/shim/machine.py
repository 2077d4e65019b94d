"""What one sandbox boots: the VM of the settings (machine.py beside this folder), with what the host
shares with it."""

import dataclasses
from collections.abc import Callable
from typing import Final, NamedTuple

from sealrun_vmm.assets import GuestImage
from sealrun_vmm.driver import Machine
from sealrun_vmm.spec import Accelerator, VmSpec
from sealrun_vmm.tee.launch import Launch

from sealrun_runtime import machine
from sealrun_runtime.handover import Handover
from sealrun_runtime.machine import Plan, Tenant
from sealrun_runtime.shim import shared_tree
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.shim.shared_tree import SharedTree
from sealrun_runtime.shim.wires import Namespace

LATER_NICS: Final = 4
"""Networks that a container can be connected to after its VM was launched (network.py). QEMU needs a
port for each from the beginning; they cost the boot nothing that can be measured."""


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
    return planned._replace(spec=_for_sandbox(handover, planned.spec))


def vm_spec(
    handover: Handover, image: GuestImage, accelerator: Accelerator, launch: Launch
) -> VmSpec:
    """The VM of a sandbox. Pure: the same arguments, the same VM. Raises SpecRefused."""
    spec = machine.vm_spec(handover.id, handover.config, image, accelerator, launch)
    return _for_sandbox(handover, spec)


def _for_sandbox(handover: Handover, spec: VmSpec) -> VmSpec:
    """Raises SpecRefused."""
    return dataclasses.replace(
        spec, shares=shared_tree.device(handover, spec.tee), later_nics=LATER_NICS
    )
