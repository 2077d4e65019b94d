"""QEMU's machine protocol, as much of it as changes the devices of a running VM.

One connection that was made before QEMU started (its end is inherited): one JSON object per line.
QEMU sends events only once the capabilities were negotiated, which the first command does; from then on
whatever it says is read, so that nothing piles up in QEMU.
"""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from sealrun_vmm.errors import ChangeFailed
from sealrun_vmm.process import printable

LINE_BYTES: Final = 1 << 20
ANSWER_SECONDS: Final = 20.0
_READ_BYTES: Final = 1 << 16


class _Refusal(msgspec.Struct, frozen=True):
    desc: str = ""


class _Message(msgspec.Struct, frozen=True):
    """A greeting, an event, or an answer."""

    id: int = 0
    result: Any = msgspec.field(name="return", default=None)
    error: _Refusal | None = None
    event: str = ""
    data: dict[str, Any] = {}


class Lost(ChangeFailed):
    """QEMU does not answer, or not in its language: nothing can be asked of it any more."""


class Qmp:
    """The connection to one QEMU. Event loop only."""

    def __init__(self, endpoint: socket.socket) -> None:
        """endpoint: connected, not blocking; taken over."""
        self._endpoint = endpoint
        self._turn = asyncio.Lock()
        self._buffer = bytearray()
        self._answer: asyncio.Future[_Message] | None = None
        self._deleted: dict[str, asyncio.Future[None]] = {}
        self._negotiated = False
        self._number = 0  # of the last command: an answer that comes too late is known by it

    def close(self) -> None:
        """Nothing is asked any more."""
        if self._endpoint.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._endpoint.fileno())
            self._endpoint.close()
        self._fail("it is ending")

    async def execute(
        self, command: str, arguments: Mapping[str, object], descriptor: int = -1
    ) -> Any:
        """Carry out one command; its result. descriptor: an open file that goes with it. Raises
        ChangeFailed, Lost."""
        async with self._turn:
            if not self._negotiated:
                asyncio.get_running_loop().add_reader(self._endpoint.fileno(), self._readable)
                await self._ask("qmp_capabilities", {}, -1)
                self._negotiated = True
            return await self._ask(command, arguments, descriptor)

    async def unplug(self, device: str) -> None:
        """Take a device out, which the guest has to agree to. Raises ChangeFailed."""
        gone = self._deleted[device] = asyncio.get_running_loop().create_future()
        try:
            await self.execute("device_del", {"id": device})
            async with asyncio.timeout(ANSWER_SECONDS):
                await gone
        except TimeoutError as error:
            raise ChangeFailed(f"the guest does not let go of {device}") from error
        finally:
            del self._deleted[device]

    async def _ask(self, command: str, arguments: Mapping[str, object], descriptor: int) -> Any:
        self._number += 1
        request = {"execute": command, "arguments": arguments, "id": self._number}
        line = msgspec.json.encode(request) + b"\n"
        answer = self._answer = asyncio.get_running_loop().create_future()
        try:
            sent = 0
            if descriptor >= 0:
                sent = socket.send_fds(self._endpoint, [line], [descriptor])
            async with asyncio.timeout(ANSWER_SECONDS):
                await asyncio.get_running_loop().sock_sendall(self._endpoint, line[sent:])
                said = await answer
        except TimeoutError as error:
            raise Lost(f"qemu did not answer {command} in {ANSWER_SECONDS:g} s") from error
        except OSError as error:
            raise Lost(f"cannot ask qemu for {command}: {error.strerror}") from error
        finally:
            self._answer = None
        if said.error is not None:
            raise ChangeFailed(f"qemu refused {command}: {printable(said.error.desc)}")
        return said.result

    def _readable(self) -> None:
        try:
            data = self._endpoint.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._buffer += data
        if not data or len(self._buffer) > LINE_BYTES:
            asyncio.get_running_loop().remove_reader(self._endpoint.fileno())
            self._fail("qemu's connection ended")
            return
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            try:
                self._said(msgspec.json.decode(line, type=_Message))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                self._fail("qemu says what cannot be read")

    def _said(self, message: _Message) -> None:
        if message.event == "DEVICE_DELETED":
            gone = self._deleted.get(str(message.data.get("device")))
            if gone is not None and not gone.done():
                gone.set_result(None)
        elif message.id == self._number and self._answer and not self._answer.done():
            self._answer.set_result(message)

    def _fail(self, why: str) -> None:
        for waiting in (self._answer, *self._deleted.values()):
            if waiting is not None and not waiting.done():
                waiting.set_exception(Lost(f"cannot change the VM: {why}"))
                waiting.exception()  # it may be that nobody waits for it
