"""A VM that becomes larger and smaller while it runs, or does not (simulators/cloud_hypervisor.py)."""

import json
from pathlib import Path

import pytest
from sealrun_vmm import growth
from sealrun_vmm.cloud_hypervisor import machine
from sealrun_vmm.cloud_hypervisor.machine import CloudHypervisorMachine
from sealrun_vmm.errors import ChangeFailed, SpecRefused
from sealrun_vmm.growth import Size

ROOM = {"max_cpus": 3, "max_memory_mib": 1024}


def test_it_becomes_larger_and_smaller(boot, tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    async def use(machine: CloudHypervisorMachine) -> None:
        for size in (Size(3, 300), Size(3, 300), Size(3, 1000), Size(3, 256)):
            await machine.resize(size)
        with pytest.raises(SpecRefused):
            await machine.resize(Size(3, 2000))
        await machine.stop()

    assert boot(use, f"trace={trace}", **ROOM).orderly
    calls = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [json.loads(body) for _, name, body, _ in calls if name == "vm.resize"] == [
        {"desired_vcpus": 3},
        {"desired_ram": (256 + 128) << 20},
        {"desired_ram": (256 + 768) << 20},
        {"desired_ram": 256 << 20},
    ]


def test_a_resize_that_is_refused_leaves_it_as_it_is(boot) -> None:
    async def use(machine: CloudHypervisorMachine) -> None:
        with pytest.raises(ChangeFailed) as caught:
            await machine.resize(Size(2, 256))
        assert str(caught.value) == (
            "cloud-hypervisor refused vm.resize: The VM could not boot: it was told to: by a test"
        )
        await machine.stop()

    assert boot(use, "refuse=vm.resize", **ROOM).orderly


def test_a_guest_that_takes_too_little(boot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "PATIENCE_SECONDS", 0.3)

    async def use(machine: CloudHypervisorMachine) -> None:
        with pytest.raises(ChangeFailed, match="its guest took 64 MiB of the 256"):
            await machine.resize(Size(1, 512))
        await machine.stop()

    assert boot(use, "takes=64", **ROOM).orderly


@pytest.mark.parametrize("call", ["vm.resize", "vm.info"])
@pytest.mark.parametrize(
    ("misbehaviour", "text"),
    [
        ("die", "gave no answer to {call}: "),
        ("garble", "gave no answer to {call}: an answer does not begin"),
        ("hang", "did not answer {call} in 1 s"),
    ],
)
def test_a_vmm_that_is_lost_during_a_resize(
    boot, call: str, misbehaviour: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "ANSWER_SECONDS", 1.0)

    async def use(machine: CloudHypervisorMachine) -> None:
        with pytest.raises(ChangeFailed, match=text.format(call=call)):
            await machine.resize(Size(2, 512))

    ended = boot(use, f"{misbehaviour}={call}", **ROOM)
    assert not ended.orderly
    assert text.format(call=call) in ended.reason or "ended with status 1" in ended.reason
