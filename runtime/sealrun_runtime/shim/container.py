"""One container as the host sees it: its state document, and its first program.

    creating --created--> created --started--> running --finish--> stopped
                             |                    |
                             +--paused/resumed----+
       any --abandon--> stopped

state.json is final before the stand-in is told the exit code, since engines look at it right after.
"""

from typing import Final

from sealrun_runtime.handover import Handover
from sealrun_runtime.shim import state
from sealrun_runtime.shim.errors import HostFailed, WrongState
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.process import Process
from sealrun_runtime.shim.state import State, Status
from sealrun_runtime.store import Directory

LIVE: Final = (Status.CREATED, Status.RUNNING, Status.PAUSED)
"""When there is a program in the guest."""


class Container:
    """The container of this sandbox. Event loop only."""

    def __init__(self, handover: Handover, directory: Directory) -> None:
        self.id = handover.id
        self.status = Status.CREATING
        self.ending = False
        self.process: Process | None = None
        self._before_pause = Status.CREATING
        self._handover, self._directory = handover, directory
        self._annotations = {**handover.container.annotations}
        if handover.image:
            self.note(state.IMAGE, handover.image)
        self.note(state.ROOT, "image" if handover.image else "bundle")

    def note(self, name: str, value: str) -> None:
        """Add an annotation to the state documents that follow."""
        self._annotations[name] = value

    def document(self, status: Status) -> State:
        """The state as it is, but for the status."""
        container = self._handover.container
        return State(
            oci_version=container.oci_version,
            id=self.id,
            status=status,
            pid=self.process.pid if self.process and status is not Status.STOPPED else 0,
            bundle=container.bundle,
            annotations=self._annotations,
        )

    def created(self, image_digest: str) -> None:
        """The guest prepared the container. Raises HostFailed."""
        if image_digest:
            self.note(state.IMAGE_DIGEST, image_digest)
        self._become(Status.CREATED)

    def started(self) -> None:
        """The guest let the program run. Raises HostFailed."""
        if self.status is not Status.CREATED:  # it ended before we were told that it began
            return
        if self.process is not None:
            self.process.begin()
        self._become(Status.RUNNING)

    def paused(self) -> None:
        """The guest froze it. Raises HostFailed."""
        if self.status in (Status.CREATED, Status.RUNNING):
            self._before_pause = self.status
            self._become(Status.PAUSED)

    def resumed(self) -> None:
        """The guest lets it go on. Raises HostFailed."""
        if self.status is Status.PAUSED:
            self._become(self._before_pause)

    def expect(self, *allowed: Status) -> None:
        """Raises WrongState where the status is not one of `allowed`."""
        if self.status not in allowed:
            raise WrongState(f"the container is {self.status}")

    def reap(self) -> None:
        """The stand-in reaps what execs left in its namespace of pids."""
        if self.process is not None:
            self.process.reap()

    def hurry(self) -> None:
        """Wait no longer for whoever does not read the container's output."""
        if self.process is not None:
            self.process.hurry()

    async def finish(self, code: int, reason: str, seconds: float | None) -> None:
        """The program ended. Pass on the output that is left, for at most `seconds` (None: until
        `hurry`), make the state final, tell the stand-in. reason: empty for an ordinary end."""
        self.ending = True
        if self.process is not None:
            await self.process.flush(seconds)
        self.note(state.EXIT_CODE, str(code))
        self._stop(reason)
        if self.process is not None:
            self.process.tell(code)

    def abandon(self, reason: str) -> None:
        """It never came to be: close everything; the stand-in ends by itself."""
        self.ending = True
        self._stop(reason)
        if self.process is not None:
            self.process.abandon()

    async def dismiss(self) -> None:
        """Wait, for a bounded time, until the stand-in has gone with its code."""
        if self.process is not None:
            await self.process.dismiss()

    def _become(self, status: Status) -> None:
        try:
            state.write(self._directory, self.document(status))
        except OSError as error:
            raise HostFailed(f"cannot write the container's state: {error.strerror}") from error
        self.status = status

    def _stop(self, reason: str) -> None:
        if reason:
            self.note(state.EXIT_REASON, reason)
        try:
            self._become(Status.STOPPED)
        except HostFailed as error:  # the directory is gone, or the disk is full: end all the same
            log.error("%s", error.text)
            self.status = Status.STOPPED
