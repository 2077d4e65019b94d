"""The TPM of a VM: swtpm in a directory of its own, as a user that owns nothing else.

It ends with its connection to the VMM, or to what is between them where nothing else measures what the
VM boots (sealrun_vmm/tee/tpm_relay.py), and with this process. Its seccomp filter is on.
"""

import asyncio
import contextlib
import os
import socket
import struct
from typing import Final

from sealrun_vmm.errors import HostUnfit, LaunchFailed
from sealrun_vmm.process import spawn
from sealrun_vmm.spec import VmSpec
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

ANSWER_SECONDS: Final = 20.0
"""What the emulator may take from its start to its first answer; it takes 0.02."""
# PTM_GET_CAPABILITY, PTM_INIT, for which it reads its state, and PTM_STOP: swtpm_ioctls(3)
_GREETING: Final = (struct.pack(">I", 1), struct.pack(">II", 2, 0), struct.pack(">I", 14))
_DONE: Final = bytes(4)
_CONTROL_BYTES: Final = 64
_NOBODYS: Final = "it runs as the user nobody, who has to be able to reach and execute it"
_REMEDY: Final = "look whether swtpm works (vm.swtpm, vm.tpm_state in sealrun.toml)"


async def serve(settings: VmSettings, spec: VmSpec, directory: Directory) -> Attendant:
    """Start the emulator; the VMM finds it listening on the socket `spec.tpm`. Raises HostUnfit,
    LaunchFailed, also where it does not answer within ANSWER_SECONDS."""
    program = tpm.emulator(settings.swtpm)
    state = tpm_state.make(program, settings.tpm_state)
    place = os.path.join(directory.path, DIRECTORY)
    with contextlib.ExitStack() as stack:
        try:
            tpm_state.copy(state, place, _NOBODY)
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            listener.bind(spec.tpm)
            listener.listen(1)
            if spec.firmware:  # the VMM is to find the emulator itself behind that socket
                kind, theirs = "fd", listener
                ours = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                ours.connect(spec.tpm)
            else:
                kind = "clientfd"
                ours, theirs = map(stack.enter_context, socket.socketpair())
        except OSError as error:
            raise HostUnfit(f"cannot give the VM a TPM: {error.strerror}") from error
        attendant = _emulator(program, place, kind, theirs, directory)
        theirs.close()
        await _greet(attendant, ours)
        if not spec.firmware:
            stack.pop_all()
            _measure(spec, listener, ours, attendant)
    return attendant


def _emulator(
    program: str, place: str, kind: str, channel: socket.socket, directory: Directory
) -> Attendant:
    """kind: what `channel`, its control channel, is: "fd" where it listens, or "clientfd". Raises
    LaunchFailed."""
    number = channel.fileno()
    command = [program, "socket", "--tpm2", "--tpmstate", "dir=.,mode=0600", "--terminate"]
    command += ["--ctrl", f"type=unixio,{kind}={number}", "--seccomp", "action=kill"]
    try:
        process = spawn(
            command,
            place,
            output=_OUTPUT,
            errors=LOG,
            descriptors=(number,),
            user=_NOBODY,
            enlist=lambda: leftovers.enlist(directory, ROLE),
        )
    except LaunchFailed as error:
        raise LaunchFailed(str(error), remedy=_NOBODYS) from error
    return Attendant(process, "the VM's TPM emulator", os.path.join(place, LOG))


async def _greet(attendant: Attendant, control: socket.socket) -> None:
    """Return when the emulator has answered, and has shown that it can be switched on. Raises LaunchFailed;
    then it runs no more."""
    loop = asyncio.get_running_loop()
    control.setblocking(False)

    async def asked() -> bytes:
        answer = b""
        for command in _GREETING:
            await loop.sock_sendall(control, command)
            answer = await loop.sock_recv(control, _CONTROL_BYTES)
            if answer[: len(_DONE)] != _DONE:
                break
        return answer

    ended = asyncio.ensure_future(attendant.process.wait())
    answer = asyncio.ensure_future(asked())
    try:
        await asyncio.wait(
            (answer, ended), timeout=ANSWER_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        said = answer.result() if answer.done() and not answer.exception() else b""
        if said[: len(_DONE)] == _DONE:
            control.setblocking(True)
            return
        if said:
            attendant.fail(f"cannot be switched on (result {said[: len(_DONE)].hex()})")
        elif not (answer.done() or ended.done()):
            attendant.fail(f"did not answer within {ANSWER_SECONDS:g} s")
        await attendant.process.kill()
        raise LaunchFailed(f"cannot boot the VM: {attendant.end()}", remedy=_REMEDY)
    finally:
        for task in (answer, ended):
            task.cancel()


def _measure(
    spec: VmSpec, listener: socket.socket, emulator: socket.socket, attendant: Attendant
) -> None:
    # Most VMs have no TPM.
    from sealrun_vmm.measurement import pcr
    from sealrun_vmm.tee import tpm_relay

    loop = asyncio.get_running_loop()

    def events() -> list[tuple[int, bytes]]:
        return [(event.pcr, event.digest) for event in pcr.events(spec)]

    def failed(how: str) -> None:
        with contextlib.suppress(RuntimeError):  # nobody is there to be told
            loop.call_soon_threadsafe(attendant.fail, how)

    tpm_relay.start(listener, emulator, events, failed)
