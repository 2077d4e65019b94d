"""The agent's end of the channel: ZeroMQ on the one byte stream between guest and host.

libzmq opens neither a virtio-serial port nor a vsock connection itself. Two threads copy bytes
between the port and a unix socket on which libzmq's DEALER speaks ZMTP; nobody else is ever let in
there, and neither end reconnects: where the stream breaks, the sandbox is over.

A virtio-serial port reads as ended while the host's end is not connected (yet), and polls as hung
up. That is waited for until the host's first byte; after it, the same thing is the end. Nothing is
written before the first byte either: a greeting given to a peer that was about to go would be
missing for the one that comes. (Each side of ZMTP sends its greeting unasked, so nobody waits for
the other for ever.) The port is never closed: that discards what the host has not read.
"""

import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import zmq
from sealrun_protocol import limits, messages
from sealrun_protocol.messages import AGENT_IDENTITY, GuestMessage, HostMessage, ProtocolViolation

from sealrun_agent import loop

_COPY_BYTES: Final = 64 * limits.KIB
_RECEIVE_QUEUE: Final = 16  # messages that libzmq holds: times MESSAGE_BYTES at the worst
_SEND_QUEUE: Final = 64
_BACKLOG: Final = 16_384  # messages; the credit of all streams together is a quarter of it
_ROUND: Final = 32  # messages taken before descriptors get their turn
_RETRY_SECONDS: Final = 0.05
_FLUSH_SECONDS: Final = 5


class ByteLink:
    """The two copying threads. They live as long as the process: nothing interrupts a blocking
    read of the port, and nothing has to."""

    def __init__(self, port: int, local: socket.socket, on_lost: Callable[[str], None]) -> None:
        self._port, self._local, self._on_lost = port, local, on_lost
        self._host_spoke = threading.Event()
        self._up = threading.Thread(target=self._guest_to_host, name="channel-up", daemon=True)
        self._down = threading.Thread(target=self._host_to_guest, name="channel-down", daemon=True)
        self._up.start()
        self._down.start()

    def drain(self, seconds: float) -> None:
        """Wait until what libzmq wrote before it closed its end has reached the port."""
        self._host_spoke.set()
        self._up.join(seconds)

    def _host_to_guest(self) -> None:
        try:
            data = self._first_bytes()
            self._host_spoke.set()
            while data:
                self._local.sendall(data)
                data = os.read(self._port, _COPY_BYTES)
            cause = "the host closed its end"
        except OSError as error:
            cause = error.strerror or str(error)
        self._on_lost(f"the agent channel broke: {cause}")

    def _first_bytes(self) -> bytes:
        """Blocks until the host's end is there and has spoken; raises TimeoutError."""
        poller = select.poll()
        poller.register(self._port, select.POLLIN)
        deadline = time.monotonic() + limits.HELLO_SECONDS
        while (left := deadline - time.monotonic()) > 0:
            for _, events in poller.poll(left * 1000):
                if events & select.POLLIN and (data := os.read(self._port, _COPY_BYTES)):
                    return data
            time.sleep(_RETRY_SECONDS)
        raise TimeoutError(None, f"no word from the host in {limits.HELLO_SECONDS} s")

    def _guest_to_host(self) -> None:
        try:
            self._host_spoke.wait()
            while data := self._local.recv(_COPY_BYTES):
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(self._port, rest) :]
            cause = "the other side does not speak ZMTP"
        except OSError as error:
            cause = error.strerror or str(error)
        self._on_lost(f"the agent channel broke: {cause}")


class Channel:
    """Messages out and in. Loop thread only, but for `on_lost`, which is called from another."""

    def __init__(self, port: int, directory: str, on_lost: Callable[[str], None]) -> None:
        """port: descriptor of the byte stream, blocking. directory: private, for one socket."""
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.DEALER)
        for option, value in (
            (zmq.RECONNECT_IVL, -1),
            (zmq.HANDSHAKE_IVL, 0),  # under emulation, and before the host's end is there
            (zmq.MAXMSGSIZE, limits.MESSAGE_BYTES),
            (zmq.RCVHWM, _RECEIVE_QUEUE),
            (zmq.SNDHWM, _SEND_QUEUE),
        ):
            self._socket.setsockopt(option, value)
        self._socket.setsockopt(zmq.IDENTITY, AGENT_IDENTITY)
        self._link = ByteLink(port, self._connect(directory), on_lost)
        self._waiting: deque[bytes] = deque()
        self._violated = False
        self.handler: Callable[[HostMessage], None] = lambda _message: None
        self.on_violation: Callable[[ProtocolViolation], None] = lambda _error: None

    def attach(self, events: loop.Loop) -> None:
        """Let the loop serve this channel: `handler` gets each message, in the host's order."""
        events.watch(self._option(zmq.FD), loop.READABLE, lambda _events: None)
        events.poll_source(self._serve)

    def send(self, message: GuestMessage) -> None:
        """Queue a message. Bounded by what the host is owed: answers and stream credit."""
        self._waiting.append(messages.encode(message))
        if len(self._waiting) > _BACKLOG:
            self._waiting.clear()
            self._violation(ProtocolViolation("the host asks and does not take the answers"))

    def close(self) -> None:
        """Send what is queued, as long as the host takes it, and end ZMTP."""
        self._socket.setsockopt(zmq.SNDTIMEO, _FLUSH_SECONDS * 1000)
        try:
            while self._waiting:
                self._socket.send(self._waiting[0])
                self._waiting.popleft()
        except zmq.ZMQError:
            self._waiting.clear()  # the host does not take them, or is gone
        self._socket.close(linger=_FLUSH_SECONDS * 1000)
        self._context.term()
        self._link.drain(_FLUSH_SECONDS)

    def _connect(self, directory: str) -> socket.socket:
        """The one connection from libzmq, with the door shut behind it."""
        path = f"{directory}/channel"
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            try:
                listener.listen(1)
                self._socket.connect(f"ipc://{path}")
                local, _ = listener.accept()
            finally:
                os.unlink(path)
        return local

    def _serve(self) -> bool:
        """Move queued messages out and some in; True where more may be had at once."""
        try:
            while self._waiting:
                self._socket.send(self._waiting[0], zmq.DONTWAIT)
                self._waiting.popleft()
        except zmq.Again:
            pass
        for _ in range(_ROUND):
            if self._violated:
                break
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                # What came with it may have made room to send, without another wake-up.
                return bool(self._waiting) and bool(self._option(zmq.EVENTS) & zmq.POLLOUT)
            self._receive(frames)
        return not self._violated

    def _option(self, name: int) -> int:
        value = self._socket.getsockopt(name)
        assert isinstance(value, int), "neither is one of libzmq's byte strings"
        return value

    def _receive(self, frames: list[bytes]) -> None:
        try:
            if len(frames) != 1:
                raise ProtocolViolation(f"a message of {len(frames)} frames")
            self.handler(messages.decode_from_host(frames[0]))
        except ProtocolViolation as error:
            self._violation(error)

    def _violation(self, error: ProtocolViolation) -> None:
        """Nothing more is taken from this host."""
        if not self._violated:
            self._violated = True
            self.on_violation(error)
