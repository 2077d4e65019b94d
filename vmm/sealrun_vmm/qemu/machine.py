"""A VM in a QEMU process, from its start to its end."""

import os
from collections.abc import Awaitable, Mapping
from typing import Any, Final, TypeVar

import msgspec

from sealrun_vmm import growth, guest, process
from sealrun_vmm.driver import MachineExit
from sealrun_vmm.errors import ChangeFailed, SpecRefused
from sealrun_vmm.growth import Size
from sealrun_vmm.qemu.arguments import GROWTH, back_end_of, disk_in_port, nic_in_port
from sealrun_vmm.qemu.qmp import Lost, Qmp
from sealrun_vmm.spec import Disk, Nic, VmSpec

LOG: Final = "vmm.log"

_DEVICE: Final = f"/machine/peripheral/{GROWTH}"
_MIB: Final = 1 << 20
_Result = TypeVar("_Result")
_Command = tuple[str, Mapping[str, object]]


class _Slot(msgspec.Struct, frozen=True):
    """Where a CPU is, or may be."""

    type: str
    props: dict[str, int]
    path: str | None = msgspec.field(name="qom-path", default=None)


class _MemoryDevice(msgspec.Struct, frozen=True):
    """Of what QEMU tells of one, what is looked at."""

    class Data(msgspec.Struct, frozen=True):
        """id: of the device."""

        id: str = ""
        memaddr: int = 0

    data: Data


class QemuMachine:
    """Implements `sealrun_vmm.driver.Machine`."""

    def __init__(self, running: process.VmmProcess, qmp: Qmp, spec: VmSpec, directory: str) -> None:
        self._process, self._qmp, self._spec = running, qmp, spec
        # The device in each.
        self._ports = [*(disk.serial for disk in spec.disks), *([""] * spec.later_devices)]
        self._log = os.path.join(directory, LOG)
        self._console = os.path.join(directory, spec.console)
        self._end: MachineExit | None = None  # where this process brings it about

    @property
    def pid(self) -> int:
        """QEMU's process id."""
        return self._process.pid

    async def wait(self) -> MachineExit:
        """How the VM ended, once it is gone."""
        status = await self._process.wait()
        self._qmp.close()
        if self._end is not None:
            return self._end
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
        """See Machine."""
        port = self._free_port()
        backend, device = nic_in_port(port, name, nic)
        await self._execute("getfd", {"fdname": name}, nic.tap_fd)
        await self._execute("netdev_add", backend)
        await self._plug(port, device, ("netdev_del", {"id": name}))

    async def remove_nic(self, name: str) -> None:
        """See Machine."""
        await self._unplug(name, ("netdev_del", {"id": name}))

    async def add_disk(self, disk: Disk) -> None:
        """See Machine."""
        port = self._free_port()
        add = "object-add" if disk.pmem_bytes else "blockdev-add"
        await self._execute(add, back_end_of(self._spec, disk))
        undo: _Command = ("blockdev-del", {"node-name": disk.serial})
        if disk.pmem_bytes:
            undo = ("object-del", {"id": disk.serial})
        await self._plug(port, disk_in_port(port, disk), undo)

    async def remove_disk(self, serial: str) -> None:
        """See Machine."""
        await self._unplug(serial, ("blockdev-del", {"node-name": serial}))

    async def pmem_address(self, serial: str) -> int:
        """See Machine."""
        said = await self._execute("query-memory-devices", {})
        try:
            devices = msgspec.convert(said, list[_MemoryDevice])
            return next(one.data.memaddr for one in devices if one.data.id == serial)
        except (msgspec.ValidationError, StopIteration) as error:
            raise await self._lost(f"qemu does not say where {serial} lies") from error

    def _free_port(self) -> int:
        """Raises SpecRefused."""
        if "" not in self._ports:
            raise SpecRefused(
                f"all {len(self._ports)} places for disks and network devices that come later are taken",
                remedy="name its networks and devices when the container is created",
            )
        return self._ports.index("")

    async def _plug(self, port: int, device: Mapping[str, object], undo: _Command) -> None:
        """Raises ChangeFailed."""
        try:
            await self._execute("device_add", device)
        except ChangeFailed:
            await self._execute(*undo)
            raise
        self._ports[port] = str(device["id"])

    async def _unplug(self, name: str, afterwards: _Command) -> None:
        """Raises SpecRefused, ChangeFailed."""
        if name not in self._ports:
            raise SpecRefused(f"the VM was born with {name}")
        await self._asking(self._qmp.unplug(name))
        self._ports[self._ports.index(name)] = ""
        await self._execute(*afterwards)

    async def stop(self) -> None:
        """End the VM now. Nothing of a sandbox outlives it, so nothing is lost by SIGKILL."""
        self._end = self._end or MachineExit(orderly=True, reason="the VM was stopped")
        await self._process.kill()
        self._qmp.close()

    async def resize(self, size: Size) -> None:
        """See Machine."""
        added = growth.added_mib(self._spec, size)
        await self._add_cpus(size.cpus)
        if growth.room_mib(self._spec):
            wanted = {"property": "requested-size", "value": added * _MIB}
            await self._execute("qom-set", {"path": _DEVICE, **wanted})
        if added:
            await growth.wait_for(self._taken, added)

    async def _add_cpus(self, number: int) -> None:
        """Add what is missing of `number` CPUs."""
        said = await self._execute("query-hotpluggable-cpus", {})
        try:
            slots = msgspec.convert(said, list[_Slot])
        except msgspec.ValidationError as error:
            raise await self._lost("qemu lists its CPUs as nobody else does") from error
        # The first CPU is listed last; those that are there have a path.
        for index, slot in enumerate(reversed(slots)):
            if index < number and slot.path is None:
                device = {"driver": slot.type, "id": f"cpu{index}", **slot.props}
                await self._execute("device_add", device)

    async def _taken(self) -> int:
        """MiB of what was added that the guest uses."""
        size = await self._execute("qom-get", {"path": _DEVICE, "property": "size"})
        if not isinstance(size, int):
            raise await self._lost("qemu tells a size that is no number")
        return size // _MIB

    async def _execute(
        self, command: str, arguments: Mapping[str, object], descriptor: int = -1
    ) -> Any:
        """Raises ChangeFailed."""
        return await self._asking(self._qmp.execute(command, arguments, descriptor))

    async def _asking(self, work: Awaitable[_Result]) -> _Result:
        """What QEMU answers, or the end of one that does not. Raises ChangeFailed."""
        try:
            return await work
        except Lost as error:
            raise await self._lost(str(error)) from error

    async def _lost(self, reason: str) -> ChangeFailed:
        """It is of no use any more."""
        self._end = self._end or MachineExit(orderly=False, reason=reason)
        await self._process.kill()
        return ChangeFailed(reason)
