"""HTTP and the event stream: whole, in pieces, and from a peer that answers nonsense."""

import asyncio
import contextlib
import json
import os
import re
import socket
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_vmm.cloud_hypervisor import events
from sealrun_vmm.cloud_hypervisor.api import Api, ApiError
from sealrun_vmm.cloud_hypervisor.events import Decoder, Event, Monitor
from sealrun_vmm.cloud_hypervisor.program import Build

Result = TypeVar("Result")
OK = b"HTTP/1.1 204 \r\nServer: x\r\nConnection: keep-alive\r\n\r\n"
PONG = json.dumps(
    {"build_version": "v54.0.0", "version": "54.0.0", "pid": 7, "features": ["kvm"], "new": 1}
).encode()


def with_body(body: bytes, status: int = 200) -> bytes:
    head = f"HTTP/1.1 {status} \r\ncontent-length:{len(body)}\r\nContent-Type: application/json"
    return head.encode() + b"\r\n\r\n" + body


def talk(
    answers: list[bytes], ask: Callable[[Api], Awaitable[Result]], *, then_close: bool = True
) -> tuple[Result, bytes]:
    """What `ask` returns where the peer has said `answers`, and what it was sent."""

    async def main() -> tuple[Result, bytes]:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            for answer in answers:
                theirs.sendall(answer)
            if then_close:
                theirs.shutdown(socket.SHUT_WR)
            result = await ask(Api(ours))
            theirs.setblocking(False)
            try:
                return result, theirs.recv(1 << 20)
            except BlockingIOError:
                return result, b""

    return asyncio.run(main())


def test_ping() -> None:
    pong, sent = talk([with_body(PONG)], Api.ping)
    assert pong == Build("54.0.0", frozenset({"kvm"}))
    assert sent == b"GET /api/v1/vmm.ping HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


def test_one_connection_for_all_calls() -> None:
    async def ask(api: Api) -> None:
        await api.create({"payload": {}})
        await api.boot()
        await api.resize(cpus=2)
        await api.resize(memory=5)
        await api.shut_down()

    _, sent = talk([OK] * 5, ask)
    calls = re.findall(rb"PUT /api/v1/(\S+) HTTP", sent)
    assert calls == [b"vm.create", b"vm.boot", b"vm.resize", b"vm.resize", b"vmm.shutdown"]
    assert b'Content-Length: 14\r\n\r\n{"payload":{}}PUT' in sent
    assert b'\r\n\r\n{"desired_vcpus":2}PUT' in sent
    assert b'\r\n\r\n{"desired_ram":5}PUT' in sent


def test_the_guests_memory() -> None:
    memory, sent = talk([with_body(b'{"memory_actual_size":7,"state":"Running"}')], Api.memory)
    assert (memory, sent[:20]) == (7, b"GET /api/v1/vm.info ")
    for nonsense in (b"{}", b'{"memory_actual_size":"7"}', b"["):
        with pytest.raises(ApiError, match=r"gave an answer to vm\.info that cannot be read"):
            talk([with_body(nonsense)], Api.memory)


def test_an_open_file_goes_with_the_request() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        reader, writer = os.pipe()
        with ours, theirs:
            theirs.sendall(OK)
            await Api(ours).add_net({"id": "nic0"}, writer)
            data, (received,), _, _ = socket.recv_fds(theirs, 4096, 4)
        assert data.endswith(b'\r\n\r\n{"id":"nic0"}')
        os.write(received, b"the same pipe")
        assert os.read(reader, 100) == b"the same pipe"
        for descriptor in (reader, writer, received):
            os.close(descriptor)

    asyncio.run(main())


@given(st.lists(st.integers(1, 200), max_size=20))
def test_an_answer_in_pieces(cuts: list[int]) -> None:
    data = with_body(PONG)

    async def main() -> Build:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            asking = asyncio.ensure_future(Api(ours).ping())
            rest = data
            for cut in cuts:
                theirs.sendall(rest[:cut])
                rest = rest[cut:]
                await asyncio.sleep(0)
            theirs.sendall(rest)
            return await asking

    assert asyncio.run(main()).version == "54.0.0"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b'["Error from API","The VM could not boot","No such file"]', "The VM could not boot: No such file"),
        (b'["alone"]', "alone"),
        (b"[]", "status 500"),
        (b"{}", "status 500"),
        (b'["a","\\u001b[31m\\n red"]', "[31m red"),
        (b"not json", "status 500"),
    ],
)  # fmt: skip
def test_a_refusal_is_told_in_one_line(body: bytes, text: str) -> None:
    with pytest.raises(ApiError) as caught:
        talk([with_body(body, 500)], Api.boot)
    assert str(caught.value) == f"refused vm.boot: {text}"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 20",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 abc \r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 99999999999\r\n\r\n",
        b"HTTP/1.1 200 \r\nContent-Length: 9999999\r\n\r\n",
        b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 \r\nX: " + b"x" * 40_000,
    ],
)
def test_nonsense_is_no_answer(answer: bytes) -> None:
    with pytest.raises(ApiError, match=r"^gave no answer to vmm.ping: "):
        talk([answer], Api.ping)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"version":1}', b"\xff"])
def test_a_ping_that_cannot_be_read(body: bytes) -> None:
    with pytest.raises(ApiError, match=r"^gave an answer to vmm.ping that cannot be read$"):
        talk([with_body(body)], Api.ping)


@given(st.binary(max_size=300))
def test_no_peer_brings_another_exception(noise: bytes) -> None:
    with contextlib.suppress(ApiError):
        talk([b"HTTP/1.1 " + noise], Api.boot)


def test_after_a_call_that_was_given_up_nothing_more_is_asked() -> None:
    async def ask(api: Api) -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await api.boot()
        with pytest.raises(ApiError) as caught:
            await api.shut_down()
        return str(caught.value)

    text, _ = talk([], ask, then_close=False)
    assert text == "gave no answer to vmm.shutdown: an earlier answer is missing"


def test_a_peer_that_is_gone() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.close()
        with ours, pytest.raises(ApiError, match=r"^gave no answer to vm.boot: Broken pipe$"):
            await Api(ours).boot()

    asyncio.run(main())


# --- events --------------------------------------------------------------------------------------

STREAM = b"".join(
    json.dumps(
        {
            "timestamp": {"secs": 0, "nanos": 1},
            "source": source,
            "event": event,
            "properties": {"id": "x"} if source == "virtio-device" else None,
        },
        indent=2,
    ).encode()
    + b"\n\n"
    for source, event in (("vmm", "starting"), ("virtio-device", "activated"), ("vm", "shutdown"))
)
EXPECTED = [
    Event("vmm", "starting"),
    Event("virtio-device", "activated", {"id": "x"}),
    Event("vm", "shutdown"),
]


@given(st.lists(st.integers(0, len(STREAM)), max_size=10))
def test_events_in_pieces(cuts: list[int]) -> None:
    decoder, found = Decoder(), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in pairwise(edges):
        found += decoder.feed(STREAM[start:end])
    assert found == EXPECTED


@pytest.mark.parametrize(
    "noise", [b"x\n\n", b"{}\n\n", b'{"source":1,"event":"x"}\n\n', b"x" * (events.EVENT_BYTES + 1)]
)
def test_what_is_no_event(noise: bytes) -> None:
    with pytest.raises(events.Garbled):
        Decoder().feed(noise)


@given(st.binary(max_size=200))
def test_no_stream_brings_another_exception(noise: bytes) -> None:
    with contextlib.suppress(events.Garbled):
        Decoder().feed(noise)


def test_the_monitor_drains_and_ends() -> None:
    async def main() -> tuple[list[Event], list[str]]:
        seen: list[Event] = []
        garbled: list[str] = []
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        monitor = Monitor(reader, seen.append, lambda: garbled.append("x"))
        os.write(writer, STREAM)
        while len(seen) < 3:
            await asyncio.sleep(0.01)
        os.write(writer, STREAM)
        monitor.drain()
        os.write(writer, b"nonsense\n\n" + STREAM)
        monitor.drain()
        monitor.close()
        os.close(writer)
        return seen, garbled

    seen, garbled = asyncio.run(main())
    assert seen == EXPECTED * 2
    assert garbled == ["x"]
