"""The control socket: requests of the CLI, by the protocol that client.py describes.

One request per connection. A connection that closes before its answer calls a `create` off. This is
the shim's boundary: any exception at all becomes an answer here, and ends the sandbox where it was
none of ours.
"""

import array
import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from signal import SIGKILL
from typing import Final, Protocol

from sealrun_protocol import limits

from sealrun_runtime.client import DATAGRAM_BYTES
from sealrun_runtime.shim.errors import Misuse, ShimError, wire_text
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.process import Descriptors

REQUEST_SECONDS: Final = 10.0  # from connection to request
_STDIO: Final = 4  # descriptors of a program: stdin, stdout, stderr, its stand-in's link
_RIGHTS: Final = _STDIO + limits.SHARES  # that fit
_CALLED_OFF: Final = ("create", "exec")  # where the caller goes away

Progress = Callable[[str, str], None]
"""progress(phase, text)"""


class Requests(Protocol):
    """What can be asked for; each raises ShimError."""

    async def join(self, container: str, directory: int, listener: int) -> None:
        """Let a container come into the pod. Takes the descriptors over: its state directory, and the
        socket at which it will be asked about."""

    async def create(
        self, container: str, pid: int, given: Descriptors, progress: Progress
    ) -> None:
        """Takes the descriptors over. Cancelled where the caller goes away."""

    async def start(self, container: str) -> None:
        """Let the program run."""

    async def execute(
        self, container: str, name: str, pid: int, given: Descriptors, config: bytes
    ) -> None:
        """Run one more program. Takes the descriptors over. Cancelled where the caller goes away."""

    async def kill(self, container: str, signal: int, *, everything: bool) -> None:
        """Send a signal."""

    async def steer(self, container: str, verb: str, argument: str) -> str:
        """pause, resume, update, ps, stats or attest: the document of the answer."""

    async def delete(self, container: str, *, force: bool) -> None:
        """Return when nothing is left but the state directory."""

    def broken(self, text: str) -> None:
        """Something that should not happen did: end."""


class Server:
    """Accepts requests on the listening socket until `close`."""

    def __init__(self, listener: socket.socket, requests: Requests) -> None:
        """Takes the listener over."""
        self._listener, self._requests = listener, requests
        self._loop = asyncio.get_running_loop()
        self._open: set[asyncio.Task[None]] = set()
        self.create_asked = asyncio.Event()
        listener.setblocking(False)
        self._loop.add_reader(listener.fileno(), self._accept)

    async def close(self) -> None:
        """Let nobody connect any more, answer everybody who did, and return."""
        self._loop.remove_reader(self._listener.fileno())
        # On a listening unix socket this refuses new connections and keeps those that wait.
        self._listener.shutdown(socket.SHUT_RD)
        self._accept()
        if self._open:
            await asyncio.wait(self._open)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody waits, or (EINVAL) nobody will any more
                return
            task = asyncio.ensure_future(self._serve(connection))
            self._open.add(task)
            task.add_done_callback(self._open.discard)

    async def _serve(self, connection: socket.socket) -> None:
        with connection:
            connection.setblocking(False)
            descriptors: list[int] = []
            try:
                fields = await self._request(connection, descriptors)
                # Who was told that we stand still must not have it done later; a `create` is called off.
                if fields is None or (fields[0] != "create" and _has_gone(connection)):
                    return
                answer = await self._answer(connection, fields, descriptors)
            finally:
                for fd in descriptors:
                    os.close(fd)
            if answer is not None:
                _send(connection, *answer)

    async def _request(self, connection: socket.socket, descriptors: list[int]) -> list[str] | None:
        """The request's fields; its descriptors are added to `descriptors`. None: there was none."""
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await self._readable(connection)
            rights = socket.CMSG_SPACE(_RIGHTS * array.array("i").itemsize)
            data, messages, _, _ = connection.recvmsg(
                DATAGRAM_BYTES, rights, socket.MSG_CMSG_CLOEXEC
            )
        except (OSError, TimeoutError):
            return None
        for level, kind, content in messages:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                numbers = array.array("i")
                numbers.frombytes(content[: len(content) - len(content) % numbers.itemsize])
                descriptors.extend(numbers)
        return data.decode("utf-8", "surrogateescape").split("\0") if data else None

    async def _answer(
        self, connection: socket.socket, fields: list[str], descriptors: list[int]
    ) -> tuple[str, ...] | None:
        """What to answer; None where nobody is there to hear it."""
        work = asyncio.ensure_future(self._carry_out(connection, fields, descriptors))
        gone = asyncio.ensure_future(self._readable(connection))
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        await asyncio.wait((gone,))  # it stops watching before the connection is closed
        if not work.done() and fields[0] in _CALLED_OFF:
            work.cancel()
        try:
            document = await work
        except asyncio.CancelledError:
            return None
        except ShimError as error:
            log.info("%s failed: %s", fields[0], error.text)
            return ("error", error.kind, error.text, error.remedy)
        except Exception as error:
            log.exception("%s broke", fields[0])
            text = f"the shim broke: {type(error).__name__}: {error}"
            self._requests.broken(text)
            return ("error", "internal", text, "see shim.log in the container's state directory")
        return ("ok", document) if document else ("ok",)

    def _carry_out(
        self, connection: socket.socket, fields: list[str], descriptors: list[int]
    ) -> Awaitable[str | None]:
        match fields:
            case ["join", container] if len(descriptors) == 2:
                directory, listener = descriptors
                descriptors.clear()
                return self._requests.join(container, directory, listener)
            case ["create", container, pid] if pid.isdigit() and len(descriptors) >= _STDIO:
                given = Descriptors.of(descriptors)
                descriptors.clear()
                self.create_asked.set()

                def progress(phase: str, text: str) -> None:
                    _send(connection, "progress", phase, text)

                return self._requests.create(container, int(pid), given, progress)
            case ["start", container]:
                return self._requests.start(container)
            case ["exec", container, name, pid, config] if (
                pid.isdigit() and len(descriptors) == _STDIO
            ):
                given = Descriptors.of(descriptors)
                descriptors.clear()
                document = config.encode("utf-8", "surrogateescape")
                return self._requests.execute(container, name, int(pid), given, document)
            case ["kill", container, signal, ("0" | "1") as everything] if signal.isdigit():
                if int(signal) == SIGKILL:
                    _send(connection, "progress", "kill", "")  # we do not stand still
                return self._requests.kill(container, int(signal), everything=everything == "1")
            case ["delete", container, ("0" | "1") as force]:
                _send(connection, "progress", "delete", "")  # we do not stand still
                return self._requests.delete(container, force=force == "1")
            case [("pause" | "resume" | "ps" | "stats") as verb, container]:
                return self._requests.steer(container, verb, "")
            case [("update" | "attest") as verb, container, argument]:
                return self._requests.steer(container, verb, argument)
        return _misuse(fields[0])

    async def _readable(self, connection: socket.socket) -> None:
        """Return when there is a datagram, or nobody at the other end."""
        ready = self._loop.create_future()

        def wake() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(connection.fileno(), wake)
        try:
            await ready
        finally:
            self._loop.remove_reader(connection.fileno())


def _has_gone(connection: socket.socket) -> bool:
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


async def _misuse(verb: str) -> None:
    raise Misuse(f"not a request: {wire_text(verb)}")


def _send(connection: socket.socket, *fields: str) -> None:
    """One datagram, of words for people but for the document of an `ok`, which is JSON. Who does not
    read does not get it."""
    if fields[0] != "ok":
        fields = tuple(wire_text(field) for field in fields)
    datagram = "\0".join(fields).encode("utf-8", "replace")
    with contextlib.suppress(OSError):
        connection.send(datagram, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
