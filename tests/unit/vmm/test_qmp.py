"""QEMU's machine protocol, with the test as QEMU: what is asked, and what odd answers come to."""

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sealrun_vmm.errors import ChangeFailed
from sealrun_vmm.qemu import qmp
from sealrun_vmm.qemu.qmp import Qmp

GREETING = b'{"QMP": {"version": {}, "capabilities": []}}\r\n'
Answerer = Callable[[dict[str, Any]], bytes]


class Qemu:
    """The other end: answers each line by `answer`, which may be more or less than one answer."""

    def __init__(self, answer: Answerer) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        self.end, self._answer = theirs, answer
        self.asked: list[dict[str, Any]] = []
        self.descriptors: list[int] = []
        self.connection = Qmp(ours)

    async def serve(self) -> None:
        self.end.send(GREETING)
        loop = asyncio.get_running_loop()
        buffer = b""
        while True:
            ready = asyncio.Event()
            loop.add_reader(self.end, ready.set)
            await ready.wait()
            loop.remove_reader(self.end)
            data, descriptors, _, _ = socket.recv_fds(self.end, 65536, 4)
            self.descriptors += descriptors
            if not data:
                return
            buffer += data
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                request = json.loads(line)
                self.asked.append(request)
                self.end.send(self._answer(request))


def ok(request: dict[str, Any]) -> bytes:
    return json.dumps({"return": {}, "id": request["id"]}).encode() + b"\r\n"


@asynccontextmanager
async def qemu(answer: Answerer = ok) -> AsyncIterator[Qemu]:
    one = Qemu(answer)
    serving = asyncio.ensure_future(one.serve())
    try:
        yield one
    finally:
        serving.cancel()
        one.connection.close()
        one.end.close()


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), 20))  # type: ignore[arg-type]


def test_capabilities_are_negotiated_once_and_descriptors_go_along() -> None:
    async def work() -> None:
        async with qemu() as vmm:
            reader, writer = os.pipe()
            await vmm.connection.execute("getfd", {"fdname": "nic1"}, reader)
            await vmm.connection.execute("netdev_add", {"id": "nic1"})
            asked = [(one["execute"], one["arguments"]) for one in vmm.asked]
            assert asked == [
                ("qmp_capabilities", {}),
                ("getfd", {"fdname": "nic1"}),
                ("netdev_add", {"id": "nic1"}),
            ]
            (theirs,) = vmm.descriptors
            assert os.fstat(theirs).st_ino == os.fstat(reader).st_ino
            for descriptor in (reader, writer, theirs):
                os.close(descriptor)

    run(work)


def test_a_refusal_is_told_in_qemus_words() -> None:
    def refuse(request: dict[str, Any]) -> bytes:
        if request["execute"] != "device_add":
            return ok(request)
        words = {"class": "GenericError", "desc": "Bus 'pcie.0' does not\n support hotplugging"}
        return json.dumps({"error": words, "id": request["id"]}).encode() + b"\r\n"

    async def work() -> None:
        async with qemu(refuse) as vmm:
            with pytest.raises(ChangeFailed) as failed:
                await vmm.connection.execute("device_add", {})
            assert str(failed.value) == (
                "qemu refused device_add: Bus 'pcie.0' does not support hotplugging"
            )
            await vmm.connection.execute("netdev_del", {})

    run(work)


def test_events_and_other_noise_are_passed_over() -> None:
    def noisy(request: dict[str, Any]) -> bytes:
        event = b'{"event": "RTC_CHANGE", "data": {"offset": 0}}\r\n'
        stale = json.dumps({"return": {}, "id": request["id"] - 1}).encode() + b"\r\n"
        return event * 300 + b"{}\r\n" + stale + ok(request) + event

    async def work() -> None:
        async with qemu(noisy) as vmm:
            for _ in range(3):
                await vmm.connection.execute("query-status", {})

    run(work)


def test_a_device_is_gone_when_the_guest_has_let_go() -> None:
    async def work() -> None:
        async with qemu() as vmm:
            going = asyncio.ensure_future(vmm.connection.unplug("nic1"))
            await asyncio.sleep(0.1)
            vmm.end.send(b'{"event": "DEVICE_DELETED", "data": {"path": "/machine/x"}}\r\n')
            vmm.end.send(b'{"event": "DEVICE_DELETED", "data": {"device": "nic2"}}\r\n')
            await asyncio.sleep(0.1)
            assert not going.done()
            vmm.end.send(b'{"event": "DEVICE_DELETED", "data": {"device": "nic1"}}\r\n')
            await going

    run(work)


@pytest.mark.parametrize("ending", ["silence", "close", "flood"])
def test_an_end_without_an_answer(ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qmp, "ANSWER_SECONDS", 0.3)

    def answer(request: dict[str, Any]) -> bytes:
        if request["execute"] == "qmp_capabilities":
            return ok(request)
        return b"x" * 200_000 if ending == "flood" else b""

    async def work() -> None:
        async with qemu(answer) as vmm:
            asking = asyncio.ensure_future(vmm.connection.execute("netdev_add", {}))
            await asyncio.sleep(0.1)
            if ending == "close":
                vmm.end.shutdown(socket.SHUT_RDWR)
            elif ending == "flood":
                loop = asyncio.get_running_loop()
                with pytest.raises((BrokenPipeError, TimeoutError)):
                    await asyncio.wait_for(loop.sock_sendall(vmm.end, b"x" * (4 << 20)), 2)
            with pytest.raises(ChangeFailed):
                await asking
            with pytest.raises(ChangeFailed):
                await vmm.connection.execute("netdev_add", {})

    run(work)


def test_closing_ends_what_waits() -> None:
    async def work() -> None:
        async with qemu(lambda request: ok(request) if request["id"] == 1 else b"") as vmm:
            asking = asyncio.ensure_future(vmm.connection.execute("netdev_add", {}))
            await asyncio.sleep(0.1)
            vmm.connection.close()
            with pytest.raises(ChangeFailed, match="it is ending"):
                await asking
            vmm.connection.close()

    run(work)
