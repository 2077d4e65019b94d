"""HTTP/1.1 on one unix stream, as much of it as the VMM's server speaks, bounded in every direction.

Written for descriptors: a request can carry open files (SCM_RIGHTS), which no HTTP client in the
standard library can send. The server closes nothing between requests; neither do we.
"""

import asyncio
import socket
from collections.abc import Sequence
from typing import Final, NamedTuple

HEAD_BYTES: Final = 16 << 10
BODY_BYTES: Final = 4 << 20  # what the VMM's own server takes
_READ_BYTES: Final = 64 << 10
_END: Final = b"\r\n\r\n"


class Answer(NamedTuple):
    """status: of the status line. body: empty where the answer has none."""

    status: int
    body: bytes


class Garbled(Exception):
    """The peer does not speak HTTP, or went away in the middle of an answer."""


class Connection:
    """One connection; one request at a time. Event loop only."""

    def __init__(self, endpoint: socket.socket) -> None:
        """endpoint: connected, not blocking."""
        self._endpoint = endpoint
        self._turn = asyncio.Lock()
        self._buffer = bytearray()
        self._in_step = True

    def close(self) -> None:
        """Whoever waits for an answer gets Garbled or OSError."""
        self._endpoint.close()

    async def request(
        self, method: str, target: str, body: bytes = b"", descriptors: Sequence[int] = ()
    ) -> Answer:
        """Send a request and return its answer. descriptors: open files that go with it.

        Raises Garbled, OSError. After either, and after a cancellation, nothing more is asked on
        this connection: the next answer might be this request's."""
        async with self._turn:
            if not self._in_step:
                raise Garbled("an earlier answer is missing")
            self._in_step = False
            # The server takes a request that has a Content-Length of 0 for one without a body.
            head = f"{method} {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
            await self._send(f"{head}\r\n\r\n".encode("ascii") + body, descriptors)
            status, length = _parse(await self._take_head())
            answer = Answer(status, await self._take(length))
            self._in_step = True
            return answer

    async def _send(self, data: bytes, descriptors: Sequence[int]) -> None:
        sent = 0
        if descriptors:
            # Nothing of an earlier request is on its way: there is room for the first bytes.
            sent = socket.send_fds(self._endpoint, [data], list(descriptors))
        await asyncio.get_running_loop().sock_sendall(self._endpoint, data[sent:])

    async def _take_head(self) -> bytes:
        while (end := self._buffer.find(_END)) < 0:
            if len(self._buffer) > HEAD_BYTES:
                raise Garbled("the head of an answer is too long")
            await self._receive()
        head = bytes(self._buffer[:end])
        del self._buffer[: end + len(_END)]
        return head

    async def _take(self, length: int) -> bytes:
        while len(self._buffer) < length:
            await self._receive()
        body = bytes(self._buffer[:length])
        del self._buffer[:length]
        return body

    async def _receive(self) -> None:
        data = await asyncio.get_running_loop().sock_recv(self._endpoint, _READ_BYTES)
        if not data:
            raise Garbled("the connection ended in the middle of an answer")
        self._buffer += data


def _parse(head: bytes) -> tuple[int, int]:
    """Status and length of the body. Raises Garbled."""
    line, *headers = head.split(b"\r\n")
    version, _, rest = line.partition(b" ")
    status = rest[:3]
    if not version.startswith(b"HTTP/1.") or len(status) != 3 or not status.isdigit():
        raise Garbled("an answer does not begin as HTTP does")
    length = 0
    for header in headers:
        name, _, value = header.partition(b":")
        if name.strip().lower() == b"content-length":
            value = value.strip()
            if not value.isdigit() or len(value) > 9 or int(value) > BODY_BYTES:
                raise Garbled("an answer is too long, or states no length")
            length = int(value)
        elif name.strip().lower() == b"transfer-encoding":
            raise Garbled("an answer comes in chunks")
    return int(status), length
