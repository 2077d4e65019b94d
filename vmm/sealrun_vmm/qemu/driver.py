"""QEMU as a VMM: with KVM where the CPU can, else with TCG, which runs anywhere."""

import os
import shutil

from sealrun_vmm import guest, kvm, process
from sealrun_vmm.driver import MachineExit
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.qemu import features
from sealrun_vmm.qemu.arguments import arguments
from sealrun_vmm.spec import Accelerator, VmSpec

PROGRAM = "qemu-system-x86_64"
LOG = "vmm.log"


class QemuMachine:
    """A VM in a QEMU process. Implements `sealrun_vmm.driver.Machine`."""

    def __init__(self, running: process.VmmProcess, directory: str, console: str) -> None:
        self._process = running
        self._log = os.path.join(directory, LOG)
        self._console = os.path.join(directory, console)
        self._stopped = False

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    async def wait(self) -> MachineExit:
        """How the VM ended, once it is gone."""
        status = await self._process.wait()
        if self._stopped:
            return MachineExit(orderly=True, reason="the VM was stopped")
        if status != 0:
            manner = f"status {status}" if status > 0 else f"signal {-status}"
            words = process.last_line(self._log)
            return MachineExit(
                orderly=False, reason=f"qemu ended with {manner}" + (f": {words}" if words else "")
            )
        failure = guest.failure(self._console)
        if failure is not None:
            return MachineExit(orderly=False, reason=f"the guest failed: {failure}")
        return MachineExit(orderly=True, reason="the guest powered off")

    async def stop(self) -> None:
        """End the VM now. Nothing of a sandbox outlives it, so nothing is lost by SIGKILL."""
        self._stopped = True
        await self._process.kill()


class QemuDriver:
    """Implements `sealrun_vmm.driver.Driver`. `binary`: QEMU's path; empty: the system's own."""

    def __init__(self, binary: str = "") -> None:
        self._binary = binary

    def check(self, spec: VmSpec) -> None:
        """Raise HostUnfit or SpecRefused where `spec` cannot be booted here."""
        binary = self._find()
        arguments(binary, spec)
        features.require(binary, spec)
        if spec.accelerator is Accelerator.KVM:
            obstacle = kvm.obstacle()
            if obstacle is not None:
                raise HostUnfit(
                    f"cannot use KVM: {obstacle}",
                    remedy="set vm.accelerator to auto or tcg in sealrun.toml",
                )
        guest.check(spec)

    async def launch(
        self, spec: VmSpec, directory: str, enlist: process.Enlist = process.unknown
    ) -> QemuMachine:
        """Start QEMU in `directory`; `enlist` is what its process does first. Raises HostUnfit, SpecRefused, LaunchFailed."""
        self.check(spec)
        command = arguments(self._find(), spec)
        descriptors = [nic.tap_fd for nic in spec.nics]
        running = process.spawn(
            command,
            directory,
            output=spec.console,
            errors=LOG,
            descriptors=descriptors,
            enlist=enlist,
        )
        return QemuMachine(running, directory, spec.console)

    def _find(self) -> str:
        binary = self._binary or PROGRAM
        found = shutil.which(binary, path=process.SYSTEM_PATH)
        if found is None:
            raise HostUnfit(
                f"cannot find {binary}",
                remedy="install Debian's package qemu-system-x86, or set vm.qemu in sealrun.toml",
            )
        return found


def driver(binary: str = "") -> QemuDriver:
    """What `sealrun_vmm.driver.load` calls."""
    return QemuDriver(binary)
