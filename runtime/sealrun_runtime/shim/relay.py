"""The relay: TCP connections that the guest asks for, because it may have no network of its own, and
what the host's cache has of its images (content.py).

Only endpoints of the allowed set are dialled (endpoints.py); everything else is refused with
ENDPOINT_REFUSED. Names are resolved on the host. The bytes are the guest's: TLS ends there.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Final

from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.messages import OpenContent, OpenTunnel, ProtocolViolation

from sealrun_runtime.shim.content import Contents, Unreachable
from sealrun_runtime.shim.endpoints import Endpoint, endpoint
from sealrun_runtime.shim.errors import wire_text
from sealrun_runtime.shim.streams import Streams, Wire

_STDIO_STREAMS: Final = 8  # kept free of tunnels

_Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
_Found = Sequence[tuple[int, int, int, str, _Address]]


class Tunnel:
    """A connected TCP socket of our own (so it is simply non-blocking), for two directions."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes the socket over."""
        self._socket = connection
        self._ends = 2

    def release(self) -> None:
        """One direction is done; the second one closes."""
        self._ends -= 1
        if not self._ends:
            self._socket.close()

    @property
    def connection(self) -> socket.socket:
        """The socket."""
        return self._socket


class TunnelSource:
    """What the endpoint sends."""

    pollable = True

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def fileno(self) -> int:
        """The descriptor."""
        return self._tunnel.connection.fileno()

    def read(self, count: int) -> bytes:
        """See streams.Source."""
        return self._tunnel.connection.recv(count)

    def close(self) -> None:
        """See streams.Source."""
        self._tunnel.release()


class TunnelSink:
    """What the guest sends."""

    pollable = True

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel

    def fileno(self) -> int:
        """The descriptor."""
        return self._tunnel.connection.fileno()

    def write(self, data: memoryview) -> int:
        """See streams.Sink."""
        return self._tunnel.connection.send(data, socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Half-close, as the guest did."""
        with contextlib.suppress(OSError):  # the endpoint has gone
            self._tunnel.connection.shutdown(socket.SHUT_WR)
        self._tunnel.release()


class Relay:
    """All tunnels of a sandbox."""

    def __init__(
        self,
        allowed: frozenset[Endpoint],
        seconds: float,
        streams: Streams,
        wire: Wire,
        report: Callable[[str], None],
        *,
        contents: Contents,
    ) -> None:
        """seconds: how long a connection may take to stand. report: a line for the log."""
        self._allowed, self._seconds = allowed, seconds
        self._streams, self._wire, self._report = streams, wire, report
        self._contents = contents
        self._dialling: dict[int, asyncio.Task[socket.socket]] = {}

    def allow(self, more: frozenset[Endpoint]) -> None:
        """Let the guest reach these, too."""
        self._allowed |= more

    def open(self, message: OpenTunnel) -> None:
        """Dial, or refuse. Raises ProtocolViolation for an id that is not the guest's or is in use."""
        stream = message.stream
        self._check_new(stream)
        wanted = endpoint(message.host, message.port)
        shown = wire_text(str(wanted)[:300])
        if wanted not in self._allowed:
            self._report(f"refused the guest a connection to {shown}")
            self._refuse(stream, ErrorCode.ENDPOINT_REFUSED, shown)
        elif self._have_room(stream, shown):
            self._report(f"connecting the guest to {shown}")
            self._dial(stream, shown, _connect(wanted, self._seconds))

    def open_content(self, message: OpenContent) -> None:
        """Deliver from the cache, or refuse. Raises ProtocolViolation as `open`."""
        stream = message.stream
        self._check_new(stream)
        shown = wire_text(message.digest[:80])
        if self._have_room(stream, shown):
            self._dial(stream, shown, self._contents.open(message.image, message.digest))

    def handle(self, message: messages.Stream) -> bool:
        """Whether the message concerns a connection that does not stand yet. Raises
        ProtocolViolation where that is more than giving it up."""
        task = self._dialling.get(message.stream)
        if task is None:
            return False
        if not isinstance(message, messages.StreamReset):
            raise ProtocolViolation(f"stream {message.stream} is used before it is open")
        del self._dialling[message.stream]
        task.cancel()
        return True

    def close(self) -> None:
        """Give up the connections that do not stand yet."""
        self._contents.close()
        for task in self._dialling.values():
            task.cancel()
        self._dialling.clear()

    def _check_new(self, stream: int) -> None:
        if stream <= 0 or stream % 2 == 0:
            raise ProtocolViolation(f"a tunnel with stream id {stream}")
        if stream in self._streams or stream in self._dialling:
            raise ProtocolViolation(f"a second tunnel with stream id {stream}")

    def _have_room(self, stream: int, shown: str) -> bool:
        if len(self._streams) + len(self._dialling) < limits.STREAMS - _STDIO_STREAMS:
            return True
        self._refuse(stream, None, f"{shown}: too many connections at once")
        return False

    def _dial(self, stream: int, shown: str, work: Coroutine[None, None, socket.socket]) -> None:
        task = asyncio.ensure_future(work)
        self._dialling[stream] = task
        task.add_done_callback(lambda done: self._dialled(stream, shown, done))

    def _dialled(self, stream: int, shown: str, task: asyncio.Task[socket.socket]) -> None:
        given_up = self._dialling.get(stream) is not task
        if not given_up:
            del self._dialling[stream]
        if task.cancelled():
            return
        error = task.exception()
        if error is not None:
            if isinstance(error, Unreachable):
                self._report(f"refused the guest {shown}, which is not of its images")
            if not given_up:
                refused = ErrorCode.ENDPOINT_REFUSED if isinstance(error, Unreachable) else None
                self._refuse(stream, refused, f"{shown}: {_cause(error)}")
            return
        if given_up:
            task.result().close()
            return
        tunnel = Tunnel(task.result())
        pair = self._streams.open(stream, TunnelSource(tunnel), TunnelSink(tunnel))
        self._wire.send(messages.TunnelOpened(stream=stream))
        assert pair.outgoing is not None
        pair.outgoing.begin()

    def _refuse(self, stream: int, code: ErrorCode | None, text: str) -> None:
        self._wire.send(messages.StreamReset(stream=stream, code=code, text=wire_text(text)))


def _cause(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, socket.gaierror):
        text = error.strerror or text
    elif isinstance(error, OSError) and error.errno:
        text = os.strerror(error.errno)  # asyncio puts words of its own into `strerror`
    return text[:1].lower() + text[1:]


async def _connect(wanted: Endpoint, seconds: float) -> socket.socket:
    """The first of the endpoint's addresses that answers. Raises OSError, UnicodeError."""
    try:
        async with asyncio.timeout(seconds):
            failure = OSError("it has no address")
            for family, kind, protocol, _, address in await _addresses(wanted):
                try:
                    return await _connect_to(family, kind, protocol, address)
                except OSError as error:
                    failure = error
            raise failure
    except TimeoutError as error:
        raise OSError(f"no connection within {seconds:g} s") from error


async def _connect_to(family: int, kind: int, protocol: int, address: _Address) -> socket.socket:
    connection = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
    with contextlib.ExitStack() as on_failure:
        on_failure.callback(connection.close)
        await asyncio.get_running_loop().sock_connect(connection, address)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        on_failure.pop_all()
    return connection


async def _addresses(wanted: Endpoint) -> _Found:
    """What the endpoint's name stands for on this host; only a real name takes a thread."""
    host, port = wanted
    with contextlib.suppress(socket.gaierror):
        flags = socket.AI_NUMERICHOST
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=flags)
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
