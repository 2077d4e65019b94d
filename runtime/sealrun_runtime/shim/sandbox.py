"""One sandbox: a VM, the agent in it, a container, from the VM's launch to its end.

Whatever ends a sandbox early (the guest's word, its silence, its nonsense, the VM's death, the
stand-in's, a signal, a delete) goes through `fail`; the first reason counts. The VM has no life of
its own: when its container has ended it is taken away at once, since all that it holds is memory.
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
from sealrun_runtime.shim import agent, console, endpoints, request, shared_root, state
from sealrun_runtime.shim.agent import Agent, Silence
from sealrun_runtime.shim.cgroup import Cgroup
from sealrun_runtime.shim.channel import Channel
from sealrun_runtime.shim.container import LIVE, Container
from sealrun_runtime.shim.errors import (
    CalledOff,
    GuestFailed,
    HostFailed,
    NotFound,
    ShimError,
    VmmFailed,
    WrongState,
    guest_failed,
    wire_text,
)
from sealrun_runtime.shim.executions import SIGKILL, Executions
from sealrun_runtime.shim.log import guest as log_guest
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.process import KILLED, Descriptors, Process
from sealrun_runtime.shim.relay import Relay
from sealrun_runtime.shim.server import Progress
from sealrun_runtime.shim.state import Status
from sealrun_runtime.shim.steering import Steering
from sealrun_runtime.shim.streams import Streams
from sealrun_runtime.store import Directory

KILL_SECONDS: Final = 5.0  # until a KILL that the guest does not answer takes the VM away
KILLED_SECONDS: Final = 10.0  # until one that it answered and did not carry out does
FLUSH_SECONDS: Final = (
    2.0  # for output that nobody reads, where the container did not end by itself
)
REPORT_SECONDS: Final = 1.0  # for the ends of executed programs, after that of the container
LOST_SECONDS: Final = 2.0  # between the channel's end and the VM's
SETTLE_SECONDS: Final = 0.1  # for last words on their way when the VM ends
VM_REMEDY: Final = "give the VM more memory (vm.memory in sealrun.toml or io.sealrun.memory), or run install.sh again"


class Sandbox:
    """The one mutable object of the shim. Event loop only."""

    def __init__(
        self,
        handover: Handover,
        oci_config: bytes,
        directory: Directory,
        cgroup: Cgroup | None,
    ) -> None:
        self._handover, self._oci_config = handover, oci_config
        self._directory, self._cgroup = directory, cgroup
        self._loop = asyncio.get_running_loop()
        self._spec: VmSpec | None = None
        self._machine: Machine | None = None
        self._server: VmmProcess | None = None
        self._channel: Channel | None = None
        self._streams: Streams | None = None
        self._relay: Relay | None = None
        self._agent = Agent(self._send)
        self._container = Container(handover, directory)
        self._executions = Executions(
            handover.id, self._agent, self._send, self._spawn, self._join_cgroup
        )
        self._steering = Steering(self._container, self._agent, self._executions)
        self._progress: Progress | None = None
        self._hello: asyncio.Future[messages.Hello] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._failure: ShimError | None = None
        self._asked = False  # a create came, or none is expected any more
        self._ending = asyncio.Event()
        self._gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ------------------------------------------------------------------------------------

    def boot(self, name: str, machine: Machine, spec: VmSpec, channel_listener: int) -> None:
        """The VM was launched by the driver `name`: listen to it."""
        self._machine, self._spec = machine, spec
        self._container.note(state.VMM, f"{name}/{spec.accelerator.value}")
        self._channel = Channel(
            spec.channel, channel_listener, self._received, self._violated, self._channel_lost
        )
        self._streams = Streams(self._channel)
        self._relay = Relay(
            endpoints.allowed(self._handover),
            self._handover.config.relay.timeout,
            self._streams,
            self._channel,
            log_guest,
        )
        self._spawn(self._watch(machine))
        self._spawn(self._greet())

    def share(self, server: VmmProcess) -> None:
        """The VM's root file system is the host's, by this process: without it, the VM is lost."""
        self._server = server
        self._spawn(self._watch_server(server))

    @property
    def failed_before_create(self) -> bool:
        """Whether a `create` that is still to come has a failure to be told."""
        return self._failure is not None and not self._asked

    async def run(self) -> None:
        """Return when the sandbox is over and nothing of it is left but its state directory."""
        await self._ending.wait()
        await self._take_down()
        self._gone.set()

    def fail(self, error: ShimError) -> None:
        """End the sandbox because of `error`, unless it is ending already."""
        if self._failure is not None or self._ending.is_set():
            return
        log.error("ending: %s", error.text)
        self._failure = error
        self._agent.fail(error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # a create may never come to ask
        if self._container.status in LIVE:
            if not self._container.ending:
                self._container.ending = True
                self._spawn(self._finish(KILLED, error.text, FLUSH_SECONDS))
        else:
            if self._container.status is Status.CREATING:
                self._container.abandon(error.text)
            self._ending.set()

    def call_off(self, reason: str) -> None:
        """End the sandbox because nobody wants it any more; output that is still on its way to a
        reader who does not read is given up."""
        self._asked = True  # nobody is left to be told
        draining = self._container.ending
        self.fail(CalledOff(reason))
        if draining:
            self._container.hurry()

    def broken(self, text: str) -> None:
        """See server.Requests."""
        self.fail(ShimError(text))

    # --- requests (server.Requests) --------------------------------------------------------------

    async def create(
        self, container: str, pid: int, given: Descriptors, progress: Progress
    ) -> None:
        """See server.Requests."""
        try:
            streams = self._fit_to_create(container)
            self._asked = True
        except ShimError:
            given.close()
            if self._failure is not None:
                await self._gone.wait()
            raise
        self._progress = progress
        try:
            process = self._container.process = Process(
                pid, given, streams, self, terminal=self._handover.container.terminal
            )
            self._join_cgroup(pid)
            progress(Phase.BOOT.value, "waiting for the guest")
            await asyncio.shield(self._ready)
            done = await self._agent.request(
                lambda number: request.create_container(
                    number, self._handover, self._oci_config, process
                ),
                agent.CREATE_SECONDS,
            )
            self._container.expect(Status.CREATING)
            self._container.created(wire_text(done.image_digest))
        except ShimError as error:
            self.fail(error)
            await self._gone.wait()
            raise self._failure or error from error
        except asyncio.CancelledError:
            self.call_off("whoever asked for the container went away")
            raise
        finally:
            self._progress = None

    async def start(self, container: str) -> None:
        """See server.Requests."""
        self._check(container, Status.CREATED)
        try:
            await self._agent.request(
                lambda number: messages.StartContainer(id=number, container=container),
                agent.START_SECONDS,
            )
        except WrongState:
            if self._failure is not None:
                raise
            return  # the program ended, and its VM was taken away, before the answer was here
        self._container.started()

    async def execute(
        self, container: str, name: str, pid: int, given: Descriptors, config: bytes
    ) -> None:
        """See server.Requests."""
        try:
            self._check(container, Status.RUNNING)
            if self._container.ending or self._streams is None:
                raise WrongState("the container has ended")
        except ShimError:
            given.close()
            raise
        await self._executions.run(name, pid, given, config, self._streams)

    async def steer(self, container: str, verb: str, argument: str) -> str:
        """See server.Requests."""
        self._check(container)
        return await self._steering.carry_out(verb, argument)

    async def kill(self, container: str, signal: int, *, everything: bool) -> None:
        """See server.Requests."""
        self._check(container, *LIVE)
        if signal == 0:  # only asks whether it is there
            return
        if signal == SIGKILL and self._container.ending:
            self._container.hurry()
            return
        seconds = KILL_SECONDS if signal == SIGKILL else agent.SIGNAL_SECONDS
        try:
            await self._steering.signal(signal, everything=everything, seconds=seconds)
        except Silence as error:
            if signal != SIGKILL:
                raise
            self.fail(GuestFailed(error.code, f"killed, the guest did not answer: {error.text}"))
        if signal == SIGKILL:
            self._loop.call_later(KILLED_SECONDS, self._insist)

    async def delete(self, container: str, *, force: bool) -> None:
        """See server.Requests."""
        self._check(container)
        if self._container.status is not Status.STOPPED:
            if not force:
                raise WrongState(f"the container is {self._container.status}")
            self.call_off("deleted by force")
        await self._gone.wait()

    def _check(self, container: str, *allowed: Status) -> None:
        if container != self._handover.id:
            raise NotFound(f"no container {wire_text(container)} in this sandbox")
        if allowed:
            self._container.expect(*allowed)

    def _fit_to_create(self, container: str) -> Streams:
        if self._failure is not None:
            raise self._failure
        self._check(container, Status.CREATING)
        if self._progress is not None or self._streams is None:
            raise WrongState("the container is being created already")
        return self._streams

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
        self._container.note(state.TEE, wire_text(hello.tee))
        log_guest(
            f"hello: agent {wire_text(hello.agent_version)}, tee {wire_text(hello.tee)}, "
            f"memory {hello.memory_available_kib} KiB available, up {hello.uptime_ms} ms"
        )
        try:
            await self._agent.request(
                lambda number: request.configure_sandbox(number, self._handover),
                agent.CONFIGURE_SECONDS,
            )
        except ShimError as error:
            self.fail(error)
            return
        if not self._ready.done():
            self._ready.set_result(None)

    def _received(self, message: GuestMessage) -> None:
        """Raises ProtocolViolation."""
        assert self._streams is not None and self._relay is not None
        if isinstance(message, messages.Hello):
            if self._hello.done():
                raise ProtocolViolation("a second Hello")
            self._hello.set_result(message)
        elif isinstance(message, messages.AgentFailed):
            self.fail(guest_failed(message.phase, message.code, message.text))
        elif not self._hello.done():
            raise ProtocolViolation(f"{type(message).__name__} before Hello")
        elif isinstance(message, messages.Done | messages.Failed):
            self._agent.answered(message)
        elif isinstance(message, messages.Progress):
            self._progressed(message)
        elif isinstance(message, messages.ProcessExited):
            self._exited(message)
        elif isinstance(message, messages.OpenTunnel):
            self._relay.open(message)
        elif not self._relay.handle(message):
            self._streams.handle(message)

    def _progressed(self, message: messages.Progress) -> None:
        if message.container != self._handover.id:
            raise ProtocolViolation("progress of a container that is not there")
        text = wire_text(message.text)
        if message.total_bytes > 0:
            text += f" ({message.done_bytes >> 20}/{message.total_bytes >> 20} MiB)"
        log_guest(f"{message.phase.value}: {text}")
        if self._progress is not None:
            self._progress(message.phase.value, text)

    def _exited(self, message: messages.ProcessExited) -> None:
        if message.container != self._handover.id or not 0 <= message.code <= 255:
            raise ProtocolViolation("the end of a container that is not there, or no exit code")
        if message.process:
            self._executions.exited(message)
            return
        if self._container.ending:
            if self._failure is None:
                raise ProtocolViolation("a second end of the container")
            return
        if self._container.status is Status.CREATING:
            raise ProtocolViolation("the end of a container that was not created")
        log.info("the container ended with %d", message.code)
        self._container.ending = True
        if message.oom:
            self._container.note(state.OOM, "true")
        self._spawn(self._finish(message.code, "", None))

    def _violated(self, error: ProtocolViolation) -> None:
        self.fail(_violation(Phase.RUN if self._ready.done() else Phase.BOOT, str(error)))

    def _channel_lost(self) -> None:
        """The VM has ended, which says more, or the guest does not speak ZMTP."""
        error = _violation(Phase.RUN, "its connection broke")
        self._loop.call_later(LOST_SECONDS, self.fail, error)

    def _insist(self) -> None:
        """A KILL was answered a while ago."""
        if not self._container.ending:
            self.fail(VmmFailed("killed, the guest did not carry it out"))
        else:
            self._container.hurry()

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

    # --- what the container's stand-in says (link.Hearer) ----------------------------------------

    def resized(self) -> None:
        """See link.Hearer."""
        process = self._container.process
        if process is not None and process.has_terminal and self._container.status in LIVE:
            rows, columns = process.size
            self._send(
                messages.ResizeTerminal(container=self._handover.id, rows=rows, columns=columns)
            )

    def signalled(self, number: int) -> None:
        """See link.Hearer. Engines signal a container by `kill`."""

    def killed(self) -> None:
        """See link.Hearer."""
        self.call_off("its stand-in process was killed")

    # --- the host, again -------------------------------------------------------------------------

    def _join_cgroup(self, pid: int) -> None:
        if self._cgroup is None:
            return
        try:
            self._cgroup.join(pid)
        except OSError as error:
            text = f"cannot put the stand-in into the cgroup: {error.strerror}"
            raise HostFailed(text) from error

    async def _finish(self, code: int, reason: str, seconds: float | None) -> None:
        settle = REPORT_SECONDS if seconds is None else 0.0
        await asyncio.gather(
            self._container.finish(code, reason, seconds),
            self._executions.end(settle, FLUSH_SECONDS),
        )
        self._ending.set()

    async def _take_down(self) -> None:
        if self._relay is not None:
            self._relay.close()
        await self._executions.end(0.0, 0.0)
        if self._streams is not None:
            self._streams.close()
        if self._channel is not None:
            self._channel.close()
        if self._machine is not None:
            await self._machine.stop()
        if self._server is not None:
            await self._server.kill()
        await self._container.dismiss()
        self._agent.fail(WrongState("the container has ended"))
        if self._cgroup is not None:
            for path in self._cgroup.remove():
                log.info("cgroup %s stays: it is in use", path)

    def _boot_failed(self, what: str) -> GuestFailed:
        words = self._last_words()
        seconds = self._handover.config.vm.boot_timeout
        text = f"boot: {what} within {seconds} s"
        if words:
            text += f"; its console ends with: {words}"
        return GuestFailed(ErrorCode.BOOT_FAILED, text, remedy=ERRORS[ErrorCode.BOOT_FAILED].remedy)

    def _last_words(self) -> str:
        return console.last_words(self._spec.console) if self._spec is not None else ""

    def _send(self, message: messages.HostMessage) -> None:
        if self._channel is not None:
            self._channel.send(message)

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
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
