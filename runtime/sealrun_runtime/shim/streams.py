"""Streams: what containers' pipes and tunnels' sockets carry, moved between descriptor and channel
with byte credit in both directions (rules in sealrun_protocol.messages and .flow).

    Source -> Outgoing -> StreamData, StreamEnd        stdin, what a tunnel's endpoint sends
    StreamData, StreamEnd -> Incoming -> Sink          stdout, stderr, what the guest sends

A stream holds at most one window in memory: a source is read only as far as the guest gave credit
and the channel has room, and the guest may send only what it got credit for. Sources and sinks never
block; those that epoll cannot watch (regular files) are always ready. Event loop only.
"""

import asyncio
from collections.abc import Callable
from typing import NoReturn, Protocol

from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.flow import ReceiveWindow, SendWindow
from sealrun_protocol.messages import HostMessage, ProtocolViolation


class Source(Protocol):
    """Where bytes come from."""

    pollable: bool

    def fileno(self) -> int:
        """What to watch."""

    def read(self, count: int) -> bytes:
        """At most `count` bytes; empty at the end. Raises BlockingIOError, OSError."""

    def close(self) -> None:
        """Let go of it."""


class Sink(Protocol):
    """Where bytes go."""

    pollable: bool

    def fileno(self) -> int:
        """What to watch."""

    def write(self, data: memoryview) -> int:
        """How many of `data` were taken. Raises BlockingIOError, OSError."""

    def close(self) -> None:
        """No more comes: end it, and let go of it."""


class Wire(Protocol):
    """What streams need of the channel."""

    @property
    def congested(self) -> bool:
        """Whether to wait for `when_drained`."""

    def when_drained(self, call: Callable[[], None]) -> None:
        """Call once when not congested any more."""

    def send(self, message: HostMessage) -> None:
        """Send or queue."""


class Outgoing:
    """A source that goes to the guest. Owns the source."""

    def __init__(self, stream: int, source: Source, wire: Wire) -> None:
        self._stream, self._source, self._wire = stream, source, wire
        self._loop = asyncio.get_running_loop()
        self._window = SendWindow()
        self._active = False  # watched, scheduled, or waiting for the channel
        self._begun = False
        self.open = True
        self.on_end: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None

    def begin(self) -> None:
        """Start reading: before, nothing is taken from the source."""
        self._begun = True
        self._resume()

    def credited(self, count: int) -> None:
        """The guest passed `count` bytes on. Raises ProtocolViolation."""
        self._window.credited(count)
        self._resume()

    def close(self) -> None:
        """Stop reading, without a word to the guest."""
        if self.open:
            self.open = False
            self._pause()
            self._source.close()
            self.on_end()

    def _resume(self) -> None:
        if not self.open or not self._begun or self._active or not self._window.available:
            return
        self._active = True
        if self._wire.congested:
            self._wire.when_drained(self._drained)
        elif self._source.pollable:
            self._loop.add_reader(self._source.fileno(), self._ready)
        else:
            self._loop.call_soon(self._ready)

    def _drained(self) -> None:
        self._active = False
        self._resume()

    def _pause(self) -> None:
        if self._active and self._source.pollable:
            self._loop.remove_reader(self._source.fileno())
        self._active = False

    def _ready(self) -> None:
        if not self.open:
            return
        if self._wire.congested or not self._window.available:
            self._pause()
            self._resume()
            return
        try:
            data = self._source.read(self._window.available)
        except BlockingIOError:
            return
        except OSError:  # a socket that was reset, a descriptor that cannot be read
            self.on_failure()
            return
        if data:
            self._window.sent(len(data))
            self._wire.send(messages.StreamData(stream=self._stream, data=data))
        else:
            self._wire.send(messages.StreamEnd(stream=self._stream))
            self.close()
            return
        if not self._source.pollable:
            self._pause()
            self._resume()


class Incoming:
    """What the guest sends, into a sink. Owns the sink."""

    def __init__(self, stream: int, sink: Sink, wire: Wire) -> None:
        self._stream, self._sink, self._wire = stream, sink, wire
        self._loop = asyncio.get_running_loop()
        self._window = ReceiveWindow()
        self._pending = bytearray()  # one buffer: a guest may send a window in single bytes
        self._ended = False  # no more comes; what is pending still has to go out
        self._watched = False
        self.open = True
        self.closed = asyncio.Event()
        self.on_end: Callable[[], None] = lambda: None
        self.on_failure: Callable[[], None] = lambda: None

    def received(self, data: bytes) -> None:
        """Raises ProtocolViolation where the guest exceeds its credit or sends after the end."""
        if self._ended:
            raise ProtocolViolation(f"data of stream {self._stream} after its end")
        if not data:
            raise ProtocolViolation(f"empty data of stream {self._stream}")
        self._window.received(len(data))
        self._pending += data
        if not self._watched:
            self._write()

    def end(self) -> None:
        """The guest sends no more. Raises ProtocolViolation where it said so before."""
        if self._ended:
            raise ProtocolViolation(f"second end of stream {self._stream}")
        self.finish()

    def finish(self) -> None:
        """Close the sink when what is pending is out. Idempotent."""
        self._ended = True
        if self.open and not self._watched:
            self._write()

    def close(self) -> None:
        """Drop what is pending."""
        if self.open:
            self.open = False
            self._pending.clear()
            self._watch(False)
            self._sink.close()
            self.closed.set()
            self.on_end()

    def _write(self) -> None:
        while self._pending and self.open:
            try:
                with memoryview(self._pending) as view:
                    count = self._sink.write(view)
            except BlockingIOError:
                break
            except OSError:  # the reader is gone, or the disk is full
                self.on_failure()
                return
            del self._pending[:count]
            if credit := self._window.passed_on(count):
                self._wire.send(messages.StreamCredit(stream=self._stream, bytes=credit))
        if self.open and self._ended and not self._pending:
            self.close()
        elif self.open:
            self._watch(bool(self._pending))

    def _watch(self, wanted: bool) -> None:
        if wanted == self._watched:
            return
        self._watched = wanted
        if not self._sink.pollable:
            if wanted:
                self._loop.call_soon(self._write_again)
        elif wanted:
            self._loop.add_writer(self._sink.fileno(), self._write)
        else:
            self._loop.remove_writer(self._sink.fileno())

    def _write_again(self) -> None:
        self._watched = False
        if self.open:
            self._write()


class Pair:
    """One open stream id: either direction, or both."""

    def __init__(self, outgoing: Outgoing | None, incoming: Incoming | None) -> None:
        self.outgoing, self.incoming = outgoing, incoming

    @property
    def open(self) -> bool:
        """Whether one direction still is."""
        return any(end is not None and end.open for end in (self.outgoing, self.incoming))

    def close(self) -> None:
        """Both directions, without a word to the guest."""
        for end in (self.outgoing, self.incoming):
            if end is not None:
                end.close()


class Streams:
    """All open streams of the sandbox, by id."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._pairs: dict[int, Pair] = {}
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, stream: int) -> bool:
        return stream in self._pairs

    def new_ids(self, count: int) -> list[int]:
        """Ids of the host's (even) that were never used: what the guest says of a stream that has
        ended can still be on its way."""
        first = self._last_id + 2
        self._last_id += 2 * count
        return list(range(first, self._last_id + 1, 2))

    def open(self, stream: int, source: Source | None, sink: Sink | None) -> Pair:
        """A stream with one or both directions; takes source and sink over."""
        assert stream not in self._pairs and len(self._pairs) < limits.STREAMS
        outgoing = Outgoing(stream, source, self._wire) if source is not None else None
        incoming = Incoming(stream, sink, self._wire) if sink is not None else None
        pair = self._pairs[stream] = Pair(outgoing, incoming)
        for end in (outgoing, incoming):
            if end is not None:
                end.on_end = lambda: self._ended(stream)
                end.on_failure = lambda: self.reset(stream)
        return pair

    def handle(self, message: messages.Stream) -> None:
        """What the guest says about a stream; nothing happens where it is not open, since the words
        can have crossed our end of it. Raises ProtocolViolation."""
        pair = self._pairs.get(message.stream)
        if pair is None:
            return
        if isinstance(message, messages.StreamReset):
            pair.close()
        elif isinstance(message, messages.StreamCredit):
            if pair.outgoing is None:
                self._no_such_direction(message.stream)
            pair.outgoing.credited(message.bytes)
        elif pair.incoming is None:
            self._no_such_direction(message.stream)
        elif pair.incoming.open:
            if isinstance(message, messages.StreamData):
                pair.incoming.received(message.data)
            else:
                pair.incoming.end()

    def reset(self, stream: int, code: ErrorCode | None = None, text: str = "") -> None:
        """End both directions now, and tell the guest. Harmless where the stream is not open."""
        pair = self._pairs.get(stream)
        if pair is not None:
            self._wire.send(messages.StreamReset(stream=stream, code=code, text=text))
            pair.close()

    def close(self) -> None:
        """End all streams without a word."""
        for pair in list(self._pairs.values()):
            pair.close()

    def _ended(self, stream: int) -> None:
        pair = self._pairs.get(stream)
        if pair is not None and not pair.open:
            del self._pairs[stream]

    def _no_such_direction(self, stream: int) -> NoReturn:
        raise ProtocolViolation(f"stream {stream} has no such direction")
