"""The programs that `exec` runs beside the container's first one: any number at once, each with streams
and a stand-in of its own. They end with the container at the latest, then with 137.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Final

import msgspec
from sealrun_protocol import limits, messages
from sealrun_protocol.messages import HostMessage, ProtocolViolation

from sealrun_runtime.shim import agent, request
from sealrun_runtime.shim.agent import Agent, Silence
from sealrun_runtime.shim.errors import CalledOff, HostFailed, Misuse, ShimError, WrongState
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.process import KILLED, Descriptors, Process
from sealrun_runtime.shim.streams import Streams

SIGKILL: Final = 9
_RESERVED: Final = 16  # streams that stay free for tunnels

Spawn = Callable[[Coroutine[None, None, None]], asyncio.Task[None]]
"""Run a coroutine in a task whose failure ends the sandbox."""


class _Config(msgspec.Struct, frozen=True):
    """What the host has to know of the OCI `process`; the rest is the guest's to judge."""

    terminal: bool = False


class Execution:
    """One program, from the request to its stand-in's end. It hears what the stand-in says."""

    def __init__(self, name: str, owner: "Executions") -> None:
        self.name = name
        self.process: Process | None = None
        self.running = False
        self.unwanted = False
        self.ending: asyncio.Task[None] | None = None
        self._owner = owner

    def resized(self) -> None:
        """See link.Hearer."""
        self._owner.resize(self)

    def signalled(self, number: int) -> None:
        """See link.Hearer."""
        self._owner.signal(self, number)

    def killed(self) -> None:
        """See link.Hearer."""
        self._owner.give_up(self)


class Executions:
    """All of a container. Event loop only."""

    def __init__(
        self,
        container: str,
        guest: Agent,
        send: Callable[[HostMessage], None],
        spawn: Spawn,
        *,
        join: Callable[[int], None],
        strike: Callable[[int], None],
        reap: Callable[[], None],
    ) -> None:
        """join: put a stand-in into the cgroup; raises HostFailed. strike: one has ended.
        reap: one was killed, and could not reap its own child."""
        self._container, self._agent, self._send = container, guest, send
        self._spawn, self._join, self._strike, self._reap = spawn, join, strike, reap
        self._all: dict[str, Execution] = {}
        self._reported = asyncio.Event()
        self._silent: set[str] = set()  # the guest was asked to run them, and did not answer
        self._over = False

    @property
    def pids(self) -> list[int]:
        """Of the stand-ins, the oldest first."""
        return [one.process.pid for one in self._all.values() if one.process is not None]

    async def run(
        self, name: str, pid: int, given: Descriptors, config: bytes, streams: Streams
    ) -> None:
        """Return once the program runs. Takes the descriptors over. Raises ShimError."""
        try:
            terminal = self._check(name, config, streams)
        except ShimError:
            given.close()
            raise
        one = Execution(name, self)
        one.process = process = Process(pid, given, streams, one, terminal=terminal)
        self._all[name] = one
        # Not called off with its caller: the guest may have begun.
        begun = asyncio.ensure_future(self._begin(one, process, config))
        try:
            await asyncio.shield(begun)
        except asyncio.CancelledError:
            begun.add_done_callback(lambda done: done.cancelled() or done.exception())
            self.give_up(one)
            raise

    def exited(self, message: messages.ProcessExited) -> None:
        """Raises ProtocolViolation for a program that nobody asked for."""
        if self._over or message.process in self._silent:
            return
        one = self._all.get(message.process)
        if one is None or one.process is None:
            raise ProtocolViolation("the end of a program that is not there")
        if one.ending is None:
            self._finish(one, one.process, message.code)
        self._reported.set()

    async def end(self, settle: float, seconds: float) -> None:
        """The container has ended, and all of these with it: wait `settle` seconds for what the guest
        has to say of them, end the others, and give their readers `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(settle):
                while any(one.running and one.ending is None for one in self._all.values()):
                    self._reported.clear()
                    await self._reported.wait()
        self._over = True
        for one in self._all.values():
            if one.running and one.ending is None and one.process is not None:
                self._finish(one, one.process, KILLED)
        tasks = [one.ending for one in self._all.values() if one.ending is not None]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=seconds)
            for one in self._all.values():
                if one.process is not None:
                    one.process.hurry()
            if late:
                await asyncio.wait(late)

    # --- what stand-ins say ----------------------------------------------------------------------

    def resize(self, one: Execution) -> None:
        """Its terminal has another size."""
        if one.process is not None and one.process.has_terminal:
            rows, columns = one.process.size
            self._send(
                messages.ResizeTerminal(
                    container=self._container, process=one.name, rows=rows, columns=columns
                )
            )

    def signal(self, one: Execution, number: int) -> None:
        """It was sent a signal; before the program runs there is nobody to get it."""
        if one.running and one.ending is None:
            self._spawn(self._send_signal(one, number))

    def give_up(self, one: Execution) -> None:
        """Its stand-in was killed, or its caller went away."""
        one.unwanted = True
        if one.process is not None:
            one.process.hurry()
        self.signal(one, SIGKILL)

    # --- the guest -------------------------------------------------------------------------------

    async def _begin(self, one: Execution, process: Process, config: bytes) -> None:
        try:
            self._join(process.pid)
            await self._agent.request(
                lambda number: request.execute(number, self._container, one.name, config, process),
                agent.EXECUTE_SECONDS,
            )
        except ShimError as error:
            if isinstance(error, Silence):
                self._silent.add(one.name)
                self._spawn(self._send_signal(one, SIGKILL))
            if one.ending is None:
                process.abandon()
                del self._all[one.name]
            raise
        if self._over:
            process.abandon()
            del self._all[one.name]
            raise WrongState("the container has ended")
        one.running = True
        if one.unwanted:
            self.signal(one, SIGKILL)
            raise CalledOff("whoever asked for the program went away")
        process.begin()

    async def _send_signal(self, one: Execution, number: int) -> None:
        try:
            await self._agent.request(
                lambda request_id: messages.SignalContainer(
                    id=request_id, container=self._container, signal=number, process=one.name
                ),
                agent.SIGNAL_SECONDS,
            )
        except ShimError as error:  # it has ended meanwhile, or the guest answers nothing
            log.info("signal %d of a program: %s", number, error.text)

    def _finish(self, one: Execution, process: Process, code: int) -> None:
        one.ending = self._spawn(self._see_off(one, process, code))

    async def _see_off(self, one: Execution, process: Process, code: int) -> None:
        await process.flush(None)
        process.tell(code)
        if await process.dismiss():
            self._strike(process.pid)
        if one.unwanted:
            self._reap()
        del self._all[one.name]

    def _check(self, name: str, config: bytes, streams: Streams) -> bool:
        """Whether the program wants a terminal. Raises ShimError."""
        if name in self._all or not name:
            raise Misuse("a program's name has to be new")
        if len(streams) + 3 > limits.STREAMS - _RESERVED:
            raise HostFailed("too many programs run in the container at once")
        try:
            return msgspec.json.decode(config, type=_Config).terminal
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Misuse(f"not a process object: {error}") from error
