"""The TPM of a VM: swtpm in a directory of its own, as a user that owns nothing else.

It ends with its connection to the VMM, and with this process. Its seccomp filter is on.
"""

import os
import socket
from typing import Final

from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.process import spawn
from sealrun_vmm.tee import tpm, tpm_state

from sealrun_runtime import leftovers
from sealrun_runtime.settings import VmSettings
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.store import Directory

ROLE: Final = "swtpm"
DIRECTORY: Final = "tpm"  # in the state directory
LOG: Final = "swtpm.log"
_OUTPUT: Final = "swtpm.out"
_NOBODY: Final = 65534


def serve(settings: VmSettings, name: str, directory: Directory) -> Attendant:
    """Start the emulator; the VMM finds it listening on the socket `name`. Raises HostUnfit,
    LaunchFailed."""
    program = tpm.emulator(settings.swtpm)
    state = tpm_state.make(program, settings.tpm_state)
    place = os.path.join(directory.path, DIRECTORY)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            tpm_state.copy(state, place, _NOBODY)
            listener.bind(name)
            listener.listen(1)
        except OSError as error:
            raise HostUnfit(f"cannot give the VM a TPM: {error.strerror}") from error
        number = listener.fileno()
        command = [program, "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--terminate"]
        command += ["--ctrl", f"type=unixio,fd={number}", "--seccomp", "action=kill"]
        process = spawn(
            command,
            place,
            output=_OUTPUT,
            errors=LOG,
            descriptors=(number,),
            user=_NOBODY,
            enlist=lambda: leftovers.enlist(directory, ROLE),
        )
    return Attendant(process, "the VM's TPM", os.path.join(place, LOG))
