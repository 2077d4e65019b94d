"""Streams between descriptors and channel: credit, ends, errors, without a shim or ZeroMQ."""

import asyncio
import os
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealrun_protocol import limits, messages
from sealrun_protocol.messages import HostMessage, ProtocolViolation
from sealrun_runtime.shim.streams import Streams


class Tape:
    """A source that gives what it was given, and a sink that takes what it is allowed to."""

    pollable = False

    def __init__(self, content: bytes = b"", take: int = 1 << 30) -> None:
        self.content, self.take = content, take
        self.taken = bytearray()
        self.closed = False
        self.failing = False

    def fileno(self) -> int:
        raise AssertionError("it cannot be watched")

    def read(self, count: int) -> bytes:
        if self.failing:
            raise ConnectionResetError
        part, self.content = self.content[:count], self.content[count:]
        return part

    def write(self, data: memoryview) -> int:
        if self.failing:
            raise BrokenPipeError
        count = min(len(data), self.take)
        if not count:
            raise BlockingIOError
        self.taken += data[:count]
        return count

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Line:
    """A wire that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[HostMessage] = []
        self.congested = False
        self.waiting: list[Callable[[], None]] = []

    def when_drained(self, call: Callable[[], None]) -> None:
        self.waiting.append(call)

    def send(self, message: HostMessage) -> None:
        self.sent.append(message)

    def drain(self) -> None:
        self.congested = False
        calls, self.waiting = self.waiting, []
        for call in calls:
            call()

    def data(self) -> bytes:
        return b"".join(one.data for one in self.sent if isinstance(one, messages.StreamData))


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


async def settle() -> None:
    for _ in range(100):
        await asyncio.sleep(0)


def test_a_source_goes_out_with_an_end() -> None:
    async def scenario() -> None:
        line, tape = Line(), Tape(b"x" * 100_000)
        streams = Streams(line)
        pair = streams.open(2, tape, None)
        assert pair.outgoing is not None
        await settle()
        assert line.sent == []
        pair.outgoing.begin()
        await settle()
        assert line.data() == b"x" * 100_000
        assert line.sent[-1] == messages.StreamEnd(stream=2)
        assert tape.closed
        assert 2 not in streams

    run(scenario)


def test_a_source_stops_at_its_window_and_goes_on_with_credit() -> None:
    async def scenario() -> None:
        line, tape = Line(), Tape(bytes(3 << 20))
        streams = Streams(line)
        pair = streams.open(2, tape, None)
        assert pair.outgoing is not None
        pair.outgoing.begin()
        await settle()
        assert len(line.data()) == limits.STREAM_WINDOW_BYTES
        streams.handle(messages.StreamCredit(stream=2, bytes=1000))
        await settle()
        assert len(line.data()) == limits.STREAM_WINDOW_BYTES + 1000

    run(scenario)


def test_a_source_waits_for_a_congested_channel() -> None:
    async def scenario() -> None:
        line, tape = Line(), Tape(b"data")
        line.congested = True
        pair = Streams(line).open(2, tape, None)
        assert pair.outgoing is not None
        pair.outgoing.begin()
        await settle()
        assert line.sent == []
        line.drain()
        await settle()
        assert line.data() == b"data"

    run(scenario)


def test_a_source_that_breaks_resets_the_stream() -> None:
    async def scenario() -> None:
        line, source, sink = Line(), Tape(), Tape()
        source.failing = True
        streams = Streams(line)
        pair = streams.open(1, source, sink)
        assert pair.outgoing is not None
        pair.outgoing.begin()
        await settle()
        assert line.sent == [messages.StreamReset(stream=1)]
        assert source.closed
        assert sink.closed
        assert len(streams) == 0

    run(scenario)


def test_a_sink_that_breaks_resets_the_stream() -> None:
    async def scenario() -> None:
        line, sink = Line(), Tape()
        sink.failing = True
        streams = Streams(line)
        streams.open(4, None, sink)
        streams.handle(messages.StreamData(stream=4, data=b"x"))
        assert line.sent == [messages.StreamReset(stream=4)]
        streams.handle(messages.StreamData(stream=4, data=b"crossed"))
        assert sink.closed

    run(scenario)


def test_a_sink_closes_after_its_last_byte() -> None:
    async def scenario() -> None:
        line, sink = Line(), Tape(take=0)
        streams = Streams(line)
        streams.open(4, None, sink)
        streams.handle(messages.StreamData(stream=4, data=b"last"))
        streams.handle(messages.StreamEnd(stream=4))
        await settle()
        assert not sink.closed
        sink.take = 1
        await settle()
        assert bytes(sink.taken) == b"last"
        assert sink.closed

    run(scenario)


def test_both_directions_have_to_end() -> None:
    async def scenario() -> None:
        line = Line()
        streams = Streams(line)
        pair = streams.open(1, Tape(b"x"), Tape())
        streams.handle(messages.StreamEnd(stream=1))
        assert 1 in streams
        assert pair.outgoing is not None
        pair.outgoing.begin()
        await settle()
        assert 1 not in streams

    run(scenario)


@pytest.mark.parametrize(
    "message",
    [
        messages.StreamData(stream=2, data=b"x"),
        messages.StreamEnd(stream=2),
        messages.StreamCredit(stream=2, bytes=1),
        messages.StreamCredit(stream=4, bytes=1),
        messages.StreamData(stream=4, data=b""),
        messages.StreamData(stream=4, data=bytes(limits.STREAM_CHUNK_BYTES + 1)),
    ],
    ids=str,
)
def test_violations(message: messages.Stream) -> None:
    async def scenario() -> None:
        streams = Streams(Line())
        streams.open(2, Tape(), None)
        streams.open(4, None, Tape())
        with pytest.raises(ProtocolViolation):
            streams.handle(message)

    run(scenario)


def test_what_is_said_of_a_closed_stream_is_dropped() -> None:
    async def scenario() -> None:
        line = Line()
        streams = Streams(line)
        for message in (
            messages.StreamData(stream=4, data=b"x"),
            messages.StreamEnd(stream=4),
            messages.StreamCredit(stream=4, bytes=1),
            messages.StreamReset(stream=4),
        ):
            streams.handle(message)
        assert line.sent == []

    run(scenario)


def test_a_write_that_must_wait_is_taken_up_by_the_loop() -> None:
    class Pipe(Tape):
        pollable = True

        def __init__(self, fd: int) -> None:
            super().__init__()
            self.fd = fd

        def fileno(self) -> int:
            return self.fd

        def write(self, data: memoryview) -> int:
            return os.write(self.fd, data)

        def close(self) -> None:
            os.close(self.fd)

    async def scenario() -> None:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        streams = Streams(Line())
        streams.open(4, None, Pipe(writer))
        for _ in range(16):
            streams.handle(messages.StreamData(stream=4, data=bytes(64 << 10)))
        streams.handle(messages.StreamEnd(stream=4))
        got = 0
        os.set_blocking(reader, False)
        while True:
            await asyncio.sleep(0)
            try:
                part = os.read(reader, 1 << 20)
            except BlockingIOError:
                continue
            if not part:
                break
            got += len(part)
        assert got == 16 * (64 << 10)
        os.close(reader)

    run(scenario)


@settings(deadline=None)
@given(
    st.lists(st.binary(min_size=1, max_size=limits.STREAM_CHUNK_BYTES), max_size=20),
    st.integers(min_value=1, max_value=100_000),
)
def test_whatever_the_chunks_the_bytes_arrive(chunks: list[bytes], take: int) -> None:
    async def scenario() -> None:
        sink, line = Tape(take=take), Line()
        streams = Streams(line)
        streams.open(4, None, sink)
        for chunk in chunks:
            streams.handle(messages.StreamData(stream=4, data=chunk))
        streams.handle(messages.StreamEnd(stream=4))
        assert bytes(sink.taken) == b"".join(chunks)
        returned = sum(one.bytes for one in line.sent if isinstance(one, messages.StreamCredit))
        assert returned <= len(sink.taken)
        assert len(sink.taken) - returned < limits.STREAM_WINDOW_BYTES // 4

    run(scenario)
