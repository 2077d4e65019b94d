"""A program's terminal: the master of its pseudo-terminal, between two streams.

The line discipline (echo, Ctrl-C, Ctrl-D) is the kernel's, in the guest; the bytes on the streams are
raw. What differs from a pipe:

- The master comes when the program is made; the streams are open before, and hold what the host sends.
- Nobody having the terminal open (EIO, EPOLLHUP) is no end as long as the program lives: it may open
  /dev/tty again. It is the end once the program has exited.
- The end of the host's input does nothing to the program: Ctrl-D is a byte. When the host resets the
  output, the terminal is hung up, as when a terminal's window is closed: the program gets SIGHUP.

Loop thread only.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from typing import Final

from sealrun_agent import loop
from sealrun_agent.streams import Incoming, Outgoing, Post, Streams

_TIOCSWINSZ: Final = 0x5414  # asm-generic/ioctls.h; the termios module is one more library to load
RETRY_SECONDS: Final = 0.1  # between two looks at a terminal that nobody has open


class Terminal:
    """stdin may be 0: then the program has no input from the host."""

    def __init__(
        self,
        streams: Streams,
        events: loop.Loop,
        post: Post,
        *,
        stdin: int,
        stdout: int,
        ended: Callable[[], None],
    ) -> None:
        """`ended` is called after the last byte of the output."""
        self._streams, self._stdin, self._ended = streams, stdin, ended
        self._master: int | None = None
        self._size: tuple[int, int] | None = None
        self.output = _Output(stdout, None, events, post)
        self._input: _Input | None = None
        streams.enter(stdout, self.output, None, self._output_ended)
        if stdin:
            self._input = _Input(stdin, None, events, post)
            streams.enter(stdin, None, self._input)

    def attach(self, master: int) -> None:
        """Take the master of the pseudo-terminal over, which may be too late to be used."""
        if not self.output.open:
            os.close(master)
            return
        os.set_blocking(master, False)
        self._master = master
        if self._size is not None:
            self.resize(*self._size)
        # Two more descriptors of the one master: epoll watches each direction by itself.
        self.output.attach(os.dup(master))
        if self._input is not None and self._input.open:
            self._input.attach(os.dup(master))

    def resize(self, rows: int, columns: int) -> None:
        """Give the terminal a size, now or when it is there; nothing where it is gone."""
        self._size = (rows, columns)
        if self._master is not None:
            fcntl.ioctl(self._master, _TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def _output_ended(self) -> None:
        if self._master is not None:
            os.close(self._master)
            self._master = None
        self._streams.reset(self._stdin)  # harmless where there is none
        self._ended()


class _Output(Outgoing):
    """From the master to the host."""

    _finishing = False

    def finish(self) -> None:
        """The program has exited: from now on EIO is the end."""
        self._finishing = True
        self._watch()
        super().finish()

    def _broken(self) -> None:
        if self._finishing:
            self._end()
        else:
            self._unwatch()
            self._loop.later(RETRY_SECONDS, self._watch)


class _Input(Incoming):
    """From the host to the master."""

    def _watch(self, fd: int) -> None:
        """Not before it is full: a hang-up would be reported over and over."""

    def _watch_room(self, fd: int, *, blocked: bool) -> None:
        if blocked:
            self._loop.watch(fd, loop.WRITABLE, self._ready)
        else:
            self._loop.unwatch(fd)

    def _ready(self, events: int) -> None:
        if events & loop.BROKEN:
            assert self._fd is not None
            self._loop.unwatch(self._fd)
            self._blocked = False
            self._loop.later(RETRY_SECONDS, self._write)
        else:
            self._write()
