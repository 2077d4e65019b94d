"""A process beside the VMM without which the VM is lost: a file server, a TPM emulator."""

import asyncio

from sealrun_vmm.process import VmmProcess, last_line

from sealrun_runtime.shim.log import log


class Attendant:
    """Event loop only."""

    def __init__(self, process: VmmProcess, what: str, log: str) -> None:
        """what: names it in a message. log: path of the file with its messages."""
        self.process = process
        self._what, self._log = what, log
        self._how = ""
        self._killing: asyncio.Task[None] | None = None

    def fail(self, how: str) -> None:
        """It is of no use any more, and ended. how: how that is told, as the end of a sentence."""
        if not self._how:
            self._how = how
            log.error("%s %s", self._what, how)
            self._killing = asyncio.ensure_future(self.process.kill())

    @property
    def failed(self) -> bool:
        """Whether it was found to be of no use, rather than ending for want of a VMM."""
        return bool(self._how)

    def end(self) -> str:
        """How its end is told, once its process is gone."""
        words = last_line(self._log)
        return f"{self._what} {self._how or 'ended'}" + (f": {words}" if words else "")
