"""QEMU as a VMM: with KVM where the CPU can, else with TCG, which runs anywhere."""

import socket

from sealrun_vmm import guest, kvm, process
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.qemu import features
from sealrun_vmm.qemu.arguments import arguments
from sealrun_vmm.qemu.machine import LOG, QemuMachine
from sealrun_vmm.qemu.qmp import Qmp
from sealrun_vmm.spec import Accelerator, VmSpec


class QemuDriver:
    """Implements `sealrun_vmm.driver.Driver`. `binary`: QEMU's path; empty: the system's own."""

    def __init__(self, binary: str = "") -> None:
        self._binary = binary

    def check(self, spec: VmSpec) -> None:
        """Raise HostUnfit or SpecRefused where `spec` cannot be booted here."""
        binary = features.find(self._binary)
        arguments(binary, spec)
        features.require(binary, spec)
        if spec.accelerator is Accelerator.KVM:
            obstacle = kvm.obstacle()
            if obstacle is not None:
                emulate = "set vm.accelerator to auto or tcg in sealrun.toml"
                remedy = f"{kvm.JOIN}, or {emulate}" if kvm.denied() else emulate
                raise HostUnfit(f"cannot use KVM: {obstacle}", remedy=remedy)
        guest.check(spec)

    async def launch(
        self, spec: VmSpec, directory: str, enlist: process.Enlist = process.unknown
    ) -> QemuMachine:
        """Start QEMU in `directory`; `enlist` is what its process does first. Raises HostUnfit, SpecRefused, LaunchFailed."""
        self.check(spec)
        control, theirs = socket.socketpair()
        control.setblocking(False)
        with theirs:
            command = arguments(features.find(self._binary), spec, theirs.fileno())
            descriptors = [theirs.fileno(), *(nic.tap_fd for nic in spec.nics), *spec.inherited]
            try:
                running = process.spawn(
                    command,
                    directory,
                    output=spec.console,
                    errors=LOG,
                    descriptors=descriptors,
                    enlist=enlist,
                )
            except BaseException:
                control.close()
                raise
        return QemuMachine(running, Qmp(control), spec, directory)


def driver(binary: str = "") -> QemuDriver:
    """What `sealrun_vmm.driver.load` calls."""
    return QemuDriver(binary)
