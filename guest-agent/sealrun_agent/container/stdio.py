"""The standard streams of one program: pipes, /dev/null, or a terminal.

Their ends for crun exist as soon as the request is there, ours are streams from then on. A terminal's
pseudo-terminal is made by crun in the container, which sends its master over a `ConsoleSocket`.
Loop thread only, but for `close_theirs` and the ConsoleSocket, which are the worker's.
"""

import os
import socket
from collections.abc import Callable
from types import TracebackType
from typing import Self

from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import StartError
from sealrun_agent.loop import Loop
from sealrun_agent.streams import Outgoing, Post, Streams
from sealrun_agent.terminal import Terminal


class Stdio:
    """`theirs`: the program's descriptors, /dev/null where it has a terminal."""

    def __init__(
        self,
        streams: Streams,
        events: Loop,
        post: Post,
        wanted: messages.CreateContainer | messages.ExecProcess,
        ended: Callable[[], None],
        *,
        readable: bool = True,
    ) -> None:
        """Opens the streams that are wanted, whose ids are free to use. `ended` is called after the
        end of each output. readable: whether the host gets any; if not, outputs end at once."""
        self._streams, self._readable = streams, readable
        self._ids = [n for n in (wanted.stdin, wanted.stdout, wanted.stderr) if n]
        self._outputs: list[Outgoing] = []
        self._terminal: Terminal | None = None
        if wanted.terminal:
            terminal = Terminal(
                streams, events, post, stdin=wanted.stdin, stdout=wanted.stdout, ended=ended
            )
            self._outputs.append(terminal.output)
            self._terminal = terminal
            self.theirs = (_null(), _null(), _null())
        else:
            self.theirs = (
                self._input(wanted.stdin),
                self._output(wanted.stdout, ended),
                self._output(wanted.stderr, ended),
            )

    @property
    def open(self) -> bool:
        """Whether there may be more output to come."""
        return any(output.open for output in self._outputs)

    def close_theirs(self) -> None:
        """The program has its own copies, or is not to be. Worker."""
        for fd in self.theirs:
            os.close(fd)

    def begin(self, master: int | None) -> None:
        """The program is there: let its output flow. master: of its pseudo-terminal."""
        if master is not None:
            assert self._terminal is not None
            self._terminal.attach(master)
        for output in self._outputs:
            output.resume()

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's size; nothing where there is none."""
        if self._terminal is not None:
            self._terminal.resize(rows, columns)

    def finish(self) -> None:
        """The program has exited."""
        for output in self._outputs:
            output.finish()

    def forget(self) -> None:
        """End everything without a word: the answer to a request says it already."""
        for stream in self._ids:
            self._streams.forget(stream)

    def reset(self) -> None:
        """End everything, and tell the host."""
        for stream in self._ids:
            self._streams.reset(stream)

    def _input(self, stream: int) -> int:
        if not stream:
            return _null()
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._streams.open_input(stream, write)
        return read

    def _output(self, stream: int, ended: Callable[[], None]) -> int:
        if not stream:
            return _null()
        read, write = os.pipe()
        os.set_blocking(read, False)
        self._outputs.append(self._streams.open_output(stream, read, ended))
        if not self._readable:
            os.close(write)
            return _null()
        return write


def _null() -> int:
    return os.open(os.devnull, os.O_RDWR)


class ConsoleSocket:
    """Where crun sends the master of a pseudo-terminal that it made (`--console-socket`)."""

    def __init__(self, path: str) -> None:
        """path: short enough for a unix socket, in a directory of the agent's own.

        Raises StartError(RUNTIME_FAILED)."""
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._listener.bind(path)
            self._listener.listen(1)
            self._listener.setblocking(False)
        except OSError as error:
            self._listener.close()
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"cannot listen for the terminal: {error.strerror}"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.close()
        os.unlink(self.path)

    def receive(self) -> int:
        """The master, after crun has ended with success. Raises StartError(RUNTIME_FAILED)."""
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.setblocking(False)
                _, descriptors, _, _ = socket.recv_fds(connection, 1, 1, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"crun did not send the terminal: {error.strerror}"
            ) from error
        if len(descriptors) != 1:
            raise StartError(ErrorCode.RUNTIME_FAILED, "crun did not send the terminal")
        return descriptors[0]
