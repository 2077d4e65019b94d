"""QEMU as a VMM: with KVM where the CPU can, else with TCG, which runs anywhere."""

import os
import shutil
import socket

from sealrun_vmm import guest, kvm, process
from sealrun_vmm.driver import MachineExit
from sealrun_vmm.errors import ChangeFailed, HostUnfit, SpecRefused
from sealrun_vmm.qemu import features
from sealrun_vmm.qemu.arguments import arguments, later_nic
from sealrun_vmm.qemu.qmp import Qmp
from sealrun_vmm.spec import Accelerator, Nic, VmSpec

PROGRAM = "qemu-system-x86_64"
LOG = "vmm.log"


class QemuMachine:
    """A VM in a QEMU process. Implements `sealrun_vmm.driver.Machine`."""

    def __init__(self, running: process.VmmProcess, qmp: Qmp, spec: VmSpec, directory: str) -> None:
        self._process, self._qmp = running, qmp
        self._ports: list[str] = [""] * spec.later_nics  # the device in each
        self._log = os.path.join(directory, LOG)
        self._console = os.path.join(directory, spec.console)
        self._stopped = False

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    async def wait(self) -> MachineExit:
        """How the VM ended, once it is gone."""
        status = await self._process.wait()
        self._qmp.close()
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

    async def add_nic(self, name: str, nic: Nic) -> None:
        """Plug in a network device. Raises SpecRefused, ChangeFailed."""
        if "" not in self._ports:
            raise SpecRefused(
                f"all {len(self._ports)} places for network devices that come later are taken",
                remedy="connect the container to its networks before it is created",
            )
        port = self._ports.index("")
        backend, device = later_nic(port, name, nic)
        await self._qmp.execute("getfd", {"fdname": name}, nic.tap_fd)
        await self._qmp.execute("netdev_add", backend)
        try:
            await self._qmp.execute("device_add", device)
        except ChangeFailed:
            await self._qmp.execute("netdev_del", {"id": name})
            raise
        self._ports[port] = name

    async def remove_nic(self, name: str) -> None:
        """Take out a network device that was plugged in. Raises SpecRefused, ChangeFailed."""
        if name not in self._ports:
            raise SpecRefused(f"the VM was born with {name}")
        await self._qmp.unplug(name)
        await self._qmp.execute("netdev_del", {"id": name})
        self._ports[self._ports.index(name)] = ""

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
        control, theirs = socket.socketpair()
        control.setblocking(False)
        with theirs:
            command = arguments(self._find(), spec, theirs.fileno())
            descriptors = [theirs.fileno(), *(nic.tap_fd for nic in spec.nics)]
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
