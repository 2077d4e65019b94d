"""Streams between descriptors and messages, with real pipes and no channel."""

import os
import socket
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sealrun_agent.loop import Loop
from sealrun_agent.streams import Streams
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.messages import (
    ProtocolViolation,
    StreamCredit,
    StreamData,
    StreamEnd,
    StreamReset,
)


class World:
    """Streams on a loop that the test turns by hand."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.posted: list[messages.GuestMessage] = []
        self.streams = Streams(self.loop, self.posted.append)
        self.ended = 0

    def turn(self, until: Callable[[], bool], seconds: float = 5.0) -> None:
        """Serve until something holds."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline
            self.loop._serve(0.01)

    def settle(self) -> None:
        """Serve what is ready now."""
        for _ in range(40):
            self.loop._serve(0.0)

    def output(self, stream: int = 4) -> int:
        """Open an output stream; the program's end."""
        read, write = os.pipe()
        os.set_blocking(read, False)

        def ended() -> None:
            self.ended += 1

        self.streams.open_output(stream, read, ended).resume()
        return write

    def input(self, stream: int = 2) -> int:
        """Open an input stream; the program's end."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        self.streams.open_input(stream, write)
        return read

    def socket(self, stream: int = 1) -> socket.socket:
        """Open a socket stream; the worker's end."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.settimeout(5.0)
        self.streams.open_socket(stream, ours)
        return theirs

    def data(self, stream: int) -> bytes:
        """What was sent to the host on a stream."""
        return b"".join(
            m.data for m in self.posted if isinstance(m, StreamData) and m.stream == stream
        )

    def close(self) -> None:
        """Let go of the loop's own descriptors."""
        for stream in (1, 2, 4):
            self.streams.forget(stream)
        for end in (self.loop._wake_read, self.loop._wake_write, self.loop._epoll):
            end.close()


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_output_flows_until_its_end(world: World) -> None:
    program = world.output()
    os.write(program, b"hello")
    world.turn(lambda: world.data(4) == b"hello")
    os.close(program)
    world.turn(lambda: world.ended == 1)
    assert world.posted == [StreamData(stream=4, data=b"hello"), StreamEnd(stream=4)]
    assert 4 not in world.streams


def test_output_stops_at_its_credit_and_goes_on_with_more(world: World) -> None:
    program = world.output()
    os.set_blocking(program, False)
    written = 0

    def fill() -> bool:
        nonlocal written
        try:
            written += os.write(program, bytes(65536))
        except BlockingIOError:
            return False
        return True

    for _ in range(60):
        fill()
        world.settle()
    assert len(world.data(4)) == limits.STREAM_WINDOW_BYTES
    world.streams.handle(StreamCredit(stream=4, bytes=1000))
    world.turn(lambda: len(world.data(4)) == limits.STREAM_WINDOW_BYTES + 1000)
    world.settle()
    assert len(world.data(4)) == limits.STREAM_WINDOW_BYTES + 1000
    assert all(len(m.data) <= limits.STREAM_CHUNK_BYTES for m in world.posted)  # type: ignore[union-attr]


def test_output_that_nobody_wants_breaks_the_writer_s_pipe(world: World) -> None:
    program = world.output()
    world.streams.handle(StreamReset(stream=4))
    with pytest.raises(BrokenPipeError):
        os.write(program, b"x")
    assert world.posted == []
    assert world.ended == 1
    world.streams.handle(StreamReset(stream=4))


def test_a_program_that_is_gone_does_not_hold_its_output_open(world: World) -> None:
    read, write = os.pipe()
    os.set_blocking(read, False)
    outgoing = world.streams.open_output(4, read, lambda: None)
    outgoing.resume()
    os.write(write, b"last")  # and somebody keeps the pipe open
    outgoing.finish()
    begin = time.monotonic()
    world.turn(lambda: StreamEnd(stream=4) in world.posted, 10.0)
    assert world.data(4) == b"last"
    assert time.monotonic() - begin >= 1.5
    os.close(write)


def test_input_flows_and_returns_credit(world: World) -> None:
    program = world.input()
    total = b""
    chunk = os.urandom(65536)
    for _ in range(40):
        world.streams.handle(StreamData(stream=2, data=chunk))
        total += os.read(program, 65536)
        world.settle()
    credit = sum(m.bytes for m in world.posted if isinstance(m, StreamCredit))
    assert total == chunk * 40
    assert len(total) - limits.STREAM_WINDOW_BYTES // 4 <= credit <= len(total)
    world.streams.handle(StreamEnd(stream=2))
    assert os.read(program, 1) == b""
    assert 2 not in world.streams
    os.close(program)


def test_input_that_nobody_reads_is_held_and_not_credited(world: World) -> None:
    program = world.input()
    for _ in range(16):
        world.streams.handle(StreamData(stream=2, data=bytes(65536)))
    world.settle()
    assert world.posted == []
    with pytest.raises(ProtocolViolation, match="beyond the credit"):
        world.streams.handle(StreamData(stream=2, data=b"x"))
    os.close(program)


def test_the_end_of_input_waits_for_what_is_pending(world: World) -> None:
    program = world.input()
    for _ in range(4):
        world.streams.handle(StreamData(stream=2, data=bytes(65536)))
    world.streams.handle(StreamEnd(stream=2))
    received = 0
    while data := os.read(program, 65536):
        received += len(data)
        world.settle()
    assert received == 4 * 65536
    os.close(program)


@pytest.mark.parametrize("pending", [0, 1, 300_000])
def test_input_to_a_reader_that_went_away_is_reset(world: World, pending: int) -> None:
    program = world.input()
    while pending > 0:
        world.streams.handle(StreamData(stream=2, data=bytes(min(pending, 65536))))
        pending -= 65536
    os.close(program)
    world.turn(lambda: 2 not in world.streams)
    assert world.posted[-1] == StreamReset(stream=2)
    world.streams.handle(StreamData(stream=2, data=b"crossed"))
    world.streams.handle(StreamEnd(stream=2))


def test_a_socket_carries_both_ways_and_half_closes(world: World) -> None:
    worker = world.socket()
    worker.sendall(b"question")
    worker.shutdown(socket.SHUT_WR)
    world.turn(lambda: StreamEnd(stream=1) in world.posted)
    assert world.data(1) == b"question"
    assert 1 in world.streams
    world.streams.handle(StreamData(stream=1, data=b"answer"))
    world.streams.handle(StreamEnd(stream=1))
    assert worker.recv(100) == b"answer"
    assert worker.recv(100) == b""
    assert 1 not in world.streams
    assert StreamReset(stream=1) not in world.posted
    worker.close()


def test_a_socket_that_is_closed_with_data_on_the_way_sends_it_first(world: World) -> None:
    worker = world.socket()
    worker.sendall(b"last words")
    worker.close()
    world.turn(lambda: 1 not in world.streams)
    assert world.data(1) == b"last words"
    assert world.posted[-1] == StreamReset(stream=1)
    assert world.posted.count(StreamReset(stream=1)) == 1


def test_the_host_s_end_first_lets_the_worker_go_on_sending(world: World) -> None:
    worker = world.socket()
    world.streams.handle(StreamEnd(stream=1))
    assert worker.recv(10) == b""
    worker.sendall(b"still here")
    worker.close()
    world.turn(lambda: 1 not in world.streams)
    assert world.data(1) == b"still here"


def test_reset_ends_both_ways_and_says_so_once(world: World) -> None:
    worker = world.socket()
    world.streams.reset(1, ErrorCode.INTERNAL, "why")
    world.streams.reset(1)
    assert world.posted == [StreamReset(stream=1, code=ErrorCode.INTERNAL, text="why")]
    assert worker.recv(10) == b""
    worker.close()


def test_forgotten_streams_say_nothing(world: World) -> None:
    program = world.output()
    world.streams.forget(4)
    world.streams.forget(4)
    world.settle()
    assert world.posted == []
    os.close(program)


def test_closed_streams_leave_no_descriptor(world: World) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        programs = [world.output(), world.input()]
        worker = world.socket()
        for stream in (1, 2, 4):
            world.streams.handle(StreamReset(stream=stream))
        for program in programs:
            os.close(program)
        worker.close()
    assert len(os.listdir("/proc/self/fd")) <= before
    assert len(world.streams) == 0


MESSAGES = st.one_of(
    st.builds(StreamData, stream=st.integers(0, 5), data=st.binary(max_size=100)),
    st.builds(StreamData, stream=st.just(2), data=st.just(bytes(65536))),
    st.builds(StreamEnd, stream=st.integers(0, 5)),
    st.builds(StreamReset, stream=st.integers(0, 5)),
    st.builds(StreamCredit, stream=st.integers(0, 5), bytes=st.integers(-5, 2**40)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(MESSAGES, max_size=20))
def test_whatever_the_host_says_is_obeyed_dropped_or_a_violation(
    said: list[messages.Stream],
) -> None:
    world = World()
    programs = [world.output(4), world.input(2)]
    worker = world.socket(1)
    try:
        for message in said:
            world.streams.handle(message)
            world.settle()
    except ProtocolViolation:
        pass
    finally:
        world.close()
        worker.close()
        for program in programs:
            os.close(program)
