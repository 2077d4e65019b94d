"""Pseudo-terminals of containers and execs.

The CLI makes the pair. The slave goes to the shim as the program's stdio and becomes the controlling
terminal of the stand-in, the master goes to the engine over its console socket, or stays with a
foreground `run` or `exec`, which then stands between it and its own terminal. The line discipline
is that of a second pair, in the guest: ours is raw, a pipe that has a size.
"""

import array
import errno
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final, NamedTuple

from sealrun_runtime.errors import HostError, InvalidRequest, cause

_CHUNK: Final = 64 * 1024
_STDIN: Final = 0
_STDOUT: Final = 1


class Size(NamedTuple):
    """In characters; 0 x 0 where it is not known."""

    rows: int
    columns: int


class Terminal:
    """A pair of pseudo-terminals."""

    def __init__(self, size: Size) -> None:
        """Raises HostError."""
        try:
            self.master, self.slave = os.openpty()
        except OSError as error:
            raise HostError(f"cannot open a terminal: {cause(error)}") from error
        tty.setraw(self.slave)
        set_size(self.master, size)

    def close(self) -> None:
        """Both, where they are still here."""
        self.close_slave()
        self.close_master()

    def close_slave(self) -> None:
        """When the shim has it: the last one to close it ends the terminal."""
        if self.slave >= 0:
            os.close(self.slave)
            self.slave = -1

    def close_master(self) -> None:
        """When the engine has it."""
        if self.master >= 0:
            os.close(self.master)
            self.master = -1

    def hand_over(self, console_socket: str) -> None:
        """Send the master to the engine that listens on `console_socket`, with the slave's name as
        the data, as runc does. Raises InvalidRequest."""
        rights = array.array("i", (self.master,)).tobytes()
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
                connection.connect(console_socket)
                connection.sendmsg(
                    [os.ttyname(self.slave).encode()],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)],
                )
        except OSError as error:
            text = f"cannot send the terminal to {console_socket}: {cause(error)}"
            raise InvalidRequest(text) from error
        self.close_master()


def own_size() -> Size | None:
    """The size of the terminal that we run in."""
    for descriptor in (_STDIN, _STDOUT, 2):
        with suppress(OSError):
            rows, columns, _, _ = struct.unpack(
                "HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8)
            )
            return Size(rows, columns)
    return None


def set_size(descriptor: int, size: Size) -> None:
    """TIOCSWINSZ: whoever the terminal controls gets SIGWINCH where that is a change."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


@contextmanager
def proxied(master: int) -> Iterator[None]:
    """Our own terminal, where we have one, is raw inside the block, and its size is the master's."""

    def resized(_: int, __: FrameType | None) -> None:
        with suppress(OSError):
            if size := own_size():
                set_size(master, size)

    try:
        before = termios.tcgetattr(_STDIN) if os.isatty(_STDIN) else None
    except termios.error:
        before = None
    handler = signal.signal(signal.SIGWINCH, resized)
    try:
        if before is not None:
            # At once: what was typed since the program began stays.
            tty.setraw(_STDIN, termios.TCSANOW)
            resized(signal.SIGWINCH, None)
        yield
    finally:
        signal.signal(signal.SIGWINCH, handler)
        if before is not None:
            with suppress(termios.error):  # it has hung up
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)


def pump(master: int) -> None:
    """Carry bytes between our stdin and stdout and `master`, until nobody has the slave any more.

    Input that the program does not read waits in the kernel, not here. Raises BrokenPipeError where
    nobody reads our stdout."""
    os.set_blocking(master, False)
    pending = b""
    reading = True
    while True:
        poller = select.poll()
        poller.register(master, select.POLLIN | (select.POLLOUT if pending else 0))
        if reading and not pending:
            poller.register(_STDIN, select.POLLIN)
        ready = dict(poller.poll())
        if _STDIN in ready:
            pending = _read(_STDIN)
            reading = bool(pending)
        if ready.get(master, 0) & ~select.POLLOUT:
            output = _read(master)
            if not output:
                return
            _write(_STDOUT, output)
        if pending:
            with suppress(BlockingIOError):
                pending = pending[os.write(master, pending) :]


def _read(descriptor: int) -> bytes:
    """Empty at the end, which a terminal tells by an error."""
    try:
        return os.read(descriptor, _CHUNK)
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EBADF):
            raise
        return b""


def _write(descriptor: int, data: bytes) -> None:
    """All of it, also where whoever shares the descriptor with us made it non-blocking."""
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            poller = select.poll()
            poller.register(descriptor, select.POLLOUT)
            poller.poll()
