"""Requests to the agent: each has an id of its own, a deadline, and one answer."""

import asyncio
from collections.abc import Callable
from typing import Final

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.messages import Done, Failed, HostMessage, ProtocolViolation

from sealrun_runtime.shim.errors import GuestFailed, ShimError, guest_failed

# Seconds until a request counts as not answered, under emulation on a busy machine.
CONFIGURE_SECONDS: Final = 120.0
CREATE_SECONDS: Final = 3600.0  # a large image from a slow registry; engines give up earlier
START_SECONDS: Final = 120.0
EXECUTE_SECONDS: Final = 120.0
SIGNAL_SECONDS: Final = 30.0
INQUIRY_SECONDS: Final = 30.0


class Silence(GuestFailed):
    """The agent did not answer in time."""


class Agent:
    """The requests under way."""

    def __init__(self, send: Callable[[HostMessage], None]) -> None:
        self._send = send
        self._last = 0
        self._waiting: dict[int, asyncio.Future[Done]] = {}
        self._abandoned: set[int] = set()
        self._failure: ShimError | None = None

    async def request(self, make: Callable[[int], HostMessage], seconds: float | None) -> Done:
        """Send the request that `make` builds with its id, and wait for Done, for at most `seconds` (None:
        without end).

        Raises GuestFailed where the guest says Failed, Silence, or what `fail` was given."""
        if self._failure is not None:
            raise self._failure
        self._last += 1
        number = self._last
        answer: asyncio.Future[Done] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        message = make(number)
        self._send(message)
        try:
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError as error:
            verb = type(message).__name__
            raise Silence(
                ErrorCode.INTERNAL, f"the agent did not answer {verb} within {seconds:g} s"
            ) from error
        finally:
            # Still there: not answered, and nobody waits any more. The answer may yet come.
            if self._waiting.pop(number, None) is not None:
                self._abandoned.add(number)

    def answered(self, message: Done | Failed) -> None:
        """The guest's answer. Raises ProtocolViolation where nothing was asked."""
        answer = self._waiting.pop(message.id, None)
        if answer is None:
            if message.id not in self._abandoned:
                raise ProtocolViolation(f"an answer to request {message.id}, which is not open")
            self._abandoned.discard(message.id)
        elif answer.cancelled():
            return
        elif isinstance(message, Done):
            answer.set_result(message)
        else:
            answer.set_exception(guest_failed(message.phase, message.code, message.text))

    def fail(self, error: ShimError) -> None:
        """Nothing will be answered any more."""
        self._failure = error
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(error)
        self._waiting.clear()
