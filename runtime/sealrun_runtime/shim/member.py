"""One container of a sandbox: the requests about it, from `create` to its end.

What ends it early ends the whole sandbox where nothing else is in there (`Surroundings.lose`); else it is
removed from the guest, and the others go on.
"""

import asyncio
from collections.abc import Coroutine, Sequence
from functools import partial
from typing import Final, Protocol

from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.messages import HostMessage, ProtocolViolation

from sealrun_runtime import leftovers, sharing
from sealrun_runtime.demand import Demand
from sealrun_runtime.handover import Handover
from sealrun_runtime.host_limits import HostLimits
from sealrun_runtime.shim import agent, placement, request, state
from sealrun_runtime.shim.agent import Agent, Silence
from sealrun_runtime.shim.container import LIVE, Container
from sealrun_runtime.shim.copies import Copies
from sealrun_runtime.shim.disks import Disks
from sealrun_runtime.shim.errors import (
    CalledOff,
    GuestFailed,
    HostFailed,
    ShimError,
    VmmFailed,
    WrongState,
    wire_text,
)
from sealrun_runtime.shim.executions import SIGKILL, Executions
from sealrun_runtime.shim.group import Group, carry_out
from sealrun_runtime.shim.log import guest as log_guest
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.process import KILLED, Descriptors, Process
from sealrun_runtime.shim.server import Progress
from sealrun_runtime.shim.shared_tree import SharedTree
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
REMOVE_SECONDS: Final = 60.0  # for the guest to unmount and forget it, emulated on a loaded machine


class Surroundings(Protocol):
    """What a container needs of its sandbox."""

    @property
    def agent(self) -> Agent:
        """Requests to the guest."""

    @property
    def streams(self) -> Streams:
        """All of the guest's."""

    @property
    def tree(self) -> SharedTree | None:
        """What the host shares; None where that is nothing."""

    @property
    def disks(self) -> Disks | None:
        """The host's block devices; None where there is no VM."""

    @property
    def failure(self) -> ShimError | None:
        """Why the sandbox ends."""

    def send(self, message: HostMessage) -> None:
        """To the guest."""

    def spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run a coroutine in a task whose failure ends the sandbox."""

    async def ready(self) -> None:
        """Return when the guest takes containers. Raises ShimError."""

    def check(self, member: "Member", demand: Demand) -> None:
        """Raises HostUnfit where the VM cannot become what the container is to be given."""

    async def hold(self, member: "Member", demand: Demand | None) -> None:
        """Make the VM large enough for a container that wants so much (None: that is there no more),
        and for the others. Raises ShimError."""

    def fail(self, error: ShimError) -> None:
        """End the sandbox."""

    def lose(self, member: "Member", error: ShimError) -> None:
        """End the container before its time."""

    def outlives(self, member: "Member") -> bool:
        """Whether the VM will be there without this container."""

    def settle(self) -> None:
        """A container is over."""


class Member:
    """Event loop only. It hears its stand-in (link.Hearer).

    asked: a `create` came, or none is expected any more. lost: why it ends before its time.
    over: nothing will be heard of it any more. gone: nothing is left but its state directory."""

    def __init__(
        self,
        handover: Handover,
        oci_config: bytes,
        directory: Directory,
        cgroup: Group | None,
        sandbox: Surroundings,
    ) -> None:
        self.handover = handover
        self.asked = self.over = False
        self.lost: ShimError | None = None
        self.gone = asyncio.Event()
        self._in_guest = self._dropped = False
        self._shared: Sequence[str] = ()
        self.cgroup = cgroup
        self._oci_config, self._sandbox = oci_config, sandbox
        self._directory = directory
        self._container = Container(handover, directory)
        self._executions = Executions(
            handover.id,
            sandbox.agent,
            sandbox.send,
            sandbox.spawn,
            join=self._join_cgroup,
            strike=partial(leftovers.strike, directory),
            reap=self._container.reap,
        )
        self._steering = Steering(
            self._container,
            sandbox.agent,
            self._executions,
            handover.container,
            resize=self._resize,
            limit=self._limit,
        )
        self._copies: Copies | None = None
        self._progress: Progress | None = None

    @property
    def id(self) -> str:
        """The container's."""
        return self.handover.id

    @property
    def status(self) -> Status:
        """As in the state document."""
        return self._container.status

    @property
    def ending(self) -> bool:
        """Whether its program has ended."""
        return self._container.ending

    def close(self) -> None:
        """It is gone, and the sandbox is not: let go of its state directory."""
        self._directory.close()

    def note(self, name: str, value: str) -> None:
        """Add an annotation to the state documents that follow."""
        self._container.note(name, value)

    # --- requests (see server.Requests) ----------------------------------------------------------

    async def create(self, pid: int, given: Descriptors, progress: Progress) -> None:
        """Takes the descriptors over. Raises ShimError."""
        self.asked = True
        try:
            if self.lost is not None:
                await self.gone.wait()
                raise self.lost
            self._fit_to_create()
        except ShimError:
            given.close()
            raise
        self._progress = progress
        try:
            process = self._container.process = self._process(pid, given)
            if self.cgroup is not None:
                await carry_out(self.cgroup, partial(self._join_cgroup, pid))
            digest = await self._prepare(process, given, progress)
            self._container.expect(Status.CREATING)
            self._container.created(digest)
        except ShimError as error:
            self._sandbox.lose(self, error)
            await self.gone.wait()
            raise self.lost or error from error
        except asyncio.CancelledError:
            self.call_off("whoever asked for the container went away")
            raise
        finally:
            given.close_shares()
            self._progress = None

    async def _share(self, given: Descriptors) -> None:
        """Let the guest see what its bundle has of the host. Raises HostFailed."""
        names = sharing.planned(self.handover).names
        if self._sandbox.tree is not None:
            await self._sandbox.tree.attach(self.id, names, given.shares)
            self._shared = names
        elif names:
            raise HostFailed("cannot share directories with the guest: its VM has no device for it")

    async def start(self) -> None:
        """Raises ShimError."""
        self._container.expect(Status.CREATED)
        if self._copies is not None:
            self._copies.watch(lambda indexes: self._sandbox.spawn(self._try_to_refresh(indexes)))
        try:
            await self._refresh()
            await self._begin()
        except WrongState:
            if self._sandbox.failure is not None:
                raise
            return  # the program ended, and its VM was taken away, before the answer was here
        try:
            self._container.started()
        except ShimError as error:  # nobody would know that it runs
            self._sandbox.lose(self, error)
            raise

    async def _refresh(self, indexes: frozenset[int] | None = None) -> None:
        """Bring the guest's copies of the engine's files up to date. Raises ShimError."""
        changed = self._copies.changed(indexes) if self._copies is not None else {}
        if changed:
            await self._sandbox.agent.request(
                lambda number: messages.RefreshFiles(id=number, container=self.id, files=changed),
                agent.INQUIRY_SECONDS,
            )

    async def _try_to_refresh(self, indexes: frozenset[int]) -> None:
        """Nobody asked, so nobody can be told."""
        try:
            await self._refresh(indexes)
        except ShimError as error:
            log.info("the guest's copies of the engine's files stay as they were: %s", error.text)

    async def _begin(self) -> None:
        """Let it run. Raises ShimError."""
        await self._sandbox.agent.request(
            lambda number: messages.StartContainer(id=number, container=self.id),
            agent.START_SECONDS,
        )

    async def execute(self, name: str, pid: int, given: Descriptors, config: bytes) -> None:
        """Takes the descriptors over. Raises ShimError."""
        try:
            self._container.expect(Status.CREATED, Status.RUNNING)
            if self._container.ending:
                raise WrongState("the container has ended")
        except ShimError:
            given.close()
            raise
        await self._executions.run(name, pid, given, config, self._sandbox.streams)

    async def steer(self, verb: str, argument: str) -> str:
        """Raises ShimError."""
        return await self._steering.carry_out(verb, argument)

    async def _resize(self, demand: Demand, *, strict: bool) -> None:
        if strict:
            self._sandbox.check(self, demand)
        await self._sandbox.hold(self, demand)

    async def _limit(self, limits: HostLimits) -> None:
        """The VM of a pod has none on the host but those of the pod's parent."""
        if self.cgroup is None or self.handover.pod is not None:
            return
        vm = placement.vm_limits(self.handover, limits)
        try:
            await carry_out(self.cgroup, partial(self.cgroup.limit, vm))
        except OSError as error:
            raise HostFailed(f"cannot limit the VM: {error.strerror}") from error

    async def kill(self, signal: int, *, everything: bool) -> None:
        """Raises ShimError."""
        self._container.expect(*LIVE)
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
            text = f"killed, the guest did not answer: {error.text}"
            self._sandbox.fail(GuestFailed(error.code, text))
        if signal == SIGKILL:
            asyncio.get_running_loop().call_later(KILLED_SECONDS, self._insist)

    def call_off(self, reason: str) -> None:
        """End it because nobody wants it any more; output that is still on its way to a reader who
        does not read is given up."""
        self.asked = True  # nobody is left to be told
        draining = self._container.ending
        self._sandbox.lose(self, CalledOff(reason))
        if draining:
            self._container.hurry()

    def _fit_to_create(self) -> None:
        self._container.expect(Status.CREATING)
        if self._progress is not None or self._container.ending:
            raise WrongState("the container is being created already")

    def _process(self, pid: int, given: Descriptors) -> Process:
        """Takes the descriptors over. Raises ShimError."""
        terminal = self.handover.container.terminal
        return Process(pid, given, self._sandbox.streams, self, terminal=terminal)

    async def _prepare(self, process: Process, given: Descriptors, progress: Progress) -> str:
        """Have it made in the guest; the digest of its image. Raises ShimError."""
        progress(Phase.BOOT.value, "waiting for the guest")
        await self._sandbox.ready()
        if self._container.ending:
            raise WrongState("the container was deleted meanwhile")
        await self._share(given)
        container = self.handover.container
        await self._sandbox.hold(self, container.demand)
        copied = sharing.planned(self.handover).copied
        files = request.files(container, copied)
        self._copies = Copies(container, files)
        disks: dict[int, str] = {}
        if self._sandbox.disks is not None:
            disks = await self._sandbox.disks.hold(self.id, container.block_devices)
        self._in_guest = True
        done = await self._sandbox.agent.request(
            lambda number: request.create_container(
                number, self.handover, self._oci_config, process, files, disks=disks
            ),
            agent.CREATE_SECONDS,
        )
        return wire_text(done.image_digest)

    # --- its end ---------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """It ends before its time, and so does its VM: the guest will not be heard any more."""
        if self._dropped:
            return
        if self._container.status in LIVE:
            if not self._container.ending:
                self._container.ending = True
                self._sandbox.spawn(self._finish(KILLED, reason, FLUSH_SECONDS))
        else:
            if self._container.status is Status.CREATING:
                self._container.abandon(reason)
            self._be_over()

    def drop(self, reason: str) -> None:
        """It ends before its time, and its VM goes on."""
        if not self._container.ending:
            self._container.ending = self._dropped = True
            self._sandbox.spawn(self._leave(reason))

    def hurry(self) -> None:
        """Wait no longer for whoever does not read its output."""
        self._container.hurry()

    async def dismiss(self) -> None:
        """Wait, for a bounded time, until the stand-in has gone with its code."""
        await self._container.dismiss()

    async def end_executions(self) -> None:
        """Nothing of the guest's will be heard any more."""
        await self._executions.end(0.0, 0.0)

    def _insist(self) -> None:
        """A KILL was answered a while ago."""
        if not self._container.ending:
            self._sandbox.fail(VmmFailed("killed, the guest did not carry it out"))
        else:
            self._container.hurry()

    async def _finish(self, code: int, reason: str, seconds: float | None) -> None:
        settle = REPORT_SECONDS if seconds is None else 0.0
        await asyncio.gather(
            self._container.finish(code, reason, seconds),
            self._executions.end(settle, FLUSH_SECONDS),
        )
        if self._sandbox.outlives(self):
            await self._remove_from_guest()
        self._be_over()

    async def _leave(self, reason: str) -> None:
        live = self._container.status in LIVE
        if not await self._remove_from_guest() and live:
            self._sandbox.fail(VmmFailed("the guest did not remove a container"))
        if live:
            await self._finish(KILLED, reason, FLUSH_SECONDS)
        else:
            self._container.abandon(reason)
            self._be_over()

    async def _remove_from_guest(self) -> bool:
        """Whether nothing of it runs there any more."""
        if not self._in_guest:
            return True
        self._in_guest = False
        try:
            await self._sandbox.agent.request(
                lambda number: messages.DeleteContainer(id=number, container=self.id),
                REMOVE_SECONDS,
            )
        except ShimError as error:
            if isinstance(error, GuestFailed) and error.code is ErrorCode.CONTAINER_UNKNOWN:
                return True  # creating it failed there
            log.error("the guest did not remove container %s: %s", self.id, error.text)
            return False
        finally:
            if self._sandbox.tree is not None:
                self._sandbox.tree.detach(self.id, self._shared)
            if self._sandbox.disks is not None:
                await self._sandbox.disks.release(self.id)
        return True

    def _be_over(self) -> None:
        self.over = True
        if self._copies is not None:
            self._copies.close()
        self._sandbox.settle()

    # --- what the guest says ---------------------------------------------------------------------

    def progressed(self, message: messages.Progress) -> None:
        """To whoever waits for `create`, and into the log."""
        text = wire_text(message.text)
        if message.total_bytes > 0:
            text += f" ({_mib(message.done_bytes)} of {_mib(message.total_bytes)} MiB)"
        log_guest(f"{message.phase.value}: {text}")
        if self._progress is not None:
            self._progress(message.phase.value, text)

    def exited(self, message: messages.ProcessExited) -> None:
        """Raises ProtocolViolation."""
        if message.process:
            self._executions.exited(message)
            return
        if self._container.ending:
            if self._sandbox.failure is None and not self._dropped:
                raise ProtocolViolation("a second end of the container")
            return
        if self._container.status is Status.CREATING:
            raise ProtocolViolation("the end of a container that was not created")
        log.info("the container ended with %d", message.code)
        self._container.ending = True
        if message.oom:
            self.note(state.OOM, "true")
        self._sandbox.spawn(self._finish(message.code, "", None))

    # --- what its stand-in says (link.Hearer) ----------------------------------------------------

    def resized(self) -> None:
        """See link.Hearer."""
        process = self._container.process
        if process is not None and process.has_terminal and self._container.status in LIVE:
            rows, columns = process.size
            self._sandbox.send(
                messages.ResizeTerminal(container=self.id, rows=rows, columns=columns)
            )

    def signalled(self, number: int) -> None:
        """See link.Hearer. Engines signal a container by `kill`."""

    def killed(self) -> None:
        """See link.Hearer."""
        self.call_off("its stand-in process was killed")

    def _join_cgroup(self, pid: int) -> None:
        if self.cgroup is None:
            return
        try:
            self.cgroup.join(pid)
        except OSError as error:
            text = f"cannot put the stand-in into the cgroup: {error.strerror}"
            raise HostFailed(text) from error


def _mib(count: int) -> str:
    return f"{count / 1048576:.1f}"
