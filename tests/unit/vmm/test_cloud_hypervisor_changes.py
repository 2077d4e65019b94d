"""A VMM that is lost at a call that plugs something in or takes it out: the call fails with the reason, the
VM ends with it in bounded time, and nothing is left behind. (Resizes: test_cloud_hypervisor_resize.py.)"""

import dataclasses
import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from fixtures.simulated_hypervisor import BUSY, tap
from sealrun_vmm.cloud_hypervisor import machine as machines
from sealrun_vmm.cloud_hypervisor.machine import CloudHypervisorMachine
from sealrun_vmm.errors import ChangeFailed, LaunchFailed, SpecRefused
from sealrun_vmm.spec import PMEM_STEP, Disk, Nic, Tee

MISBEHAVIOURS = {
    "die": "gave no answer to {call}: ",
    "garble": "gave no answer to {call}: an answer does not begin",
    "hang": "did not answer {call} in {seconds:g} s",
}
PATIENCE = 1.0  # instead of what a VMM has to answer while its guest runs
DISK = Disk(serial="block-7-1", readonly=True)
PMEM = Disk(serial="block-7-1", readonly=False, pmem_bytes=PMEM_STEP)

Change = Callable[[CloudHypervisorMachine, int], Awaitable[None]]


def nic(descriptor: int) -> Nic:
    return Nic(tap_fd=descriptor, mac="02:00:00:00:00:01", mtu=1500)


async def add_nic(machine: CloudHypervisorMachine, descriptor: int) -> None:
    await machine.add_nic("nic9", nic(descriptor))


async def add_disk(machine: CloudHypervisorMachine, _: int) -> None:
    await machine.add_disk(DISK)


async def add_pmem(machine: CloudHypervisorMachine, _: int) -> None:
    await machine.add_disk(PMEM)


async def find_pmem(machine: CloudHypervisorMachine, _: int) -> None:
    await machine.add_disk(PMEM)
    await machine.pmem_address(PMEM.serial)


async def remove_nic(machine: CloudHypervisorMachine, descriptor: int) -> None:
    await add_nic(machine, descriptor)
    await machine.remove_nic("nic9")


async def remove_disk(machine: CloudHypervisorMachine, _: int) -> None:
    await add_disk(machine, 0)
    await machine.remove_disk(DISK.serial)


CALLS = {
    add_nic: "vm.add-net",
    add_disk: "vm.add-disk",
    add_pmem: "vm.add-pmem",
    find_pmem: "vm.info",
    remove_nic: "vm.remove-device",
    remove_disk: "vm.remove-device",
}


def test_a_vm_with_a_tee_gets_no_device_after_its_start(boot) -> None:
    async def use(machine: CloudHypervisorMachine) -> None:
        machine._spec = dataclasses.replace(machine._spec, tee=Tee.SNP)
        with pytest.raises(SpecRefused, match="a VM with snp gets no device after its start"):
            await add_nic(machine, descriptor)
        await machine.stop()

    with tap() as descriptor:
        assert boot(use).orderly


@pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS)
def test_it_is_lost_at_a_network_of_the_launch(boot, misbehaviour: str) -> None:
    with tap() as descriptor, pytest.raises(LaunchFailed) as caught:
        boot(switches=f"{misbehaviour}=vm.add-net", nics=(nic(descriptor),), launch_seconds=4)
    told = MISBEHAVIOURS[misbehaviour].format(call="vm.add-net", seconds=4)
    assert str(caught.value).startswith(f"cannot boot the VM: cloud-hypervisor {told}")


def test_it_refuses_a_network_of_the_launch(boot) -> None:
    with tap() as descriptor, pytest.raises(LaunchFailed, match=r"refused vm\.add-net: "):
        boot(switches="refuse=vm.add-net", nics=(nic(descriptor),))


@pytest.mark.parametrize("change", CALLS)
def test_it_refuses_while_the_vm_runs(boot, tmp_path: Path, change: Change) -> None:
    """The VM goes on as it was."""
    (tmp_path / DISK.serial).touch()
    nodes = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    async def use(machine: CloudHypervisorMachine) -> None:
        with pytest.raises(ChangeFailed, match=f"^cloud-hypervisor refused {CALLS[change]}: "):
            await change(machine, descriptor)
        await machine.api.ping()
        await machine.stop()

    try:
        with tap() as descriptor:
            assert boot(use, f"refuse={CALLS[change]}", disks=(), nodes=nodes).orderly
    finally:
        os.close(nodes)


@pytest.mark.parametrize("misbehaviour", MISBEHAVIOURS)
@pytest.mark.parametrize("change", CALLS)
def test_it_is_lost_while_the_vm_runs(
    boot,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    misbehaviour: str,
    change: Change,
) -> None:
    call = CALLS[change]
    monkeypatch.setattr(machines, "ANSWER_SECONDS", PATIENCE)
    told = MISBEHAVIOURS[misbehaviour].format(call=call, seconds=PATIENCE)
    (tmp_path / DISK.serial).touch()
    nodes = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)

    async def use(machine: CloudHypervisorMachine) -> None:
        began = time.monotonic()
        with pytest.raises(ChangeFailed, match=f"^cloud-hypervisor {told}"):
            await change(machine, descriptor)
        end = await machine.wait()
        assert time.monotonic() - began < PATIENCE + BUSY
        assert not end.orderly

    try:
        with tap() as descriptor:
            reason = boot(use, f"{misbehaviour}={call}", disks=(), nodes=nodes).reason
    finally:
        os.close(nodes)
    # What died has a status; of what else it did, the VM is ended for it.
    assert reason.startswith(f"cloud-hypervisor {told}") or misbehaviour == "die"
