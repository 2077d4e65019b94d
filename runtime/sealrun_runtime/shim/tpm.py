"""The TPM of a VM: swtpm in a directory of its own, as a user that owns nothing else.

It ends with its connection to the VMM, or to what is between them where nothing else measures what the
VM boots (sealrun_vmm/tee/tpm_relay.py), and with this process. Its seccomp filter is on.
"""

import contextlib
import os
import socket
from typing import Final

from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.process import spawn
from sealrun_vmm.spec import VmSpec
from sealrun_vmm.tee import tpm, tpm_state

from sealrun_runtime import leftovers
from sealrun_runtime.settings import VmSettings
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.shim.log import log
from sealrun_runtime.store import Directory

ROLE: Final = "swtpm"
DIRECTORY: Final = "tpm"  # in the state directory
LOG: Final = "swtpm.log"
_OUTPUT: Final = "swtpm.out"
_NOBODY: Final = 65534


def serve(settings: VmSettings, spec: VmSpec, directory: Directory) -> Attendant:
    """Start the emulator; the VMM finds it listening on the socket `spec.tpm`. Raises HostUnfit,
    LaunchFailed."""
    program = tpm.emulator(settings.swtpm)
    state = tpm_state.make(program, settings.tpm_state)
    place = os.path.join(directory.path, DIRECTORY)
    with contextlib.ExitStack() as stack:
        try:
            tpm_state.copy(state, place, _NOBODY)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(spec.tpm)
            listener.listen(1)
            ours, theirs = map(stack.enter_context, socket.socketpair())
        except OSError as error:
            raise HostUnfit(f"cannot give the VM a TPM: {error.strerror}") from error
        if spec.firmware:
            return _emulator(program, place, "fd", listener, directory)
        attendant = _emulator(program, place, "clientfd", theirs, directory)
        theirs.close()
        stack.pop_all()
        _measure(spec, listener, ours)
        return attendant


def _emulator(
    program: str, place: str, kind: str, channel: socket.socket, directory: Directory
) -> Attendant:
    """kind: what `channel`, its control channel, is: "fd" where it listens, or "clientfd"."""
    number = channel.fileno()
    command = [program, "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--terminate"]
    command += ["--ctrl", f"type=unixio,{kind}={number}", "--seccomp", "action=kill"]
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


def _measure(spec: VmSpec, listener: socket.socket, emulator: socket.socket) -> None:
    # Most VMs have no TPM.
    from sealrun_vmm.measurement import pcr
    from sealrun_vmm.tee import tpm_relay

    def events() -> list[tuple[int, bytes]]:
        return [(event.pcr, event.digest) for event in pcr.events(spec)]

    def failed(text: str) -> None:
        log.error("the VM's TPM: %s", text)

    tpm_relay.start(listener, emulator, events, failed)
