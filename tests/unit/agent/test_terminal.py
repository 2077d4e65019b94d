"""A terminal between two streams, with a real pseudo-terminal and no channel."""

import fcntl
import os
import struct
import termios
import time
import tty
from collections.abc import Callable, Iterator

import pytest
from sealrun_agent.loop import Loop
from sealrun_agent.streams import Streams
from sealrun_agent.terminal import Terminal
from sealrun_protocol import limits, messages
from sealrun_protocol.messages import StreamCredit, StreamData, StreamEnd, StreamReset

STDIN, STDOUT = 2, 4


class World:
    """A terminal on a loop that the test turns by hand. slave: what the program has open."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.posted: list[messages.GuestMessage] = []
        self.streams = Streams(self.loop, self.posted.append)
        self.ended = 0
        self.terminal = Terminal(
            self.streams, self.loop, self.posted.append, stdin=STDIN, stdout=STDOUT, ended=self._end
        )
        self.master, self.slave = os.openpty()
        tty.setraw(self.slave)
        self.path = os.ttyname(self.slave)

    def _end(self) -> None:
        self.ended += 1

    def attach(self) -> None:
        """As when crun has sent the master, and the request is answered."""
        self.terminal.attach(self.master)
        self.terminal.output.resume()

    def turn(self, until: Callable[[], bool], seconds: float = 5.0) -> None:
        """Serve until something holds."""
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline
            self.loop._serve(0.01)

    def settle(self, seconds: float = 0.3) -> int:
        """Serve for a while; how many rounds had something to do."""
        rounds, deadline = 0, time.monotonic() + seconds
        while time.monotonic() < deadline:
            before = time.monotonic()
            self.loop._serve(0.05)
            rounds += time.monotonic() - before < 0.04
        return rounds

    @property
    def shown(self) -> bytes:
        """What was sent to the host."""
        return b"".join(m.data for m in self.posted if isinstance(m, StreamData))


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    for stream in (STDIN, STDOUT):
        world.streams.forget(stream)
    for end in (world.loop._wake_read, world.loop._wake_write, world.loop._epoll):
        end.close()


def test_both_directions(world: World) -> None:
    world.attach()
    os.write(world.slave, b"out")
    world.turn(lambda: world.shown == b"out")
    world.streams.handle(StreamData(stream=STDIN, data=b"in"))
    assert os.read(world.slave, 10) == b"in"


def test_what_the_host_sends_before_waits_for_the_terminal(world: World) -> None:
    world.streams.handle(StreamData(stream=STDIN, data=b"early"))
    world.streams.handle(StreamEnd(stream=STDIN))
    world.terminal.resize(7, 8)
    assert STDIN in world.streams
    world.attach()
    assert os.read(world.slave, 10) == b"early"
    assert STDIN not in world.streams
    size = fcntl.ioctl(world.slave, termios.TIOCGWINSZ, bytes(8))
    assert struct.unpack("4H", size) == (7, 8, 0, 0)


def test_nobody_having_it_open_is_no_end_and_costs_little(world: World) -> None:
    world.attach()
    os.close(world.slave)
    assert world.settle() < 12
    assert world.ended == 0
    slave = os.open(world.path, os.O_RDWR | os.O_NOCTTY)
    os.write(slave, b"again")
    world.turn(lambda: world.shown == b"again")
    os.close(slave)
    world.terminal.output.finish()
    world.turn(lambda: world.ended == 1)
    assert world.posted[-2:] == [StreamEnd(stream=STDOUT), StreamReset(stream=STDIN)]
    assert len(world.streams) == 0


def test_the_end_while_nobody_has_it_open_is_seen_at_once(world: World) -> None:
    world.attach()
    os.write(world.slave, b"last words")
    os.close(world.slave)
    world.terminal.output.finish()
    begin = time.monotonic()
    world.turn(lambda: world.ended == 1)
    assert time.monotonic() - begin < 1.5  # less than silence is waited for
    assert world.shown == b"last words"


def test_somebody_in_the_background_is_not_waited_for(world: World) -> None:
    world.attach()
    world.terminal.output.finish()
    world.turn(lambda: world.ended == 1)
    with pytest.raises(OSError, match="Input/output error"):
        os.write(world.slave, b"too late")


def test_the_end_of_input_changes_nothing(world: World) -> None:
    world.attach()
    world.streams.handle(StreamEnd(stream=STDIN))
    world.settle(0.1)
    os.write(world.slave, b"still here")
    world.turn(lambda: world.shown == b"still here")
    assert world.ended == 0


def test_a_reset_by_the_host_hangs_it_up(world: World) -> None:
    world.attach()
    world.streams.handle(StreamReset(stream=STDOUT))
    assert world.ended == 1
    assert os.read(world.slave, 10) == b""
    world.terminal.resize(1, 1)  # nothing to resize
    assert world.posted == [StreamReset(stream=STDIN)]


def test_a_reset_before_the_terminal_is_there(world: World) -> None:
    world.streams.handle(StreamReset(stream=STDOUT))
    assert world.ended == 1
    world.attach()
    assert os.read(world.slave, 10) == b""


def test_a_program_that_does_not_read_holds_the_host(world: World) -> None:
    world.attach()
    chunk = bytes(limits.STREAM_CHUNK_BYTES)
    for _ in range(limits.STREAM_WINDOW_BYTES // len(chunk)):
        world.streams.handle(StreamData(stream=STDIN, data=chunk))
    assert world.settle() < 3
    received = len(os.read(world.slave, 65536))
    while received < limits.STREAM_WINDOW_BYTES:
        world.loop._serve(0.05)
        received += len(os.read(world.slave, 65536))
    assert received == limits.STREAM_WINDOW_BYTES
    assert any(isinstance(message, StreamCredit) for message in world.posted)


def test_a_full_terminal_that_nobody_has_open_does_not_spin(world: World) -> None:
    world.attach()
    for _ in range(limits.STREAM_WINDOW_BYTES // limits.STREAM_CHUNK_BYTES):
        world.streams.handle(StreamData(stream=STDIN, data=bytes(limits.STREAM_CHUNK_BYTES)))
    os.close(world.slave)
    assert world.settle() < 20
