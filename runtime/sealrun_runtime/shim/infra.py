"""The infra container of a pod: it stands for the pod as long as it lives, and runs nothing in the guest.

What engines give it is a program that sleeps (pause, catatonit), so that namespaces have an owner. In a
VM the agent is that owner, and its image would have to come from a registry that has no such image.
"""

import os
import signal
from typing import Final

from sealrun_protocol import messages
from sealrun_protocol.errors import Phase
from sealrun_protocol.messages import ProtocolViolation

from sealrun_runtime.shim.container import LIVE
from sealrun_runtime.shim.errors import Refused, WrongState
from sealrun_runtime.shim.member import Member
from sealrun_runtime.shim.process import KILLED, Descriptors, Process
from sealrun_runtime.shim.server import Progress
from sealrun_runtime.shim.state import Status

# What pause and catatonit make of the signals that end them.
_CODES: Final[dict[int, int]] = {signal.SIGTERM: 0, signal.SIGINT: 0, signal.SIGKILL: KILLED}
_NOTHING: Final = "the infra container of a pod runs nothing"


class Infra(Member):
    """Event loop only."""

    def _process(self, pid: int, given: Descriptors) -> Process:
        """Its stdio is closed at once: nobody will write there."""
        for fd in given[:3]:
            os.close(fd)
        null = [os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) for _ in range(3)]
        return super()._process(pid, Descriptors(null[0], null[1], null[2], given.link))

    async def _prepare(self, process: Process, given: Descriptors, progress: Progress) -> str:
        del process, given
        pod = self.handover.pod
        if pod is not None and pod.complete:
            progress(Phase.BOOT.value, "waiting for the guest")
            await self._sandbox.ready()
        return ""

    async def _begin(self) -> None:
        return

    async def execute(self, name: str, pid: int, given: Descriptors, config: bytes) -> None:
        """Raises WrongState."""
        del name, pid, config
        given.close()
        raise WrongState(_NOTHING)

    async def steer(self, verb: str, argument: str) -> str:
        """Raises ShimError."""
        del argument
        here = self._container
        match verb:
            case "pause":
                here.expect(Status.CREATED, Status.RUNNING)
                here.paused()
            case "resume":
                here.expect(Status.PAUSED)
                here.resumed()
            case "ps":
                here.expect(*LIVE)
                pid = here.process.pid if here.process is not None else 0
                return f'{{"pids":[{pid}],"processes":[]}}'
            case _:
                raise Refused(f"{_NOTHING}: there is nothing to {verb}")
        return ""

    async def kill(self, signal: int, *, everything: bool) -> None:
        """Raises WrongState."""
        del everything
        self._container.expect(*LIVE)
        code = _CODES.get(signal)
        if code is not None and not self._container.ending:
            self._container.ending = True
            self._sandbox.spawn(self._finish(code, "", None))

    def exited(self, message: messages.ProcessExited) -> None:
        """Raises ProtocolViolation."""
        raise ProtocolViolation("the end of a container that has no program")
