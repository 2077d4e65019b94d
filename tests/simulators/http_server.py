"""An HTTP/1.1 server on a unix socket as Cloud Hypervisor's is: small, and taking open files."""

import contextlib
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Request(NamedTuple):
    """descriptors: open files that came with it; whoever handles it owns them."""

    method: str
    path: str
    body: bytes
    descriptors: list[int]


class Answer(NamedTuple):
    """raw: sent instead of an answer."""

    status: int
    body: bytes = b""
    raw: bytes | None = None


@dataclass
class _Connection:
    endpoint: socket.socket
    data: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)


class Server:
    """Serves `listener` from a selector's loop; `handle` answers one request at a time, or returns
    None to leave it without an answer."""

    def __init__(
        self,
        listener: socket.socket,
        selector: selectors.BaseSelector,
        handle: Callable[[Request], Answer | None],
    ) -> None:
        self._selector, self._handle = selector, handle
        self._listener = listener
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def _accept(self) -> None:
        connection = _Connection(self._listener.accept()[0])
        self._selector.register(
            connection.endpoint, selectors.EVENT_READ, lambda: self._read(connection)
        )

    def _read(self, connection: _Connection) -> None:
        try:
            # The real one reads no more at once either.
            data, descriptors, _, _ = socket.recv_fds(connection.endpoint, 1024, 253)
        except OSError:
            data, descriptors = b"", []
        connection.data += data
        connection.descriptors += descriptors
        if not data:
            self._selector.unregister(connection.endpoint)
            connection.endpoint.close()
            return
        while (request := _take(connection)) is not None:
            answer = self._handle(request)
            if answer is not None:
                with contextlib.suppress(OSError):
                    connection.endpoint.sendall(_render(answer))


def _take(connection: _Connection) -> Request | None:
    """The next request, if all of it is there."""
    head, end, rest = bytes(connection.data).partition(b"\r\n\r\n")
    if not end:
        return None
    line, *headers = head.decode("ascii").split("\r\n")
    length = 0
    for header in headers:
        name, _, value = header.partition(":")
        if name.lower() == "content-length":
            length = int(value)
    if len(rest) < length:
        return None
    connection.data = bytearray(rest[length:])
    descriptors, connection.descriptors = connection.descriptors, []
    method, path, _ = line.split(" ")
    return Request(method, path, rest[:length], descriptors)


def _render(answer: Answer) -> bytes:
    if answer.raw is not None:
        return answer.raw
    # No reason phrase: the blank before it is there.
    head = (
        f"HTTP/1.1 {answer.status} \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n"
    )
    if answer.body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(answer.body)}\r\n"
    return head.encode() + b"\r\n" + answer.body
