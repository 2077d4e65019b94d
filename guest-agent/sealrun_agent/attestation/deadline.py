"""A socket whose use ends at a deadline, however slowly the peer drips.

A socket's own timeout starts anew with every byte; this one does not. It has of a socket's methods
those that http.client uses.
"""

import io
import socket
import time
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer


class DeadlineSocket:
    """`connected`, until `deadline` (of time.monotonic). Raises TimeoutError beyond it."""

    def __init__(self, connected: socket.socket, deadline: float) -> None:
        self._socket = connected
        self.deadline = deadline

    def sendall(self, data: "ReadableBuffer") -> None:
        """Send all of `data`. Raises OSError."""
        self._socket.settimeout(self._remaining())
        self._socket.sendall(data)

    def recv_into(self, buffer: "WriteableBuffer") -> int:
        """Receive at least a byte; 0 at the end. Raises OSError."""
        self._socket.settimeout(self._remaining())
        return self._socket.recv_into(buffer)

    def makefile(self, _mode: Literal["rb"]) -> io.BufferedReader:
        """A reader of the rest of the stream."""
        return io.BufferedReader(_Reader(self))

    def close(self) -> None:
        """Nothing: http.client calls it before it has read an answer's body. The owner closes."""

    def _remaining(self) -> float:
        remaining = self.deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("timed out")
        return remaining


class _Reader(io.RawIOBase):
    def __init__(self, source: DeadlineSocket) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        return self._source.recv_into(buffer)
