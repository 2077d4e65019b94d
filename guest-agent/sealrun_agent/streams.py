"""Streams: what a container's pipes and terminals and the tunnels' sockets carry, moved between
descriptor and channel with byte credit in both directions (rules in sealrun_protocol.messages and
.flow). Terminals, which differ in how they end, stand in terminal.py.

A stream holds at most one window per direction in memory: it reads from a descriptor only what the
host gave credit for, and the host may send only what it got credit for. Loop thread only.

    descriptor -> Outgoing -> StreamData, StreamEnd          (stdout, stderr, a tunnel's uplink)
    StreamData, StreamEnd -> Incoming -> descriptor          (stdin, a tunnel's downlink)

A terminal's descriptor appears later than its stream: until then nothing is read, and what the host
sends waits in its window.
"""

import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final, NoReturn

from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.flow import ReceiveWindow, SendWindow
from sealrun_protocol.messages import ProtocolViolation, Stream

from sealrun_agent import loop

Post = Callable[[messages.GuestMessage], None]

STALLED_SECONDS: Final = 2.0  # silence after which a pipe that should have ended is given up


class Outgoing:
    """Descriptor to host, from `resume` on. Owns the (non-blocking) descriptor.

    fd: None until `attach`."""

    def __init__(self, stream: int, fd: int | None, events: loop.Loop, post: Post) -> None:
        self._stream, self._fd, self._loop, self._post = stream, fd, events, post
        self._window = SendWindow()
        self._quiet = False  # nothing was read since the last check of `finish`
        self.open = True
        self.on_end: Callable[[], None] = lambda: None
        self._resumed = False
        self._watched = False

    def attach(self, fd: int) -> None:
        """Take the descriptor that was missing so far."""
        self._fd = fd
        self._watch()

    def resume(self) -> None:
        """Begin to read."""
        self._resumed = True
        self._watch()

    def credited(self, count: int) -> None:
        """The host passed on `count` bytes. Raises ProtocolViolation."""
        self._window.credited(count)
        self._watch()

    def close(self) -> None:
        """Stop reading: the writer finds nobody at the other end any more."""
        if self.open:
            self.open = False
            if self._fd is not None:
                self._loop.unwatch(self._fd)
                os.close(self._fd)
            self.on_end()

    def finish(self) -> None:
        """Whoever wrote is gone: read what is there, and do not wait for ever for those who
        inherited the descriptor. A host that owes credit is waited for as long as it lives."""
        if self.open:
            if self._quiet and self._window.available:
                self._end()
                return
            self._quiet = True
            self._loop.later(STALLED_SECONDS, self.finish)

    def _watch(self) -> None:
        if self.open and self._resumed and not self._watched and self._fd is not None:
            self._watched = True
            self._loop.watch(self._fd, loop.READABLE, self._ready)

    def _unwatch(self) -> None:
        assert self._fd is not None
        self._loop.unwatch(self._fd)
        self._watched = False

    def _ready(self, _events: int) -> None:
        assert self._fd is not None
        self._quiet = False
        room = self._window.available
        if not room:  # and so that a hang-up is not reported over and over
            self._unwatch()
            return
        try:
            data = os.read(self._fd, room)
        except BlockingIOError:
            return
        except OSError:
            self._broken()
            return
        if data:
            self._window.sent(len(data))
            self._post(messages.StreamData(stream=self._stream, data=data))
        else:
            self._end()

    def _broken(self) -> None:
        """Reading failed: a socket that was reset."""
        self._end()

    def _end(self) -> None:
        self._post(messages.StreamEnd(stream=self._stream))
        self.close()


class Incoming:
    """Host to descriptor. Owns the (non-blocking) descriptor.

    fd: None until `attach`. finish: what lets the reader see the end and closes the descriptor."""

    def __init__(
        self,
        stream: int,
        fd: int | None,
        events: loop.Loop,
        post: Post,
        finish: Callable[[int], None] = os.close,
    ) -> None:
        self._stream, self._fd, self._loop, self._post = stream, fd, events, post
        self._finish = finish
        self._window = ReceiveWindow()
        self._pending: deque[memoryview] = deque()
        self._ended = False  # the host said so; what is pending still has to go out
        self._blocked = False
        self.open = True
        self.gone = False  # nobody reads any more, though the host could still send
        self.on_end: Callable[[], None] = lambda: None
        if fd is not None:
            self._watch(fd)

    def attach(self, fd: int) -> None:
        """Take the descriptor that was missing so far, and pass on what has waited for it."""
        self._fd = fd
        self._watch(fd)
        self._write()

    def received(self, data: bytes) -> None:
        """Raises ProtocolViolation where the host exceeds its credit or sends after the end."""
        if self._ended:
            raise ProtocolViolation(f"data of stream {self._stream} after its end")
        self._window.received(len(data))
        if data:
            self._pending.append(memoryview(data))
            self._write()

    def end(self) -> None:
        """The host sends no more. Raises ProtocolViolation where it said so before."""
        if self._ended:
            raise ProtocolViolation(f"second end of stream {self._stream}")
        self._ended = True
        self._write()

    def close(self) -> None:
        """Drop what is pending, and let the reader see the end."""
        if self.open:
            self.open = False
            self._pending.clear()
            if self._fd is not None:
                self._loop.unwatch(self._fd)
                self._finish(self._fd)
            self.on_end()

    def _watch(self, fd: int) -> None:
        self._loop.watch(fd, 0, self._ready)  # tells when the reader has gone

    def _watch_room(self, fd: int, *, blocked: bool) -> None:
        """Whether the descriptor has to tell when it takes bytes again."""
        self._loop.change(fd, loop.WRITABLE if blocked else 0)

    def _ready(self, events: int) -> None:
        if events & loop.BROKEN:
            self._reader_gone()
        else:
            self._write()

    def _write(self) -> None:
        if self._fd is None:
            return
        while self._pending and self.open:
            chunk = self._pending[0]
            try:
                count = os.write(self._fd, chunk)
            except BlockingIOError:
                break
            except OSError:
                self._reader_gone()
                return
            if count == len(chunk):
                self._pending.popleft()
            else:
                self._pending[0] = chunk[count:]
            if credit := self._window.passed_on(count):
                self._post(messages.StreamCredit(stream=self._stream, bytes=credit))
        if not self.open:
            return
        if self._ended and not self._pending:
            self.close()
        elif bool(self._pending) != self._blocked:
            self._blocked = not self._blocked
            self._watch_room(self._fd, blocked=self._blocked)

    def _reader_gone(self) -> None:
        self.gone = True
        self.close()


class Pair:
    """One open stream id: either direction, or both."""

    def __init__(self, outgoing: Outgoing | None, incoming: Incoming | None) -> None:
        self.outgoing, self.incoming = outgoing, incoming

    @property
    def open(self) -> bool:
        """Whether one direction still is."""
        return any(end is not None and end.open for end in (self.outgoing, self.incoming))

    def close(self) -> None:
        """Both directions, without a word to the host."""
        for end in (self.outgoing, self.incoming):
            if end is not None:
                end.close()


def _half_close(fd: int) -> None:
    """Close one of two descriptors of a socket so that its reader sees the end now."""
    with socket.socket(fileno=fd) as end, suppress(OSError):  # the other side may have gone
        end.shutdown(socket.SHUT_WR)


class Streams:
    """All open streams of the sandbox, by id."""

    def __init__(self, events: loop.Loop, post: Post) -> None:
        self._loop, self._post = events, post
        self._pairs: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, stream: int) -> bool:
        return stream in self._pairs

    def open_output(self, stream: int, fd: int, ended: Callable[[], None]) -> Outgoing:
        """What is read from pipe `fd` goes to the host once it is resumed; `ended` is called after
        the last of it."""
        outgoing = Outgoing(stream, fd, self._loop, self._post)
        self.enter(stream, outgoing, None, ended)
        return outgoing

    def open_input(self, stream: int, fd: int) -> Incoming:
        """What the host sends goes into pipe `fd`."""
        incoming = Incoming(stream, fd, self._loop, self._post)
        self.enter(stream, None, incoming)
        return incoming

    def open_socket(self, stream: int, end: socket.socket) -> Pair:
        """Both directions over a connected, non-blocking socket, which is taken over."""
        # Two descriptors of the one socket: epoll watches each direction by itself.
        down, up = end.dup().detach(), end.detach()
        incoming = Incoming(stream, down, self._loop, self._post, _half_close)
        outgoing = Outgoing(stream, up, self._loop, self._post)
        pair = self.enter(stream, outgoing, incoming)
        outgoing.resume()
        return pair

    def handle(self, message: Stream) -> None:
        """What the host says about a stream; nothing happens where it is not open, since the words
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
        """End both directions now, and tell the host. Harmless where the stream is not open."""
        pair = self._pairs.get(stream)
        if pair is not None:
            self._post(messages.StreamReset(stream=stream, code=code, text=text))
            pair.close()

    def forget(self, stream: int) -> None:
        """End both directions without a word: the answer to a request says it already."""
        pair = self._pairs.get(stream)
        if pair is not None:
            pair.close()

    def enter(
        self,
        stream: int,
        outgoing: Outgoing | None,
        incoming: Incoming | None,
        ended: Callable[[], None] = lambda: None,
    ) -> Pair:
        """Open a stream of these directions; `ended` is called when both are over."""
        assert stream not in self._pairs and len(self._pairs) < limits.STREAMS
        pair = self._pairs[stream] = Pair(outgoing, incoming)

        def direction_ended() -> None:
            if not pair.open:
                del self._pairs[stream]
                if incoming is not None and incoming.gone:
                    self._post(messages.StreamReset(stream=stream))
                ended()

        for end in (outgoing, incoming):
            if end is not None:
                end.on_end = direction_ended
        return pair

    def _no_such_direction(self, stream: int) -> NoReturn:
        raise ProtocolViolation(f"stream {stream} has no such direction")
