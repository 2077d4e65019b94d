"""A guest that a test plays: the other end of a shim's channel, one message at a time.

It speaks by the protocol only as far as the test does: it is also the guest gone bad.
"""

import time
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

import zmq
from sealrun_protocol import messages
from sealrun_protocol.flow import ReceiveWindow, SendWindow
from sealrun_protocol.messages import HostMessage, Message

SECONDS = 20.0
_Kind = TypeVar("_Kind", bound=Message)


class Guest:
    """A DEALER on the unix socket `path`. alive: answers a Ping, which comes at any time, by itself."""

    alive = True

    def __init__(self, path: str, identity: bytes = messages.AGENT_IDENTITY) -> None:
        self._context = zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.IDENTITY, identity)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        self.socket.setsockopt(zmq.SNDHWM, 16)
        self.socket.setsockopt(zmq.RCVHWM, 16)
        self.socket.connect(f"ipc://{path}")
        self._kept: list[HostMessage] = []
        self._windows: dict[int, SendWindow] = {}

    def __enter__(self) -> "Guest":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Break the connection."""
        self.socket.close(linger=0)
        self._context.term()

    def send(self, message: Message) -> None:
        """One message."""
        self.send_raw(messages.encode(message))

    def send_raw(self, *frames: bytes) -> None:
        """One message of any frames."""
        assert self.socket.poll(SECONDS * 1000, zmq.POLLOUT), "the shim takes nothing"
        self.socket.send_multipart(frames)

    def receive(self, seconds: float = SECONDS) -> HostMessage | None:
        """The next message; None where none comes in time."""
        if self._kept:
            return self._kept.pop(0)
        deadline = time.monotonic() + seconds
        while self.socket.poll(max(0, deadline - time.monotonic()) * 1000, zmq.POLLIN):
            message = messages.decode_from_host(self.socket.recv())
            if not (isinstance(message, messages.Ping) and self.alive):
                return message
            self.send(messages.Done(id=message.id))
        return None

    def expect(self, kind: type[_Kind]) -> _Kind:
        """The next message of that kind; others are kept in order."""
        skipped = []
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            message = self.receive(deadline - time.monotonic())
            if isinstance(message, kind):
                self._kept = skipped + self._kept
                return message
            if message is not None:
                skipped.append(message)
        raise AssertionError(f"no {kind.__name__} came, but {skipped}")

    def hello(self, version: int = messages.PROTOCOL_VERSION, tee: str = "none") -> None:
        """The first word."""
        self.send(
            messages.Hello(
                version=version,
                agent_version="0.0.0",
                tee=tee,
                memory_available_kib=4711,
                uptime_ms=1234,
            )
        )

    def boot(self) -> messages.ConfigureSandbox:
        """Hello, and Done to what follows."""
        self.hello()
        configure = self.expect(messages.ConfigureSandbox)
        self.send(messages.Done(id=configure.id))
        return configure

    def create(self) -> messages.CreateContainer:
        """Boot, and Done to CreateContainer."""
        self.boot()
        create = self.expect(messages.CreateContainer)
        self.send(messages.Done(id=create.id, image_digest="sha256:" + 64 * "a"))
        return create

    def start(self) -> None:
        """Done to StartContainer."""
        self.send(messages.Done(id=self.expect(messages.StartContainer).id))

    def execute(self) -> messages.ExecProcess:
        """Done to ExecProcess."""
        message = self.expect(messages.ExecProcess)
        self.send(messages.Done(id=message.id))
        return message

    def exit(self, container: str, code: int, process: str = "") -> None:
        """The program ended."""
        self.send(messages.ProcessExited(container=container, code=code, process=process))

    def output(self, stream: int, chunks: Iterator[bytes]) -> int:
        """Send what `chunks` yields as far as the host gives credit; how many bytes."""
        window, total = self._windows.setdefault(stream, SendWindow()), 0
        for chunk in chunks:
            rest = chunk
            while rest:
                while not window.available:
                    window.credited(self._credit(stream))
                part, rest = rest[: window.available], rest[window.available :]
                self.send(messages.StreamData(stream=stream, data=part))
                window.sent(len(part))
                total += len(part)
        return total

    def input(self, stream: int) -> bytes:
        """What the host sends on a stream until its end."""
        window, data = ReceiveWindow(), bytearray()
        while True:
            message = self.receive()
            if isinstance(message, messages.StreamEnd) and message.stream == stream:
                return bytes(data)
            assert isinstance(message, messages.StreamData), message
            assert message.stream == stream
            window.received(len(message.data))
            data += message.data
            if credit := window.passed_on(len(message.data)):
                self.send(messages.StreamCredit(stream=stream, bytes=credit))

    def _credit(self, stream: int) -> int:
        while True:
            message = self.expect(messages.StreamCredit)
            if message.stream == stream:
                return message.bytes
