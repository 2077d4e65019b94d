"""One program as the host sees it: its stdio, or its terminal, and its stand-in.

The stand-in learns of the program's end last: every byte of output was passed on, or given up, before
the line with the exit code goes out, since engines look right after.

A terminal comes as three descriptors of the (raw) slave of a pseudo-terminal: the first is read, the
second written, the third asked for the size. When its master is closed, both streams are reset, which
hangs the program's own terminal up.
"""

import asyncio
import contextlib
import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from sealrun_runtime.shim import stdio
from sealrun_runtime.shim.errors import HostFailed, Misuse
from sealrun_runtime.shim.link import Hearer, Link
from sealrun_runtime.shim.streams import Incoming, Outgoing, Source, Streams

KILLED: Final = 137  # 128 + SIGKILL: what a program gets whose VM was taken away
_NULL_DEVICE: Final = os.makedev(1, 3)
_STAND_IN_SECONDS: Final = 2.0


class Descriptors(NamedTuple):
    """What came with `create` or `exec`. link: the shim's end of a stream socket pair with the
    stand-in. shares: what the guest is to see of the host (sharing.Plan.names), with `create` only."""

    stdin: int
    stdout: int
    stderr: int
    link: int
    shares: tuple[int, ...] = ()

    @classmethod
    def of(cls, given: Sequence[int]) -> Self:
        """At least four, in the order of the members."""
        stdin, stdout, stderr, link, *shares = given
        return cls(stdin, stdout, stderr, link, tuple(shares))

    def close(self) -> None:
        """Close all of them."""
        for fd in self[:4]:
            os.close(fd)
        self.close_shares()

    def close_shares(self) -> None:
        """Close those of the shares."""
        for fd in self.shares:
            os.close(fd)


class StreamIds(NamedTuple):
    """Stream ids of a program's stdio; 0 where it is /dev/null, which the guest has itself, and for
    the stderr of a terminal."""

    stdin: int
    stdout: int
    stderr: int


class Size(NamedTuple):
    """Of a terminal, in characters; 0 x 0 where it is not known, or is none."""

    rows: int
    columns: int


class TerminalSource:
    """What comes from a terminal, whose end is a hang-up."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.pollable = source.pollable

    def fileno(self) -> int:
        """The descriptor."""
        return self._source.fileno()

    def read(self, count: int) -> bytes:
        """See streams.Source."""
        data = self._source.read(count)
        if not data:
            raise OSError(errno.EIO, "the terminal was hung up")
        return data

    def close(self) -> None:
        """See streams.Source."""
        self._source.close()


class Process:
    """A program and its stand-in. Event loop only."""

    def __init__(
        self, pid: int, given: Descriptors, streams: Streams, hearer: Hearer, *, terminal: bool
    ) -> None:
        """Takes the descriptors over. pid: the stand-in's. Raises HostFailed, Misuse."""
        self.pid = pid
        self.ids = StreamIds(0, 0, 0)
        self._streams = streams
        self._stdin: Outgoing | None = None
        self._outputs: list[Incoming] = []
        self._terminal = -1
        self._hurry = asyncio.Event()
        self._link = Link(given.link, hearer)
        rest = list(given[:3])
        try:
            if terminal:
                self._open_terminal(rest)
            else:
                self._open_stdio(rest)
        except (OSError, Misuse) as error:
            for fd in rest:
                os.close(fd)
            self.abandon()
            if isinstance(error, Misuse):
                raise
            raise HostFailed(f"cannot use the program's stdio: {error.strerror}") from error

    @property
    def size(self) -> Size:
        """The terminal's size."""
        if self._terminal < 0:
            return Size(0, 0)
        try:
            answer = fcntl.ioctl(self._terminal, termios.TIOCGWINSZ, b"\0" * 8)
        except OSError:  # hung up
            return Size(0, 0)
        return Size(*struct.unpack("4H", answer)[:2])

    @property
    def has_terminal(self) -> bool:
        """Whether there is a terminal, still."""
        return self._terminal >= 0

    def begin(self) -> None:
        """The program runs: its stdin may flow."""
        if self._stdin is not None:
            self._stdin.begin()

    def hurry(self) -> None:
        """Wait no longer for whoever does not read the program's output."""
        self._hurry.set()

    async def flush(self, seconds: float | None) -> None:
        """The program ended: pass on the output that is left, for at most `seconds` (None: until
        `hurry`), and close everything but the link."""
        if self._stdin is not None:
            self._stdin.close()
        for output in self._outputs:
            output.finish()
        flushed = asyncio.ensure_future(self._flushed())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait((flushed, hurry), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        flushed.cancel()
        hurry.cancel()
        self._close_stdio()

    def tell(self, code: int) -> None:
        """The stand-in exits with the program's code."""
        self._link.tell(code)

    def reap(self) -> None:
        """The stand-in reaps what others left in its namespace of pids."""
        self._link.reap()

    async def dismiss(self) -> bool:
        """Wait, for a bounded time, until the stand-in has gone with its code; whether it has."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_STAND_IN_SECONDS):
                await self._link.gone.wait()
        gone = self._link.gone.is_set()
        self._link.close()
        return gone

    def abandon(self) -> None:
        """It never came to be: close everything; the stand-in ends by itself."""
        self._close_stdio()
        self._link.close()

    def _open_stdio(self, rest: list[int]) -> None:
        """Takes the descriptors over, one after the other. Raises OSError."""
        numbers = self._streams.new_ids(3)
        stdin = numbers[0] if self._source(rest.pop(0), numbers[0]) else 0
        stdout, stderr = (
            number if self._sink(rest.pop(0), number) else 0 for number in numbers[1:]
        )
        self.ids = StreamIds(stdin, stdout, stderr)

    def _open_terminal(self, rest: list[int]) -> None:
        """Takes the descriptors over, one after the other. Raises OSError, Misuse."""
        if not all(os.isatty(fd) for fd in rest):
            raise Misuse("the descriptors of a program with a terminal are none")
        stdin, stdout = self._streams.new_ids(2)
        source = TerminalSource(stdio.source(rest.pop(0)))
        self._stdin = self._streams.open(stdin, source, None).outgoing
        self._open_output(stdout, rest.pop(0))
        self._terminal = rest.pop(0)
        self.ids = StreamIds(stdin, stdout, 0)
        assert self._stdin is not None
        self._stdin.on_failure = self._outputs[0].on_failure = self._hang_up

    def _source(self, fd: int, stream: int) -> bool:
        """Whether there is one. Takes `fd` over. Raises OSError."""
        if _is_null(fd):
            os.close(fd)
            return False
        self._stdin = self._streams.open(stream, stdio.source(fd), None).outgoing
        return True

    def _sink(self, fd: int, stream: int) -> bool:
        """Whether there is one. Takes `fd` over. Raises OSError."""
        if _is_null(fd):
            os.close(fd)
            return False
        self._open_output(stream, fd)
        return True

    def _open_output(self, stream: int, fd: int) -> None:
        incoming = self._streams.open(stream, None, stdio.sink(fd)).incoming
        assert incoming is not None
        self._outputs.append(incoming)

    def _hang_up(self) -> None:
        self._streams.reset(self.ids.stdin)
        self._streams.reset(self.ids.stdout)

    async def _flushed(self) -> None:
        for output in self._outputs:
            await output.closed.wait()

    def _close_stdio(self) -> None:
        if self._stdin is not None:
            self._stdin.close()
        for output in self._outputs:
            output.close()
        if self._terminal >= 0:
            os.close(self._terminal)
            self._terminal = -1


def _is_null(fd: int) -> bool:
    about = os.fstat(fd)
    return stat.S_ISCHR(about.st_mode) and about.st_rdev == _NULL_DEVICE
