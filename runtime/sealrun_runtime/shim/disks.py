"""The host's block devices in the VM: disks that are plugged in for the container that names them, and out
again with the last one that has them.

One that is persistent memory is a virtio-pmem device: the guest maps it, and keeps no second copy of what is
on it. It is a virtio-blk disk like any other where that cannot be (`_disk`), which works as well and is
said in the log.

The VMM opens them in a directory that is mounted nowhere: a file system of its own in memory, whose
descriptor the VMM inherits and which holds nothing but the nodes of these devices. So no name of the host's
is looked up, a VMM that is confined to the directory finds them there, and nothing of it is left when both
processes are gone.
"""

import asyncio
import os
import stat
from collections.abc import Iterable, Sequence
from typing import Final

from sealrun_protocol import disk_names
from sealrun_vmm.driver import Machine
from sealrun_vmm.errors import HostUnfit as VmmHostUnfit
from sealrun_vmm.errors import SpecRefused, VmmError
from sealrun_vmm.spec import NO_NODES, PMEM_STEP, Disk, Tee, VmSpec

from sealrun_runtime import namespaces
from sealrun_runtime.block_devices import BlockDevice
from sealrun_runtime.errors import cause
from sealrun_runtime.handover import Handover
from sealrun_runtime.shim.errors import HostFailed, HostUnfit, ShimError, VmmFailed
from sealrun_runtime.shim.log import log

PMEM_PER_MEMORY: Final = 8
"""How much persistent memory a VM may have for its own: the guest's kernel keeps 64 bytes of memory for every
4096 of it, so this is an eighth."""
LATER: Final = "give the device to the container that the VM is started with, or run the container in a pod of its own"


def pmem_mib(spec: VmSpec, host: int) -> int:
    """How much persistent memory the VM may have. host: the bytes that this machine has."""
    if spec.tee is not Tee.NONE:  # its memory is not the host's to map
        return 0
    return min(-(-host >> 20), spec.memory_mib * PMEM_PER_MEMORY)


def of_sandbox(handover: Handover, spec: VmSpec) -> tuple[Disk, ...]:
    """Those that the VM has from its beginning. Raises SpecRefused where no tenant allows them."""
    devices = () if handover.idle else handover.container.block_devices
    if devices and spec.tee is not Tee.NONE and not handover.init_data:
        raise SpecRefused(
            f"cannot give a VM with {spec.tee} a block device of the host: no init-data allows it",
            remedy="allow it in [host] of an init-data",
        )
    wanted: dict[str, BlockDevice] = {}
    for device in devices:
        known = wanted.get(device.serial)
        if known is None or known.readonly:
            wanted[device.serial] = device
    disks: list[Disk] = []
    for device in wanted.values():
        disks.append(_disk(device, spec, disks))
    return tuple(disks)


def make_nodes(handover: Handover, spec: VmSpec) -> int:
    """The directory of a VM's disks, with the nodes of those that it has from its beginning; NO_NODES where
    it has none, and none will come. Raises VmmError."""
    awaited = handover.pod is not None and spec.tee is Tee.NONE
    if not spec.disks and not awaited:
        return NO_NODES
    try:
        nodes = namespaces.make_tmpfs()
    except OSError as error:
        if not spec.disks:  # what nobody has asked for yet is refused when somebody does
            return NO_NODES
        raise VmmHostUnfit(f"cannot make nodes of block devices: {cause(error)}") from error
    serials = {disk.serial for disk in spec.disks}
    try:
        for device in handover.container.block_devices:
            if device.serial in serials:
                serials.remove(device.serial)
                _make_node(nodes, device)
    except OSError as error:
        os.close(nodes)
        raise VmmHostUnfit(f"cannot make nodes of block devices: {cause(error)}") from error
    return nodes


class Disks:
    """Those of one VM, and which containers have them. Event loop only."""

    def __init__(self, machine: Machine, spec: VmSpec) -> None:
        self._machine, self._spec = machine, spec
        self._disks = {disk.serial: disk for disk in spec.disks}
        self._users: dict[str, set[str]] = {disk.serial: set() for disk in spec.disks}
        self._turn = asyncio.Lock()

    def close(self) -> None:
        """The VM is gone."""
        if self._spec.nodes != NO_NODES:
            os.close(self._spec.nodes)

    async def hold(self, container: str, devices: Sequence[BlockDevice]) -> dict[int, str]:
        """Plug in what the VM does not have yet of a container's; by their indices in linux.devices, the
        names by which the guest finds them. Raises ShimError; then nothing was plugged in."""
        names = {}
        try:
            for device in devices:
                async with self._turn:
                    if device.serial not in self._users:
                        await self._plug(device)
                    elif self._disks[device.serial].readonly and not device.readonly:
                        raise HostUnfit(
                            f"the VM has the block device {device.major}:{device.minor} already, "
                            "and cannot write to it",
                            remedy=LATER,
                        )
                    self._users[device.serial].add(container)
                    names[device.index] = await self._name(device)
        except ShimError:
            await self.release(container)
            raise
        return names

    async def release(self, container: str) -> None:
        """A container is gone: unplug what no other has. What the guest does not let go of stays."""
        for serial, users in list(self._users.items()):
            async with self._turn:
                if container not in users:
                    continue
                users.remove(container)
                if users:
                    continue
                try:
                    await self._machine.remove_disk(serial)
                    os.unlink(serial, dir_fd=self._spec.nodes)
                except (VmmError, OSError) as error:
                    log.error("the disk %s stays in the VM: %s", serial, error)
                    continue
                del self._users[serial], self._disks[serial]
                log.info("unplugged the disk %s", serial)

    async def _plug(self, device: BlockDevice) -> None:
        """Raises ShimError."""
        what = f"cannot plug the block device {device.major}:{device.minor} into the running VM"
        if self._spec.tee is not Tee.NONE:
            why = f"one with {self._spec.tee} gets nothing after its start"
            raise HostUnfit(f"{what}: {why}", remedy=LATER)
        if self._spec.nodes == NO_NODES:
            raise HostUnfit(f"{what}: this process may make no nodes", remedy=LATER)
        disk = _disk(device, self._spec, self._disks.values())
        try:
            _make_node(self._spec.nodes, device)
        except OSError as error:
            raise HostFailed(f"{what}: cannot make its node: {cause(error)}") from error
        try:
            await self._machine.add_disk(disk)
        except VmmError as error:
            os.unlink(device.serial, dir_fd=self._spec.nodes)
            raise VmmFailed(f"{what}: {error}", remedy=error.remedy) from error
        self._users[device.serial] = set()
        self._disks[device.serial] = disk
        log.info("plugged in the disk %s", device.serial)

    async def _name(self, device: BlockDevice) -> str:
        """Raises ShimError."""
        if not self._disks[device.serial].pmem_bytes:
            return device.serial
        try:
            return disk_names.pmem(await self._machine.pmem_address(device.serial))
        except VmmError as error:
            what = f"cannot find the block device {device.major}:{device.minor} in the VM"
            raise VmmFailed(f"{what}: {error}", remedy=error.remedy) from error


def _disk(device: BlockDevice, spec: VmSpec, others: Iterable[Disk]) -> Disk:
    """What the device is in the VM, beside the disks that are there."""
    size = device.pmem_bytes
    taken = sum(other.pmem_bytes for other in others)
    why = ""
    if device.readonly:
        why = "the container may not write to it"
    elif spec.tee is not Tee.NONE:
        why = f"the VM has {spec.tee}"
    elif size % PMEM_STEP:
        why = f"its size, {size} bytes, is no multiple of {PMEM_STEP >> 20} MiB"
    elif taken + size > spec.pmem_mib << 20:
        why = (
            f"the VM, of {spec.memory_mib} MiB, can have {spec.pmem_mib} MiB of persistent memory: "
            "raise vm.memory in sealrun.toml"
        )
    if size and why:
        log.info("the persistent memory %s is an ordinary disk: %s", device.serial, why)
    return Disk(serial=device.serial, readonly=device.readonly, pmem_bytes=0 if why else size)


def _make_node(nodes: int, device: BlockDevice) -> None:
    """Raises OSError."""
    number = os.makedev(device.major, device.minor)
    os.mknod(device.serial, stat.S_IFBLK | 0o600, number, dir_fd=nodes)
