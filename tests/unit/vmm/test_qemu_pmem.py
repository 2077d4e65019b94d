"""Persistent memory that is plugged into a running VM, by the real QEMU with a VM that stands still: what
it takes and refuses needs no guest. With a guest: tests/system/test_block_devices.py."""

import asyncio
import dataclasses
import os
import shutil
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from sealrun_vmm import process
from sealrun_vmm.errors import ChangeFailed, SpecRefused
from sealrun_vmm.qemu.features import PROGRAM
from sealrun_vmm.qemu.machine import QemuMachine
from sealrun_vmm.qemu.qmp import Qmp
from sealrun_vmm.spec import PMEM_STEP, Accelerator, Disk, VmSpec

ROOM = 8 * PMEM_STEP
PMEM = Disk(serial="block-259-0", readonly=False, pmem_bytes=PMEM_STEP)
OTHER = dataclasses.replace(PMEM, serial="block-259-1")
MACHINE = (
    *(PROGRAM, "-nodefaults", "-no-user-config", "-display", "none", "-S", "-accel", "tcg"),
    *("-machine", "q35", "-m", f"64M,maxmem={64 + (ROOM >> 20)}M"),
)

Use = Callable[[QemuMachine], Awaitable[None]]


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[int]:
    for name in (PMEM.serial, OTHER.serial):
        (tmp_path / name).write_bytes(bytes(2 * ROOM))
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def stopped(tmp_path: Path, nodes: int) -> Callable[[Use], None]:
    """stopped(use): with a VM that has places for two devices."""
    if shutil.which(PROGRAM, path=process.SYSTEM_PATH) is None:
        pytest.fail("QEMU is not installed: run tests/run", pytrace=False)
    spec = VmSpec(
        name="x",
        accelerator=Accelerator.TCG,
        cpus=1,
        memory_mib=64,
        kernel="",
        initrd="",
        cmdline="",
        nodes=nodes,
        later_devices=2,
    )

    def run(use: Use) -> None:
        async def main() -> None:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with theirs:
                words = [*MACHINE, "-chardev", f"socket,id=control,fd={theirs.fileno()}"]
                words += ["-mon", "chardev=control,mode=control"]
                for port in range(spec.later_devices):
                    words += ["-device", f"pcie-root-port,id=port{port},chassis={port},slot={port}"]
                inherited = [theirs.fileno(), nodes]
                running = process.spawn(
                    words, str(tmp_path), output="o", errors="e", descriptors=inherited
                )
            vm = QemuMachine(running, Qmp(ours), spec, str(tmp_path))
            try:
                await use(vm)
            finally:
                await vm.stop()
                await vm.wait()

        asyncio.run(main())

    return run


def test_each_has_a_place_of_its_own_that_is_told(stopped: Callable[[Use], None]) -> None:
    async def use(vm: QemuMachine) -> None:
        await vm.add_disk(PMEM)
        await vm.add_disk(OTHER)
        places = [await vm.pmem_address(disk.serial) for disk in (PMEM, OTHER)]
        assert places[0] != places[1]
        assert all(place % PMEM_STEP == 0 for place in places)
        with pytest.raises(SpecRefused, match="all 2 places"):
            await vm.add_disk(dataclasses.replace(PMEM, serial="block-259-2"))

    stopped(use)


def test_nothing_is_left_of_one_that_is_refused(stopped: Callable[[Use], None]) -> None:
    async def use(vm: QemuMachine) -> None:
        large = dataclasses.replace(PMEM, pmem_bytes=ROOM + PMEM_STEP)
        with pytest.raises(ChangeFailed, match="refused device_add: "):
            await vm.add_disk(large)
        await vm.add_disk(PMEM)

    stopped(use)


def test_it_stays_where_it_is(stopped: Callable[[Use], None]) -> None:
    async def use(vm: QemuMachine) -> None:
        await vm.add_disk(PMEM)
        place = await vm.pmem_address(PMEM.serial)
        with pytest.raises(ChangeFailed, match=r"refused device_del: .*cannot be unplugged"):
            await vm.remove_disk(PMEM.serial)
        assert await vm.pmem_address(PMEM.serial) == place

    stopped(use)


def test_a_qemu_that_does_not_know_where_it_lies_is_of_no_use(
    stopped: Callable[[Use], None],
) -> None:
    async def use(vm: QemuMachine) -> None:
        with pytest.raises(ChangeFailed, match="qemu does not say where block-259-0 lies"):
            await vm.pmem_address(PMEM.serial)
        assert (await vm.wait()).reason == "qemu does not say where block-259-0 lies"

    stopped(use)
