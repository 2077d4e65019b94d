"""The VM of a sandbox and the conversation with the agent in it, from the launch to its end."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from sealrun_protocol import messages
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase
from sealrun_protocol.messages import GuestMessage, ProtocolViolation
from sealrun_vmm.driver import Machine
from sealrun_vmm.errors import VmmError
from sealrun_vmm.spec import Tee

from sealrun_runtime.demand import Demand
from sealrun_runtime.handover import Handover
from sealrun_runtime.shim import (
    agent,
    console,
    endpoints,
    liveness,
    request,
    state,
)
from sealrun_runtime.shim.agent import Agent
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.shim.channel import Channel
from sealrun_runtime.shim.content import Contents
from sealrun_runtime.shim.disks import Disks
from sealrun_runtime.shim.errors import (
    GuestFailed,
    ShimError,
    VmmFailed,
    guest_failed,
    wire_text,
)
from sealrun_runtime.shim.growth import Growth
from sealrun_runtime.shim.log import guest as log_guest
from sealrun_runtime.shim.machine import Launched
from sealrun_runtime.shim.network import Network
from sealrun_runtime.shim.relay import Relay
from sealrun_runtime.shim.shared_tree import SharedTree
from sealrun_runtime.shim.streams import Streams

LOST_SECONDS: Final = 2.0  # between the channel's end and the VM's
END_SECONDS: Final = 0.5  # between the VM's end and that of its channel
SETTLE_SECONDS: Final = 0.1  # for last words that have come out of it
VM_REMEDY: Final = "give the VM more memory (vm.memory in sealrun.toml or io.sealrun.memory), or run install.sh again"


class Owner(Protocol):
    """Whose VM it is."""

    def fail(self, error: ShimError) -> None:
        """The VM, or its guest, is lost."""

    def note(self, name: str, value: str) -> None:
        """Something about it belongs into the state documents."""

    def progressed(self, message: messages.Progress) -> None:
        """Raises ProtocolViolation."""

    def exited(self, message: messages.ProcessExited) -> None:
        """Raises ProtocolViolation."""

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task whose failure ends the sandbox."""


class Vm:
    """Event loop only. It is also the wire that streams go over (streams.Wire). network, disks: None
    until it was launched."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._launched: Launched | None = None
        self._channel: Channel | None = None
        self._relay: Relay | None = None
        self._growth: Growth | None = None
        self.disks: Disks | None = None
        self._contents = Contents(log_guest)
        self.agent = Agent(self.send)
        self.network: Network | None = None
        self.streams = Streams(self)
        self._lost = asyncio.Event()
        self._hello: asyncio.Future[messages.Hello] = self._loop.create_future()
        self._ready: asyncio.Future[None] = self._loop.create_future()

    def listen(self, launched: Launched, handover: Handover) -> None:
        """It was launched for the sandbox of `handover`: hear what the guest says."""
        self._launched = launched
        spec = launched.spec
        self._owner.note(state.TEE, spec.tee.value)
        self._owner.note(state.VMM, f"{launched.driver}/{spec.accelerator.value}")
        self._channel = Channel(
            spec.channel, launched.channel, self._received, self._violated, self._channel_lost
        )
        self._contents.add(handover)
        self._relay = Relay(
            endpoints.allowed(handover),
            handover.config.relay.timeout,
            self.streams,
            self,
            log_guest,
            contents=self._contents,
        )
        self.disks = Disks(launched.machine, spec)
        self.network = Network(self.agent, launched.machine, launched.network)
        self._growth = Growth(
            launched.machine,
            spec,
            handover.config.vm,
            self.agent,
            {handover.id: handover.container.demand},
        )
        self._owner.spawn(self._watch(launched.machine))
        for attendant in launched.attendants:
            self._owner.spawn(self._watch_attendant(attendant))
        self._owner.spawn(self._greet(handover))

    @property
    def launched(self) -> bool:
        """Whether there is one."""
        return self._launched is not None

    @property
    def tree(self) -> SharedTree | None:
        """What the host shares with it; None where its VM has no device for that."""
        return self._launched.tree if self._launched is not None else None

    async def ready(self) -> None:
        """Return when the guest takes containers. Raises what `fail` was given."""
        await asyncio.shield(self._ready)

    def send(self, message: messages.HostMessage) -> None:
        """To the guest; nothing where there is none."""
        if self._channel is not None:
            self._channel.send(message)

    @property
    def congested(self) -> bool:
        """See streams.Wire."""
        return self._channel is not None and self._channel.congested

    def when_drained(self, call: Callable[[], None]) -> None:
        """See streams.Wire."""
        if self._channel is not None:
            self._channel.when_drained(call)

    def allow(self, handover: Handover) -> None:
        """One more container comes into it: what its image and settings name may be reached, too."""
        if self._relay is not None:
            self._relay.allow(endpoints.allowed(handover))
            self._contents.add(handover)

    def fail(self, error: ShimError) -> None:
        """Nothing is expected of the guest any more."""
        self.agent.fail(error)
        if not self._ready.done():
            self._ready.set_exception(error)
            self._ready.exception()  # a create may never come to ask

    def check(self, container: str, demand: Demand) -> None:
        """Raises HostUnfit where the VM cannot become what a container is to be given."""
        if self._growth is not None:
            self._growth.check(container, demand)

    async def hold(self, container: str, demand: Demand | None) -> None:
        """Make the VM large enough for a container, and for the others. Raises ShimError."""
        if self._growth is None:
            return
        try:
            await self._growth.hold(container, demand)
        except VmmError as error:
            text = f"cannot resize the VM: {error}"
            raise VmmFailed(text, remedy=error.remedy) from error

    async def take_down(self) -> None:
        """Return when nothing of it is left."""
        if self._relay is not None:
            self._relay.close()
        self.streams.close()
        if self._channel is not None:
            self._channel.close()
        if self._launched is not None:
            await self._launched.machine.stop()
            if self.network is not None:
                self.network.close()
            if self._launched.tree is not None:
                self._launched.tree.end()
            if self.disks is not None:
                self.disks.close()
            for attendant in self._launched.attendants:
                await attendant.process.kill()

    # --- the guest -------------------------------------------------------------------------------

    async def _greet(self, handover: Handover) -> None:
        """From the launch to a guest that takes containers, and on until it falls silent."""
        seconds = handover.config.vm.boot_timeout
        try:
            async with asyncio.timeout(seconds):
                hello = await self._hello
        except TimeoutError:
            self._owner.fail(self._boot_failed(f"the guest did not say a word within {seconds} s"))
            return
        if hello.version != messages.PROTOCOL_VERSION:
            text = f"the guest image speaks version {hello.version} of the protocol, "
            text += f"this runtime {messages.PROTOCOL_VERSION}"
            self._owner.fail(_violation(Phase.BOOT, text))
            return
        if (unprotected := self._without_its_tee(hello.tee)) is not None:
            self._owner.fail(unprotected)
            return
        log_guest(
            f"hello: agent {wire_text(hello.agent_version)}, tee {wire_text(hello.tee)}, "
            f"memory {hello.memory_available_kib} KiB available, up {hello.uptime_ms} ms"
        )
        try:
            await self.agent.request(
                lambda number: request.configure_sandbox(number, handover),
                agent.CONFIGURE_SECONDS,
            )
            assert self.network is not None
            await self.network.refresh()
        except ShimError as error:
            self._owner.fail(error)
            return
        if not self._ready.done():
            self._ready.set_result(None)
        try:
            await liveness.watch(self.agent, handover.config.vm.silence_timeout)
        except ShimError as error:
            self._owner.fail(error)

    def _without_its_tee(self, found: str) -> GuestFailed | None:
        """The failure of a VMM that was asked for a protected VM and started another. A lying guest
        deceives nobody but this host."""
        assert self._launched is not None
        tee = self._launched.spec.tee
        # What the guest cannot use it tells itself, when it is configured.
        if tee is Tee.NONE or found in (tee.value, "unusable"):
            return None
        text = f"boot: the VM was to have {tee}, and its guest finds {wire_text(found)}"
        return GuestFailed(
            ErrorCode.TEE_UNAVAILABLE, text, remedy=ERRORS[ErrorCode.TEE_UNAVAILABLE].remedy
        )

    def _received(self, message: GuestMessage) -> None:
        """Raises ProtocolViolation."""
        assert self._relay is not None
        if isinstance(message, messages.Hello):
            if self._hello.done():
                raise ProtocolViolation("a second Hello")
            self._hello.set_result(message)
        elif isinstance(message, messages.AgentFailed):
            self._owner.fail(guest_failed(message.phase, message.code, message.text))
        elif not self._hello.done():
            raise ProtocolViolation(f"{type(message).__name__} before Hello")
        elif isinstance(message, messages.Done | messages.Failed):
            self.agent.answered(message)
        elif isinstance(message, messages.Progress):
            self._owner.progressed(message)
        elif isinstance(message, messages.ProcessExited):
            self._owner.exited(message)
        elif isinstance(message, messages.OpenTunnel):
            self._relay.open(message)
        elif isinstance(message, messages.OpenContent):
            self._relay.open_content(message)
        elif not self._relay.handle(message):
            self.streams.handle(message)

    def _violated(self, error: ProtocolViolation) -> None:
        phase = Phase.RUN if self._ready.done() else Phase.BOOT
        self._owner.fail(_violation(phase, str(error)))

    def _channel_lost(self) -> None:
        """The VM has ended, which says more, or the guest does not speak ZMTP."""
        self._lost.set()
        error = _violation(Phase.RUN, "its connection broke")
        self._loop.call_later(LOST_SECONDS, self._owner.fail, error)

    # --- the host --------------------------------------------------------------------------------

    async def _watch(self, machine: Machine) -> None:
        ended = await machine.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._lost.wait()
        await asyncio.sleep(SETTLE_SECONDS)
        # Where the end was out of order, the driver has looked for the reason itself.
        words = self._last_words() if ended.orderly else ""
        detail = f"; its console ends with: {words}" if words else ""
        text = f"the VM ended: {wire_text(ended.reason)}{detail}"
        self._owner.fail(VmmFailed(text, remedy=VM_REMEDY))

    async def _watch_attendant(self, attendant: Attendant) -> None:
        await attendant.process.wait()
        if not attendant.failed:  # it also ends with the VM, which has then more to say
            await asyncio.sleep(LOST_SECONDS)
        self._owner.fail(VmmFailed(attendant.end()))

    def _boot_failed(self, what: str) -> GuestFailed:
        words = self._last_words()
        text = f"boot: {what}"
        if words:
            text += f"; its console ends with: {words}"
        return GuestFailed(ErrorCode.BOOT_FAILED, text, remedy=ERRORS[ErrorCode.BOOT_FAILED].remedy)

    def _last_words(self) -> str:
        return console.last_words(self._launched.spec.console) if self._launched else ""


def _violation(phase: Phase, text: str) -> GuestFailed:
    return guest_failed(phase, ErrorCode.PROTOCOL_VIOLATION, text)
