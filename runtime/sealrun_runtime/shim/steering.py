"""Requests about a container that lives: signals, pausing, limits, figures."""

from collections.abc import Callable
from typing import Any, Final, Protocol

import msgspec
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.evidence import NONCE_BYTES
from sealrun_protocol.messages import HostMessage

from sealrun_runtime import bundle
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.demand import Demand
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.host_limits import HostLimits
from sealrun_runtime.shim import agent
from sealrun_runtime.shim.agent import Agent
from sealrun_runtime.shim.container import LIVE, Container
from sealrun_runtime.shim.errors import (
    GuestFailed,
    HostFailed,
    Misuse,
    ShimError,
    WrongState,
    guest_failed,
)
from sealrun_runtime.shim.executions import SIGKILL, Executions
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.state import Status

_GONE: Final = (ErrorCode.WRONG_STATE, ErrorCode.CONTAINER_UNKNOWN)


class _GuestProcess(msgspec.Struct, frozen=True):
    """A row of ListProcesses."""

    pid: int
    ppid: int
    uid: int
    command: str


class Resize(Protocol):
    """Make the VM large enough for the container. strict: refuse what no VM of this kind can be.

    Raises ShimError."""

    async def __call__(self, demand: Demand, *, strict: bool) -> None: ...


class Limit(Protocol):
    """Hold the VM to other limits. Raises ShimError."""

    async def __call__(self, limits: HostLimits) -> None: ...


class Steering:
    """Event loop only."""

    def __init__(
        self,
        container: Container,
        guest: Agent,
        executions: Executions,
        spec: ContainerSpec,
        *,
        resize: Resize,
        limit: Limit,
    ) -> None:
        """spec: its limits are those that hold now."""
        self._container, self._agent, self._executions = container, guest, executions
        self._resize, self._demand = resize, spec.demand
        self._limit, self._limits = limit, spec.host_limits

    async def signal(self, number: int, *, everything: bool, seconds: float) -> None:
        """Raises Silence, WrongState where it does not run any more, GuestFailed."""
        frozen = self._container.status is Status.PAUSED
        await self._ask(
            lambda request: messages.SignalContainer(
                id=request, container=self._container.id, signal=number, all=everything
            ),
            seconds,
        )
        # As runc: a frozen process may die only when it is let go on.
        if frozen and number == SIGKILL and not self._container.ending:
            try:
                await self.carry_out("resume", "")
            except ShimError as error:
                log.info("a killed container was not resumed: %s", error.text)

    async def carry_out(self, verb: str, argument: str) -> str:
        """pause, resume, update RESOURCES, ps, stats, attest NONCE: the document of the answer, empty
        where there is none. Raises ShimError."""
        here = self._container
        match verb:
            case "pause":
                here.expect(Status.CREATED, Status.RUNNING)
                await self._pause()
                try:
                    here.paused()
                except HostFailed:  # what cannot be told is not done
                    await self._resume()
                    raise
            case "resume":
                here.expect(Status.PAUSED)
                await self._resume()
                try:
                    here.resumed()
                except HostFailed:
                    await self._pause()
                    raise
            case "update":
                here.expect(*LIVE)
                await self._update(argument.encode("utf-8", "surrogateescape"))
            case "ps":
                return await self._processes()
            case "stats":
                here.expect(*LIVE)
                done = await self._ask(lambda n: messages.ReadStatistics(id=n, container=here.id))
                return _json(done.document, dict[str, Any])
            case "attest":
                return await self._evidence(argument)
            case _:
                raise Misuse("not a request")
        return ""

    async def _update(self, resources: bytes) -> None:
        """The VM grows before its container may, and shrinks after it; its own limits are around it."""
        here, before = self._container, self._demand
        try:
            wanted = bundle.parse_resources(resources)
        except InvalidRequest as error:
            raise Misuse(error.text) from error
        after, limits = before.changed(wanted), self._limits.changed(wanted)
        await self._limit(limits.roomier(self._limits))
        try:
            await self._resize(before.larger(after), strict=True)
            await self._ask(
                lambda n: messages.UpdateContainer(id=n, container=here.id, resources=resources)
            )
        except ShimError:
            await self._limit(self._limits)
            raise
        self._demand, self._limits = after, limits
        await self._resize(after, strict=False)
        await self._limit(limits)

    async def _pause(self) -> None:
        await self._ask(lambda n: messages.PauseContainer(id=n, container=self._container.id))

    async def _resume(self) -> None:
        await self._ask(lambda n: messages.ResumeContainer(id=n, container=self._container.id))

    async def _processes(self) -> str:
        here = self._container
        here.expect(*LIVE)
        done = await self._ask(lambda n: messages.ListProcesses(id=n, container=here.id))
        processes = _json(done.document, list[_GuestProcess])
        first = [here.process.pid] if here.process is not None else []
        pids = msgspec.json.encode([*first, *self._executions.pids]).decode()
        return f'{{"pids":{pids},"processes":{processes}}}'

    async def _evidence(self, nonce: str) -> str:
        try:
            wanted = bytes.fromhex(nonce)
        except ValueError as error:
            raise Misuse("not a nonce") from error
        if len(wanted) not in NONCE_BYTES:
            raise Misuse(f"a nonce of {len(wanted)} bytes")
        self._container.expect(*LIVE)
        done = await self._ask(lambda n: messages.Attest(id=n, nonce=wanted))
        return _json(done.document, dict[str, Any])

    async def _ask(
        self, make: Callable[[int], HostMessage], seconds: float = agent.INQUIRY_SECONDS
    ) -> messages.Done:
        try:
            return await self._agent.request(make, seconds)
        except GuestFailed as error:
            if error.code in _GONE:
                raise WrongState("the container does not run any more") from error
            raise


def _json(document: bytes, kind: Any) -> str:
    """The guest's document, read and written anew: what it is not never reaches a caller's parser.
    Raises GuestFailed."""
    try:
        return msgspec.json.encode(msgspec.json.decode(document, type=kind)).decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = "its answer is not the document that was asked for"
        raise guest_failed(Phase.RUN, ErrorCode.PROTOCOL_VIOLATION, text) from error
