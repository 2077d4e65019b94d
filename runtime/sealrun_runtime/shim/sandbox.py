"""One sandbox: a VM (vm.py) and the containers in it (member.py), to the end of both.

Whatever ends a sandbox early (the guest's word, its silence, its nonsense, the VM's death, the
stand-in's, a signal, a delete) goes through `fail`; the first reason counts. The VM has no life of
its own: when its last container has ended it is taken away at once, since all that it holds is
memory.
"""

import asyncio
from collections.abc import Coroutine

from sealrun_protocol import messages
from sealrun_protocol.messages import HostMessage, ProtocolViolation

from sealrun_runtime.handover import Handover
from sealrun_runtime.shim.agent import Agent
from sealrun_runtime.shim.cgroup import Cgroup
from sealrun_runtime.shim.errors import CalledOff, NotFound, ShimError, WrongState, wire_text
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.machine import Launched
from sealrun_runtime.shim.member import Member
from sealrun_runtime.shim.network import has_own_network
from sealrun_runtime.shim.process import Descriptors
from sealrun_runtime.shim.server import Progress
from sealrun_runtime.shim.shared_tree import SharedTree
from sealrun_runtime.shim.state import Status
from sealrun_runtime.shim.streams import Streams
from sealrun_runtime.shim.vm import Vm
from sealrun_runtime.store import Directory


class Sandbox:
    """The one mutable object of the shim (server.Requests, member.Surroundings, vm.Owner). Event loop
    only."""

    def __init__(
        self,
        handover: Handover,
        oci_config: bytes,
        directory: Directory,
        cgroup: Cgroup | None,
    ) -> None:
        self._handover = handover
        self._vm = Vm(self)
        self.failure: ShimError | None = None
        self._members: dict[str, Member] = {}
        self._members[handover.id] = Member(handover, oci_config, directory, cgroup, self)
        self._asked = False  # a create came, or none is expected any more
        self._ending = asyncio.Event()
        self._gone = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- life ------------------------------------------------------------------------------------

    def boot(self, launched: Launched) -> None:
        """The VM was launched."""
        self._vm.listen(launched, self._handover)

    @property
    def failed_before_create(self) -> bool:
        """Whether a `create` that is still to come has a failure to be told."""
        return self.failure is not None and not self._asked

    async def run(self) -> None:
        """Return when the sandbox is over and nothing of it is left but its state directory."""
        await self._ending.wait()
        members = self._members.values()
        for member in members:
            await member.end_executions()
        await self._vm.take_down()
        await asyncio.gather(*(member.dismiss() for member in members))
        self.agent.fail(WrongState("the container has ended"))
        for member in members:
            member.remove_cgroup()
        self._gone.set()

    def fail(self, error: ShimError) -> None:
        """End the sandbox because of `error`, unless it is ending already."""
        if self.failure is not None or self._ending.is_set():
            return
        log.error("ending: %s", error.text)
        self.failure = error
        self._vm.fail(error)
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
            if self._vm.network is not None and has_own_network(self._handover):
                self._vm.network.adopt(pid)
        except ShimError:
            given.close()
            raise
        self._asked = True
        await member.create(pid, given, progress)

    async def start(self, container: str) -> None:
        """See server.Requests."""
        member = self._member(container)
        if self._vm.network is not None:
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
        await self._gone.wait()

    def _member(self, container: str) -> Member:
        try:
            return self._members[container]
        except KeyError:
            text = f"no container {wire_text(container)} in this sandbox"
            raise NotFound(text) from None

    # --- for its containers (member.Surroundings) ------------------------------------------------

    @property
    def agent(self) -> Agent:
        """See member.Surroundings."""
        return self._vm.agent

    @property
    def streams(self) -> Streams | None:
        """See member.Surroundings."""
        return self._vm.streams

    @property
    def tree(self) -> SharedTree | None:
        """See member.Surroundings."""
        return self._vm.tree

    def send(self, message: HostMessage) -> None:
        """See member.Surroundings."""
        self._vm.send(message)

    async def ready(self) -> None:
        """See member.Surroundings."""
        await self._vm.ready()

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
        for member in self._members.values():
            member.note(name, value)

    def progressed(self, message: messages.Progress) -> None:
        """See vm.Owner."""
        if message.container not in self._members:
            raise ProtocolViolation("progress of a container that is not there")
        self._members[message.container].progressed(message)

    def exited(self, message: messages.ProcessExited) -> None:
        """See vm.Owner."""
        if message.container not in self._members or not 0 <= message.code <= 255:
            raise ProtocolViolation("the end of a container that is not there, or no exit code")
        self._members[message.container].exited(message)
