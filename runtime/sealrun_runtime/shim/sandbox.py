"""One sandbox: a VM, the agent in it, and containers (member.py), from the VM's launch to its end.

Whatever ends a sandbox early (the guest's word, its silence, its nonsense, the VM's death, the
stand-in's, a signal, a delete) goes through `fail`; the first reason counts. The VM has no life of
its own: when its last container has ended it is taken away at once, since all that it holds is
memory.
"""

import asyncio
from collections.abc import Coroutine
from typing import Final

from sealrun_protocol import messages
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase
from sealrun_protocol.messages import GuestMessage, ProtocolViolation
from sealrun_vmm.driver import Machine
from sealrun_vmm.process import VmmProcess
from sealrun_vmm.spec import VmSpec

from sealrun_runtime.handover import Handover
from sealrun_runtime.shim import (
    agent,
    console,
    endpoints,
    liveness,
    request,
    shared_root,
    state,
)
from sealrun_runtime.shim.agent import Agent
from sealrun_runtime.shim.cgroup import Cgroup
from sealrun_runtime.shim.channel import Channel
from sealrun_runtime.shim.errors import (
    CalledOff,
    GuestFailed,
    NotFound,
    ShimError,
    VmmFailed,
    WrongState,
    guest_failed,
    wire_text,
)
from sealrun_runtime.shim.log import guest as log_guest
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.member import Member
from sealrun_runtime.shim.process import Descriptors
from sealrun_runtime.shim.relay import Relay
from sealrun_runtime.shim.server import Progress
from sealrun_runtime.shim.state import Status
from sealrun_runtime.shim.streams import Streams
from sealrun_runtime.store import Directory

LOST_SECONDS: Final = 2.0  # between the channel's end and the VM's
SETTLE_SECONDS: Final = 0.1  # for last words on their way when the VM ends
VM_REMEDY: Final = "give the VM more memory (vm.memory in sealrun.toml or io.sealrun.memory), or run install.sh again"


class Sandbox:
    """The one mutable object of the shim (server.Requests, member.Surroundings). Event loop only."""

    def __init__(
        self,
        handover: Handover,
        oci_config: bytes,
        directory: Directory,
        cgroup: Cgroup | None,
    ) -> None:
        self._handover, self._directory = handover, directory
        self._loop = asyncio.get_running_loop()
        self._spec: VmSpec | None = None
        self._machine: Machine | None = None
        self._server: VmmProcess | None = None
        self._channel: Channel | None = None
        self._relay: Relay | None = None
        self.agent = Agent(self.send)
        self.streams: Streams | None = None
        self.failure: ShimError | None = None
        self._members: dict[str, Member] = {}
        self._members[handover.id] = Member(handover, oci_config, directory, cgroup, self)
        self._hello: asyncio.Future[messages.Hello] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._asked = False  # a create came, or none is expected any more
        self._ending = asyncio.Event()
        self._gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ------------------------------------------------------------------------------------

    def boot(self, name: str, machine: Machine, spec: VmSpec, channel_listener: int) -> None:
        """The VM was launched by the driver `name`: listen to it."""
        self._machine, self._spec = machine, spec
        self._note(state.VMM, f"{name}/{spec.accelerator.value}")
        self._channel = Channel(
            spec.channel, channel_listener, self._received, self._violated, self._channel_lost
        )
        self.streams = Streams(self._channel)
        self._relay = Relay(
            endpoints.allowed(self._handover),
            self._handover.config.relay.timeout,
            self.streams,
            self._channel,
            log_guest,
        )
        self.spawn(self._watch(machine))
        self.spawn(self._greet())

    def share(self, server: VmmProcess) -> None:
        """The VM's root file system is the host's, by this process: without it, the VM is lost."""
        self._server = server
        self.spawn(self._watch_server(server))

    @property
    def failed_before_create(self) -> bool:
        """Whether a `create` that is still to come has a failure to be told."""
        return self.failure is not None and not self._asked

    async def run(self) -> None:
        """Return when the sandbox is over and nothing of it is left but its state directory."""
        await self._ending.wait()
        await self._take_down()
        self._gone.set()

    def fail(self, error: ShimError) -> None:
        """End the sandbox because of `error`, unless it is ending already."""
        if self.failure is not None or self._ending.is_set():
            return
        log.error("ending: %s", error.text)
        self.failure = error
        self.agent.fail(error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # a create may never come to ask
        for member in self._members.values():
            member.end(error.text)

    def call_off(self, reason: str) -> None:
        """End the sandbox because nobody wants it any more; output that is still on its way to a
        reader who does not read is given up."""
        self._asked = True  # nobody is left to be told
        draining = [member for member in self._members.values() if member.ending]
        self.fail(CalledOff(reason))
        for member in draining:
            member.hurry()

    def broken(self, text: str) -> None:
        """See server.Requests."""
        self.fail(ShimError(text))

    # --- requests (server.Requests) --------------------------------------------------------------

    async def create(
        self, container: str, pid: int, given: Descriptors, progress: Progress
    ) -> None:
        """See server.Requests."""
        if self.failure is not None:
            given.close()
            await self._gone.wait()
            raise self.failure
        try:
            member = self._member(container)
        except NotFound:
            given.close()
            raise
        self._asked = True
        await member.create(pid, given, progress)

    async def start(self, container: str) -> None:
        """See server.Requests."""
        await self._member(container).start()

    async def execute(
        self, container: str, name: str, pid: int, given: Descriptors, config: bytes
    ) -> None:
        """See server.Requests."""
        try:
            member = self._member(container)
        except NotFound:
            given.close()
            raise
        await member.execute(name, pid, given, config)

    async def steer(self, container: str, verb: str, argument: str) -> str:
        """See server.Requests."""
        return await self._member(container).steer(verb, argument)

    async def kill(self, container: str, signal: int, *, everything: bool) -> None:
        """See server.Requests."""
        await self._member(container).kill(signal, everything=everything)

    async def delete(self, container: str, *, force: bool) -> None:
        """See server.Requests."""
        member = self._member(container)
        if member.status is not Status.STOPPED:
            if not force:
                raise WrongState(f"the container is {member.status}")
            member.call_off("deleted by force")
        await self._gone.wait()

    def _member(self, container: str) -> Member:
        try:
            return self._members[container]
        except KeyError:
            text = f"no container {wire_text(container)} in this sandbox"
            raise NotFound(text) from None

    # --- for its containers (member.Surroundings) ------------------------------------------------

    async def ready(self) -> None:
        """See member.Surroundings."""
        await asyncio.shield(self._ready)

    async def gone(self) -> None:
        """See member.Surroundings."""
        await self._gone.wait()

    def lose(self, member: Member, error: ShimError) -> None:
        """See member.Surroundings."""
        del member  # the only one
        if isinstance(error, CalledOff):
            self._asked = True
        self.fail(error)

    def settle(self) -> None:
        """See member.Surroundings."""
        if all(member.over for member in self._members.values()):
            self._ending.set()

    # --- the guest -------------------------------------------------------------------------------

    async def _greet(self) -> None:
        """From the launch to a guest that takes containers."""
        try:
            async with asyncio.timeout(self._handover.config.vm.boot_timeout):
                hello = await self._hello
        except TimeoutError:
            self.fail(self._boot_failed("the guest did not say a word"))
            return
        if hello.version != messages.PROTOCOL_VERSION:
            text = f"the guest image speaks version {hello.version} of the protocol, "
            self.fail(_violation(Phase.BOOT, f"{text}this runtime {messages.PROTOCOL_VERSION}"))
            return
        self._note(state.TEE, wire_text(hello.tee))
        log_guest(
            f"hello: agent {wire_text(hello.agent_version)}, tee {wire_text(hello.tee)}, "
            f"memory {hello.memory_available_kib} KiB available, up {hello.uptime_ms} ms"
        )
        try:
            await self.agent.request(
                lambda number: request.configure_sandbox(number, self._handover),
                agent.CONFIGURE_SECONDS,
            )
        except ShimError as error:
            self.fail(error)
            return
        if not self._ready.done():
            self._ready.set_result(None)
        self.spawn(self._listen())

    async def _listen(self) -> None:
        """End the sandbox when the guest falls silent."""
        try:
            await liveness.watch(self.agent, self._handover.config.vm.silence_timeout)
        except ShimError as error:
            self.fail(error)

    def _received(self, message: GuestMessage) -> None:
        """Raises ProtocolViolation."""
        assert self.streams is not None and self._relay is not None
        if isinstance(message, messages.Hello):
            if self._hello.done():
                raise ProtocolViolation("a second Hello")
            self._hello.set_result(message)
        elif isinstance(message, messages.AgentFailed):
            self.fail(guest_failed(message.phase, message.code, message.text))
        elif not self._hello.done():
            raise ProtocolViolation(f"{type(message).__name__} before Hello")
        elif isinstance(message, messages.Done | messages.Failed):
            self.agent.answered(message)
        elif isinstance(message, messages.Progress):
            self._known(message.container, "progress").progressed(message)
        elif isinstance(message, messages.ProcessExited):
            if not 0 <= message.code <= 255:
                raise ProtocolViolation("the end of a program with no exit code")
            self._known(message.container, "the end").exited(message)
        elif isinstance(message, messages.OpenTunnel):
            self._relay.open(message)
        elif not self._relay.handle(message):
            self.streams.handle(message)

    def _known(self, container: str, what: str) -> Member:
        """Raises ProtocolViolation."""
        try:
            return self._members[container]
        except KeyError:
            raise ProtocolViolation(f"{what} of a container that is not there") from None

    def _violated(self, error: ProtocolViolation) -> None:
        self.fail(_violation(Phase.RUN if self._ready.done() else Phase.BOOT, str(error)))

    def _channel_lost(self) -> None:
        """The VM has ended, which says more, or the guest does not speak ZMTP."""
        error = _violation(Phase.RUN, "its connection broke")
        self._loop.call_later(LOST_SECONDS, self.fail, error)

    def send(self, message: messages.HostMessage) -> None:
        """See member.Surroundings."""
        if self._channel is not None:
            self._channel.send(message)

    # --- the host --------------------------------------------------------------------------------

    async def _watch(self, machine: Machine) -> None:
        ended = await machine.wait()
        await asyncio.sleep(SETTLE_SECONDS)
        # Where the end was out of order, the driver has looked for the reason itself.
        words = self._last_words() if ended.orderly else ""
        detail = f"; its console ends with: {words}" if words else ""
        self.fail(VmmFailed(f"the VM ended: {wire_text(ended.reason)}{detail}", remedy=VM_REMEDY))

    async def _watch_server(self, server: VmmProcess) -> None:
        await server.wait()
        # It also ends with the VM, which has then more to say.
        await asyncio.sleep(LOST_SECONDS)
        words = shared_root.last_words(self._directory)
        text = f"the server of the root file system ended{': ' if words else ''}{words}"
        self.fail(VmmFailed(text))

    async def _take_down(self) -> None:
        if self._relay is not None:
            self._relay.close()
        for member in self._members.values():
            await member.end_executions()
        if self.streams is not None:
            self.streams.close()
        if self._channel is not None:
            self._channel.close()
        if self._machine is not None:
            await self._machine.stop()
        if self._server is not None:
            await self._server.kill()
        await asyncio.gather(*(member.dismiss() for member in self._members.values()))
        self.agent.fail(WrongState("the container has ended"))
        for member in self._members.values():
            member.remove_cgroup()

    def _boot_failed(self, what: str) -> GuestFailed:
        words = self._last_words()
        seconds = self._handover.config.vm.boot_timeout
        text = f"boot: {what} within {seconds} s"
        if words:
            text += f"; its console ends with: {words}"
        return GuestFailed(ErrorCode.BOOT_FAILED, text, remedy=ERRORS[ErrorCode.BOOT_FAILED].remedy)

    def _last_words(self) -> str:
        return console.last_words(self._spec.console) if self._spec is not None else ""

    def _note(self, name: str, value: str) -> None:
        for member in self._members.values():
            member.note(name, value)

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """See member.Surroundings."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawned_done)
        return task

    def _spawned_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("the shim broke", exc_info=error)
            self.broken(f"the shim broke: {type(error).__name__}: {error}")


def _violation(phase: Phase, text: str) -> GuestFailed:
    return guest_failed(phase, ErrorCode.PROTOCOL_VIOLATION, text)
