"""A resize through QEMU's monitor: what is said to it, and what is made of its answers, its silence and
its nonsense. The other end is a monitor that the test plays; the real one is in tests/system."""

import asyncio
import dataclasses
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sealrun_vmm import growth, process
from sealrun_vmm.driver import MachineExit
from sealrun_vmm.errors import ChangeFailed, SpecRefused
from sealrun_vmm.growth import Size
from sealrun_vmm.qemu import qmp
from sealrun_vmm.qemu.machine import QemuMachine
from sealrun_vmm.qemu.qmp import Qmp
from sealrun_vmm.spec import Accelerator, VmSpec

MIB = 1 << 20
GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}
SPEC = VmSpec(
    name="x",
    accelerator=Accelerator.TCG,
    cpus=1,
    memory_mib=512,
    max_cpus=3,
    max_memory_mib=1024,
    kernel="",
    initrd="",
    cmdline="",
)


def slot(core: int, *, there: bool) -> dict[str, Any]:
    place = {"socket-id": 0, "core-id": core, "thread-id": 0}
    path = {"qom-path": "/machine/unattached/device[0]"} if there else {}
    return {"type": "max-x86_64-cpu", "vcpus-count": 1, "props": place, **path}


class Monitor:
    """Plays QEMU: a VM of one CPU whose guest takes memory at once."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.cpus, self.memory, self.takes = 1, 0, 1 << 20
        self.answers: dict[str, bytes | None] = {}
        """What to say to a command instead; None: nothing. ID stands for its id."""
        self.failure, self.alive = "", False
        self.patience = 0.05  # for the VM's end where it is expected to live

    async def serve(self, end: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=end)
        try:
            writer.write(json.dumps(GREETING).encode() + b"\n")
            while line := await reader.readline():
                request = json.loads(line)
                self.asked.append(request)
                given = self.answers.get(request["execute"], b"")
                if given is not None:
                    number = str(request["id"]).encode()
                    writer.write(given.replace(b"ID", number) or self.answer(**request))
        finally:
            writer.transport.abort()

    def answer(self, execute: str, arguments: dict[str, Any], id: int) -> bytes:
        event = b'{"event": "ACPI_DEVICE_OST", "data": {}, "timestamp": {}}\n'
        result: Any = {}
        match execute:
            case "query-hotpluggable-cpus":
                result = [slot(core, there=core < self.cpus) for core in (2, 1, 0)]
            case "device_add":
                self.cpus += 1
            case "qom-set":
                self.memory = arguments["value"]
            case "qom-get":
                result = min(self.memory, self.takes * MIB)
        return event + json.dumps({"return": result, "id": id}).encode() + b"\n"

    def said(self, command: str) -> list[dict[str, Any]]:
        return [one["arguments"] for one in self.asked if one["execute"] == command]


@pytest.fixture
def resize(tmp_path: Path):
    """resize(monitor, *sizes): each in turn, of one VM, and how that ended."""

    def run(monitor: Monitor, *sizes: Size, spec: VmSpec = SPEC) -> MachineExit:
        async def main() -> MachineExit:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            serving = asyncio.ensure_future(monitor.serve(theirs))
            running = process.spawn(["sleep", "60"], str(tmp_path), output="o", errors="e")
            vm = QemuMachine(running, Qmp(ours), spec, str(tmp_path))
            try:
                for size in sizes:
                    await vm.resize(size)
            except (ChangeFailed, SpecRefused) as error:
                monitor.failure = str(error)
            end = asyncio.ensure_future(vm.wait())
            ended_by_itself, _ = await asyncio.wait((end,), timeout=monitor.patience)
            monitor.alive = not ended_by_itself and Path(f"/proc/{vm.pid}").exists()
            await vm.stop()
            ended = await end
            serving.cancel()
            await asyncio.wait((serving,))
            theirs.close()
            return ended

        return asyncio.run(main())

    return run


def test_cpus_and_memory_are_added_in_steps(resize) -> None:
    monitor = Monitor()
    resize(monitor, Size(3, 600), Size(3, 600), Size(3, 1000), Size(3, 512))
    places = [(one["id"], one["core-id"]) for one in monitor.said("device_add")]
    assert places == [("cpu1", 1), ("cpu2", 2)]
    assert monitor.said("device_add")[0]["driver"] == "max-x86_64-cpu"
    wanted = [one["value"] // MIB for one in monitor.said("qom-set")]
    assert wanted == [128, 128, 512, 0]
    assert {one["path"] for one in monitor.said("qom-set")} == {"/machine/peripheral/growth"}


def test_a_vm_without_room_for_memory_has_no_device_for_it(resize) -> None:
    monitor = Monitor()
    resize(monitor, Size(2, 512), spec=dataclasses.replace(SPEC, max_memory_mib=512))
    assert len(monitor.said("device_add")) == 1
    assert not monitor.said("qom-set") + monitor.said("qom-get")


def test_more_than_it_was_launched_for(resize) -> None:
    monitor = Monitor()
    assert resize(monitor, Size(4, 512)).orderly
    assert "it was launched for 3 and 1024 MiB" in monitor.failure
    assert not monitor.asked


def test_it_refuses(resize) -> None:
    monitor = Monitor()
    monitor.answers["device_add"] = b'{"error": {"desc": "no\\nroom"}, "id": ID}\n'
    ended = resize(monitor, Size(2, 1024))
    assert monitor.failure == "qemu refused device_add: no room"
    assert (monitor.alive, ended.reason) == (True, "the VM was stopped")


def test_the_guest_takes_too_little(resize, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "PATIENCE_SECONDS", 0.2)
    monitor = Monitor()
    monitor.takes = 256
    resize(monitor, Size(2, 1024))
    assert "took 256 MiB of the 512" in monitor.failure
    assert monitor.alive


def lost(resize: Callable[..., MachineExit], monitor: Monitor) -> str:
    """Why it ended, which is what the caller was told too."""
    monitor.patience = 20.0
    ended = resize(monitor, Size(2, 1024))
    assert not monitor.alive
    assert not ended.orderly
    assert ended.reason == monitor.failure
    return ended.reason


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        ("query-hotpluggable-cpus", b"\x00 nonsense\n"),
        ("query-hotpluggable-cpus", b'{"return": [{"type": 5}], "id": ID}\n'),
        ("query-hotpluggable-cpus", b"[" * 100_000 + b"\n"),
        ("device_add", b'{"error": "text", "id": ID}\n'),
        ("device_add", b"[]\n"),
        ("qom-get", b'{"return": "much", "id": ID}\n'),
        ("qmp_capabilities", b"x" * (qmp.LINE_BYTES + (1 << 17))),
    ],
)
def test_it_answers_nonsense(resize, command: str, answer: bytes) -> None:
    monitor = Monitor()
    monitor.answers[command] = answer
    assert "qemu" in lost(resize, monitor)


@pytest.mark.parametrize("command", ["qmp_capabilities", "query-hotpluggable-cpus", "qom-get"])
def test_it_hangs(resize, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "ANSWER_SECONDS", 0.5)
    monitor = Monitor()
    monitor.answers[command] = None
    assert lost(resize, monitor) == f"qemu did not answer {command} in 0.5 s"


def test_it_goes_away(resize) -> None:
    class Leaving(Monitor):
        async def serve(self, end: socket.socket) -> None:
            end.shutdown(socket.SHUT_RDWR)

    reason = lost(resize, Leaving())
    assert "connection ended" in reason or "cannot ask qemu" in reason
