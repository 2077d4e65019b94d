"""The shim's end of a stand-in's link: lines from the stand-in, then the exit code to it.

It says `winch` when its terminal has got another size, `signal N` when it was sent a signal that is
meant for its program. End of file is its end: by the code that it was told, or because it was killed.
"""

import asyncio
import contextlib
import socket
from typing import Final, Protocol

_LINE_BYTES: Final = 64
_READ_BYTES: Final = 4096
_SIGNALS: Final = range(1, 65)


class Hearer(Protocol):
    """Whom a stand-in talks to."""

    def resized(self) -> None:
        """The terminal has got another size."""

    def signalled(self, number: int) -> None:
        """Signal `number` is meant for the program."""

    def killed(self) -> None:
        """It has ended without having been told a code."""


class Link:
    """Takes the descriptor over, a connected stream socket. Event loop only."""

    def __init__(self, fd: int, hearer: Hearer) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.setblocking(False)
        self._hearer = hearer
        self._begun = b""
        self._told = self._closed = False
        self.gone = asyncio.Event()
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def tell(self, code: int) -> None:
        """The program ended: the stand-in exits with the same code."""
        self._told = True
        with contextlib.suppress(OSError):  # it was killed
            self._socket.send(b"%d\n" % code, socket.MSG_NOSIGNAL)

    def reap(self) -> None:
        """The stand-in reaps what it has inherited in its namespace of pids."""
        if not self._told and not self._closed:
            with contextlib.suppress(OSError):  # it was killed
                self._socket.send(b"reap\n", socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """The stand-in, where it is still there, ends with 137. Idempotent."""
        if not self._closed:
            self._closed = True
            self.gone.set()
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            *lines, begun = (self._begun + data).split(b"\n")
            self._begun = begun[:_LINE_BYTES]
            for line in lines:
                self._hear(line)
            return
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self.gone.set()
        if not self._told:
            self._hearer.killed()

    def _hear(self, line: bytes) -> None:
        if self._told or self._closed:
            return
        if line == b"winch":
            self._hearer.resized()
            return
        word, _, number = line.partition(b" ")
        if word == b"signal" and number.isdigit() and int(number) in _SIGNALS:
            self._hearer.signalled(int(number))
