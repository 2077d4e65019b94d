"""How large a VM can become, in steps, and the wait for a guest that takes its time."""

import asyncio

import pytest
from sealrun_vmm import growth
from sealrun_vmm.errors import ChangeFailed, SpecRefused
from sealrun_vmm.growth import Size
from sealrun_vmm.spec import Accelerator, VmSpec


def spec(max_cpus: int = 0, max_memory_mib: int = 0) -> VmSpec:
    return VmSpec(
        name="x",
        accelerator=Accelerator.KVM,
        cpus=2,
        memory_mib=500,
        max_cpus=max_cpus,
        max_memory_mib=max_memory_mib,
        kernel="",
        initrd="",
        cmdline="",
    )


@pytest.mark.parametrize(
    ("most", "largest"),
    [
        ((0, 0), (2, 500)),
        ((1, 499), (2, 500)),
        ((4, 627), (4, 500)),
        ((4, 628), (4, 628)),
        ((2, 1000), (2, 884)),
    ],
)
def test_room_is_whole_steps(most: tuple[int, int], largest: tuple[int, int]) -> None:
    assert growth.largest(spec(*most)) == largest


@pytest.mark.parametrize(
    ("memory", "added"), [(0, 0), (500, 0), (501, 128), (628, 128), (629, 256), (884, 384)]
)
def test_a_vm_becomes_a_little_larger_than_it_must(memory: int, added: int) -> None:
    assert growth.added_mib(spec(4, 1000), Size(4, memory)) == added


@pytest.mark.parametrize("size", [Size(5, 500), Size(1, 885), Size(2, 1 << 30)])
def test_more_than_it_was_launched_for_is_refused(size: Size) -> None:
    with pytest.raises(SpecRefused, match="it was launched for 4 and 884 MiB at most") as caught:
        growth.added_mib(spec(4, 1000), size)
    assert "vm.max_memory" in caught.value.remedy


def test_the_guest_takes_it_bit_by_bit() -> None:
    answers = iter((0, 4, 4, 128))

    async def taken() -> int:
        return next(answers)

    asyncio.run(growth.wait_for(taken, 128))
    assert not list(answers)


def test_the_guest_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    async def taken() -> int:
        return 64

    monkeypatch.setattr(growth, "PATIENCE_SECONDS", 0.2)
    with pytest.raises(ChangeFailed, match="its guest took 64 MiB of the 128 that were added"):
        asyncio.run(growth.wait_for(taken, 128))
