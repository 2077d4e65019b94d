"""What a block device of the host becomes in the VM: persistent memory, or a disk."""

import dataclasses
import logging

import msgspec
import pytest
from fixtures import containers
from sealrun_runtime.block_devices import BlockDevice
from sealrun_runtime.shim import disks, machine
from sealrun_runtime.shim.machine import Host
from sealrun_vmm.growth import Size
from sealrun_vmm.spec import PMEM_STEP, Accelerator, Disk, Tee, VmSpec
from sealrun_vmm.tee.launch import Launch
from unit.shim.test_machine import HANDOVER, IMAGE

MIB = 1 << 20
MEMORY_MIB = 777  # of the VM
DEVICE = BlockDevice(
    index=0, path="/dev/xvda", major=259, minor=0, readonly=False, pmem_bytes=64 * MIB
)
OTHER = msgspec.structs.replace(DEVICE, index=1, minor=1)
PMEM = Disk(serial="block-259-0", readonly=False, pmem_bytes=64 * MIB)
PLAIN = dataclasses.replace(PMEM, pmem_bytes=0)


def planned(*devices: BlockDevice, pmem_bytes: int = 1 << 40, tee: Tee = Tee.NONE) -> VmSpec:
    """The VM of a container with these, on a host with so much persistent memory."""
    handover = msgspec.structs.replace(
        HANDOVER, container=containers.spec(block_devices=devices), init_data=b"x"
    )
    host = Host(Size(8, 16384), pmem_bytes)
    return machine.vm_spec(handover, IMAGE, Accelerator.KVM, Launch(tee=tee), host)


def test_persistent_memory_stays_that() -> None:
    spec = planned(DEVICE, pmem_bytes=100 * MIB)
    assert spec.disks == (PMEM,)
    assert spec.pmem_mib == 100


def test_a_host_without_it_reserves_nothing() -> None:
    assert planned(pmem_bytes=0).pmem_mib == 0


def test_the_guests_kernel_has_memory_for_all_of_it() -> None:
    most = MEMORY_MIB * disks.PMEM_PER_MEMORY
    assert planned().pmem_mib == most
    large = msgspec.structs.replace(DEVICE, pmem_bytes=most * MIB // PMEM_STEP * PMEM_STEP)
    small = msgspec.structs.replace(OTHER, pmem_bytes=PMEM_STEP)
    assert [one.pmem_bytes for one in planned(large, small).disks] == [large.pmem_bytes, 0]
    assert [one.pmem_bytes for one in planned(small, large).disks] == [PMEM_STEP, 0]


@pytest.mark.parametrize("tee", [tee for tee in Tee if tee is not Tee.NONE])
def test_with_a_tee_it_is_a_disk(tee: Tee) -> None:
    spec = planned(DEVICE, tee=tee)
    assert (spec.disks, spec.pmem_mib) == ((PLAIN,), 0)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"readonly": True}, "the container may not write to it"),
        ({"pmem_bytes": 64 * MIB - 512}, "its size, 67108352 bytes, is no multiple of 2 MiB"),
        ({"pmem_bytes": 8192 * MIB}, "can have 6216 MiB of persistent memory: raise vm.memory"),
    ],
)
def test_what_cannot_be_is_a_disk_and_said(
    change: dict[str, object], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        (disk,) = planned(msgspec.structs.replace(DEVICE, **change)).disks
    assert disk == dataclasses.replace(PLAIN, readonly=disk.readonly)
    assert "the persistent memory block-259-0 is an ordinary disk: " in caplog.text
    assert why in caplog.text


def test_two_nodes_of_one_device_of_which_one_is_written() -> None:
    reader = msgspec.structs.replace(DEVICE, index=1, readonly=True)
    assert planned(reader, DEVICE).disks == planned(DEVICE, reader).disks == (PMEM,)
