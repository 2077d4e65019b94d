"""A process beside the VMM without which the VM is lost: a file server, a TPM emulator."""

from typing import NamedTuple

from sealrun_vmm.process import VmmProcess, last_line


class Attendant(NamedTuple):
    """what: names it in a message. log: path of the file with its messages."""

    process: VmmProcess
    what: str
    log: str

    def end(self) -> str:
        """How its end is told."""
        words = last_line(self.log)
        return f"{self.what} ended" + (f": {words}" if words else "")
