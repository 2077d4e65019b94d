"""One sandbox: a VM (vm.py) and the containers in it (member.py), to the end of both.

Whatever ends a sandbox early (the guest's word, its silence, its nonsense, the VM's death, the
stand-in's, a signal, a delete) goes through `fail`; the first reason counts. The VM has no life of
its own: when its last container has ended it is taken away at once, since all that it holds is
memory.

A container that stands alone is admitted at the start. Those of a pod join: the VM is launched with the
first that tells what it shall be like, and no more are let in once the infra container has ended.
"""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Coroutine
from typing import Final

import msgspec
from sealrun_protocol import messages
from sealrun_protocol.messages import HostMessage, ProtocolViolation

from sealrun_runtime import handover as handing
from sealrun_runtime.demand import Demand
from sealrun_runtime.handover import Handover
from sealrun_runtime.shim import placement
from sealrun_runtime.shim.agent import Agent
from sealrun_runtime.shim.disks import Disks
from sealrun_runtime.shim.errors import (
    CalledOff,
    NotFound,
    PodClosed,
    Refused,
    ShimError,
    WrongState,
    wire_text,
)
from sealrun_runtime.shim.group import Group
from sealrun_runtime.shim.infra import Infra
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.machine import Launched
from sealrun_runtime.shim.member import Member
from sealrun_runtime.shim.network import has_own_network, is_network_of
from sealrun_runtime.shim.process import Descriptors
from sealrun_runtime.shim.seat import ASKED_SECONDS, Seat
from sealrun_runtime.shim.server import Progress, Server
from sealrun_runtime.shim.shared_tree import SharedTree
from sealrun_runtime.shim.state import Status
from sealrun_runtime.shim.streams import Streams
from sealrun_runtime.shim.vm import Vm
from sealrun_runtime.store import Directory

SHARE: Final = "let the pod share its network (podman pod create --share net,...)"

Launcher = Callable[[Handover], Awaitable[Launched]]
"""Raises ShimError."""


class Sandbox:
    """The one mutable object of the shim (server.Requests, member.Surroundings, vm.Owner). Event loop
    only."""

    def __init__(self, handover: Handover, cgroup: Group | None, launcher: Launcher) -> None:
        """handover: of the container that the sandbox was made for. cgroup: the one that this process
        is in. empty: no container ever came."""
        self._founder = self._handover = handover
        self._founder_pid = 0  # of its stand-in
        self._cgroup, self._launcher = cgroup, launcher
        self._vm = Vm(self)
        self.failure: ShimError | None = None
        self.empty = True
        self._seats: dict[str, Seat] = {}
        self._door: Server | None = None
        self._infra_ended = False
        self._facts: dict[str, str] = {}
        self._launching: asyncio.Task[None] | None = None
        self._retiring: dict[Member, asyncio.Task[None]] = {}
        self._ending = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ------------------------------------------------------------------------------------

    def boot(self, launched: Launched) -> None:
        """The VM was launched. Raises HostFailed, HostUnfit."""
        self._vm.listen(launched, self._handover)
        self._adopt_network()

    def admit(
        self,
        handover: Handover,
        oci_config: bytes,
        directory: Directory,
        cgroup: Group | None,
        listener: socket.socket,
    ) -> None:
        """A container comes into the sandbox. Takes the listener over."""
        member = (Infra if handover.idle else Member)(handover, oci_config, directory, cgroup, self)
        if handover.image:
            log.info("image %s, named by %s", handover.image, handover.image_source)
        for line in handover.container.left_out:
            log.info("config.json: %s", line)
        for name, value in self._facts.items():
            member.note(name, value)
        self._seats[handover.id] = Seat(member, listener, self)
        self.empty = False

    def open(self, listener: socket.socket) -> None:
        """Let the containers of a pod come. Takes the listener over."""
        self._door = Server(listener, self)
        self.spawn(self._expect_somebody())

    async def run(self) -> None:
        """Return when the sandbox is over and nothing of it is left but state directories."""
        await self._ending.wait()
        if self._door is not None:
            await self._door.close()
        under_way = [*self._retiring.values(), *([self._launching] if self._launching else [])]
        if under_way:
            await asyncio.wait(under_way)
        members = self._members()
        for member in members:
            await member.end_executions()
        await self._vm.take_down()
        await asyncio.gather(*(member.dismiss() for member in members))
        self.agent.fail(WrongState("the container has ended"))
        for cgroup in {self._cgroup, *(member.cgroup for member in members)}:
            _remove(cgroup)
        for member in members:
            member.gone.set()
        await asyncio.gather(*(seat.close() for seat in self._seats.values()))

    def fail(self, error: ShimError) -> None:
        """End the sandbox because of `error`, unless it is ending already."""
        if self.failure is not None or self._ending.is_set():
            return
        log.error("ending: %s", error.text)
        self.failure = error
        self._vm.fail(error)
        for member in self._members():
            member.lost = member.lost or error
            member.end(error.text)

    def call_off(self, reason: str) -> None:
        """End the sandbox because nobody wants it any more; output that is still on its way to a
        reader who does not read is given up."""
        members = self._members()
        draining = [member for member in members if member.ending]
        for member in members:
            member.asked = True  # nobody is left to be told
        self.fail(CalledOff(reason))
        for member in draining:
            member.hurry()
        if not members:
            self._ending.set()

    def broken(self, text: str) -> None:
        """See server.Requests."""
        self.fail(ShimError(text))

    # --- a pod -----------------------------------------------------------------------------------

    async def join(self, container: str, directory: int, listener: int) -> None:
        """See server.Requests."""
        place = Directory("", container, directory)
        door = socket.socket(fileno=listener)
        try:
            handover, oci_config = handing.read(place)
            self._expect_open(handover)
            cgroup = placement.make(handover, place)
        except ShimError:
            door.close()
            place.close()
            if self.empty:  # it was made for this one
                self._ending.set()
            raise
        self.admit(handover, oci_config, place, cgroup, door)
        self._vm.allow(handover)
        if self._launching is None and not self._vm.launched and not handover.idle:
            self._launching = self.spawn(self._launch(self._like(handover)))

    def _expect_open(self, handover: Handover) -> None:
        """Raises ShimError."""
        if self.failure is not None and self.empty:
            raise self.failure
        if self._door is None or self.failure is not None or self._ending.is_set():
            raise PodClosed("the sandbox takes no container any more")
        if self._infra_ended:
            raise PodClosed("the pod has ended")
        if not self.empty and not is_network_of(handover, self._founder, self._founder_pid):
            raise Refused("the containers of a pod have one network, that of its VM", remedy=SHARE)
        if handover.id in self._seats:
            raise WrongState(f"container {handover.id} is in the sandbox already")
        if self._vm.launched or self._launching is not None:
            if handover.init_data not in (b"", self._handover.init_data):
                raise Refused("the pod's VM was started with other init-data")
            if handover.config.tee not in ("auto", self._handover.config.tee):
                raise Refused(f"the pod's VM was started with tee {self._handover.config.tee}")

    def _like(self, handover: Handover) -> Handover:
        """The VM that is made for the pod when its first container with a program comes: what that
        one says of the VM and the tenant, in the place of the infra container."""
        container = self._founder.container
        if not self._founder.idle:  # the sysctl of one that runs is its own
            container = msgspec.structs.replace(container, sysctl={})
        devices = handover.container.block_devices
        container = msgspec.structs.replace(container, block_devices=devices)
        return msgspec.structs.replace(handover, id=self._founder.id, container=container)

    async def _launch(self, handover: Handover) -> None:
        self._handover = handover
        try:
            self.boot(await self._launcher(handover))
        except ShimError as error:
            self.fail(error)
            return
        for member in self._members():
            self._vm.allow(member.handover)

    def _adopt_network(self) -> None:
        """Where the founder's stand-in made the network namespace itself. Raises HostFailed,
        HostUnfit."""
        if self._vm.network is not None and self._founder_pid and has_own_network(self._founder):
            self._vm.network.adopt(self._founder_pid)

    async def _expect_somebody(self) -> None:
        await asyncio.sleep(ASKED_SECONDS)
        if not self._seats:
            self.call_off("nobody came into the pod")

    async def _retire(self, member: Member) -> None:
        """It is over, and the sandbox goes on."""
        await member.dismiss()
        with contextlib.suppress(ShimError):
            await self._vm.hold(member.id, None)
        _remove(member.cgroup)
        member.gone.set()
        seat = self._seats.pop(member.id)
        await seat.close()
        member.close()
        del self._retiring[member]

    # --- requests (server.Requests) --------------------------------------------------------------

    async def create(
        self, container: str, pid: int, given: Descriptors, progress: Progress
    ) -> None:
        """See server.Requests."""
        try:
            member = self._member(container)
            if container == self._founder.id:
                self._founder_pid = pid
                self._adopt_network()
        except ShimError:
            given.close()
            raise
        await member.create(pid, given, progress)

    async def start(self, container: str) -> None:
        """See server.Requests."""
        member = self._member(container)
        if self._vm.network is not None and not member.handover.idle:
            await self._vm.network.follow()
        await member.start()

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
        await member.gone.wait()

    def _member(self, container: str) -> Member:
        try:
            return self._seats[container].member
        except KeyError:
            text = f"no container {wire_text(container)} in this sandbox"
            raise NotFound(text) from None

    def _members(self) -> list[Member]:
        return [seat.member for seat in self._seats.values()]

    # --- for its containers (member.Surroundings) ------------------------------------------------

    @property
    def agent(self) -> Agent:
        """See member.Surroundings."""
        return self._vm.agent

    @property
    def streams(self) -> Streams:
        """See member.Surroundings."""
        return self._vm.streams

    @property
    def tree(self) -> SharedTree | None:
        """See member.Surroundings."""
        return self._vm.tree

    @property
    def disks(self) -> Disks | None:
        """See member.Surroundings."""
        return self._vm.disks

    def send(self, message: HostMessage) -> None:
        """See member.Surroundings."""
        self._vm.send(message)

    async def ready(self) -> None:
        """See member.Surroundings."""
        await self._vm.ready()

    def check(self, member: Member, demand: Demand) -> None:
        """See member.Surroundings."""
        self._vm.check(member.id, demand)

    async def hold(self, member: Member, demand: Demand | None) -> None:
        """See member.Surroundings."""
        await self._vm.hold(member.id, demand)

    def lose(self, member: Member, error: ShimError) -> None:
        """See member.Surroundings."""
        member.lost = member.lost or error
        if self.outlives(member):
            member.drop(error.text)
        else:
            self.fail(error)

    def outlives(self, member: Member) -> bool:
        """See member.Surroundings."""
        others = (other for other in self._members() if other is not member)
        return self.failure is None and any(not other.over for other in others)

    def settle(self) -> None:
        """See member.Surroundings."""
        over = [member for member in self._members() if member.over]
        self._infra_ended |= any(_is_infra(member.handover) for member in over)
        if len(over) == len(self._seats):
            self._ending.set()
            return
        for member in over:
            if member not in self._retiring:  # another one is over while it is seen off
                self._retiring[member] = self.spawn(self._retire(member))

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

    # --- what the guest says of them (vm.Owner) --------------------------------------------------

    def note(self, name: str, value: str) -> None:
        """See vm.Owner."""
        self._facts[name] = value
        for member in self._members():
            member.note(name, value)

    def progressed(self, message: messages.Progress) -> None:
        """See vm.Owner."""
        if message.container not in self._seats:
            raise ProtocolViolation("progress of a container that is not there")
        self._seats[message.container].member.progressed(message)

    def exited(self, message: messages.ProcessExited) -> None:
        """See vm.Owner."""
        if message.container not in self._seats or not 0 <= message.code <= 255:
            raise ProtocolViolation("the end of a container that is not there, or no exit code")
        self._seats[message.container].member.exited(message)


def _is_infra(handover: Handover) -> bool:
    return handover.pod is not None and handover.pod.infra


def _remove(cgroup: Group | None) -> None:
    for path in cgroup.remove() if cgroup is not None else ():
        log.info("cgroup %s stays: it is in use", path)
