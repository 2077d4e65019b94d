"""The container's stdin, stdout and stderr on the host: descriptors that belong to somebody else.

They came with `create` and may be shared: the same terminal, pipe or file is open in the engine, in
the user's shell, in other programs. O_NONBLOCK is a property of the shared open file description, so
it is never set on them. Instead, by kind:

- a pipe, fifo or terminal is opened anew through /proc/self/fd, which makes a description of our own
  that may be non-blocking, and the original is closed;
- where the kernel refuses that (a terminal of another user, a pipe whose reader has gone), the
  original is used as it is: only when it is ready, and with at most PIPE_BUF bytes at once, which a
  ready pipe takes and gives without blocking;
- a socket is read and written with MSG_DONTWAIT;
- a regular file or /dev/null never blocks and cannot be watched: it is always ready, and keeps its
  shared offset.
"""

import contextlib
import os
import select
import socket
import stat
from typing import Final

from sealrun_runtime.shim.streams import Sink, Source

_UNSHARED_BYTES: Final = 64 * 1024
_SHARED_BYTES: Final = select.PIPE_BUF


class DescriptorSource:
    """Something to read that is no socket."""

    def __init__(self, fd: int) -> None:
        """Takes `fd` over."""
        self._fd, self._chunk = _unshare(fd, os.O_RDONLY)
        self.pollable = _pollable(self._fd)

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def read(self, count: int) -> bytes:
        """See streams.Source."""
        return os.read(self._fd, min(count, self._chunk))

    def close(self) -> None:
        """See streams.Source."""
        os.close(self._fd)


class DescriptorSink:
    """Something to write that is no socket."""

    def __init__(self, fd: int) -> None:
        """Takes `fd` over."""
        self._fd, self._chunk = _unshare(fd, os.O_WRONLY)
        self.pollable = _pollable(self._fd)

    def fileno(self) -> int:
        """The descriptor."""
        return self._fd

    def write(self, data: memoryview) -> int:
        """See streams.Sink."""
        return os.write(self._fd, data[: self._chunk])

    def close(self) -> None:
        """See streams.Sink."""
        os.close(self._fd)


class SocketEnd:
    """One direction of a socket that may be shared."""

    pollable = True

    def __init__(self, connection: socket.socket) -> None:
        """Takes the socket over."""
        self._socket = connection

    def fileno(self) -> int:
        """The descriptor."""
        return self._socket.fileno()

    def read(self, count: int) -> bytes:
        """See streams.Source."""
        return self._socket.recv(count, socket.MSG_DONTWAIT)

    def write(self, data: memoryview) -> int:
        """See streams.Sink."""
        return self._socket.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """See streams.Source and streams.Sink. No shutdown: others may still use the socket."""
        self._socket.close()


def source(fd: int) -> Source:
    """What feeds the container's stdin. Takes `fd` over. Raises OSError."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return SocketEnd(socket.socket(fileno=fd))
    return DescriptorSource(fd)


def sink(fd: int) -> Sink:
    """Where the container's stdout or stderr goes. Takes `fd` over. Raises OSError."""
    if stat.S_ISSOCK(os.fstat(fd).st_mode):
        return SocketEnd(socket.socket(fileno=fd))
    return DescriptorSink(fd)


def _unshare(fd: int, access: int) -> tuple[int, int]:
    """A descriptor of our own for what `fd` is, and how much to move at once. Takes `fd` over."""
    mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or os.isatty(fd)):
        return fd, _UNSHARED_BYTES
    flags = access | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        own = os.open(f"/proc/self/fd/{fd}", flags)
    except OSError:
        return fd, _SHARED_BYTES
    os.close(fd)
    return own, _UNSHARED_BYTES


def _pollable(fd: int) -> bool:
    with contextlib.closing(select.epoll(1)) as probe:
        try:
            probe.register(fd, select.EPOLLIN)
        except PermissionError:
            return False
    return True
