"""Between a VMM and its TPM emulator: measures what the VM boots, and answers in time.

A VMM that starts the kernel itself has no firmware that would measure it. So whenever the VMM switches
the TPM on, it is started up here, tests itself, and is extended by what is booted, before the VMM goes
on. And Cloud Hypervisor waits 100 ms for the answer to a command, which the making of a key takes: one
that takes long is answered TPM_RC_RETRY meanwhile. Linux, and the agent, send it again then (TPM
Library, part 2, 6.6.3), and get the answer.

What comes from the VMM is a guest's. It goes to the emulator as it is, a command at a time; no more
of it is read than its length. The control channel: swtpm_ioctls(3).
"""

import contextlib
import os
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from sealrun_protocol import tpm2

from sealrun_vmm.errors import VmmError

SECONDS: Final = 0.01
"""What a command may take before its sender is told to send it again: the rest of what Cloud Hypervisor
waits is for a busy host, on which this thread and the virtual CPU's have to wait for their turns."""

ANSWER_SECONDS: Final = 20.0
"""What the emulator may take for what it is asked from here, before it counts as hung. The longest, its
self-test, takes 0.1 on a loaded host; and the VMM, which waits meanwhile, has 60."""

_INIT, _SET_DATA_FD = 2, 16  # commands of the control channel
_CONTROL_BYTES: Final = 64  # the longest in use has 20
_CODE: Final = struct.Struct(">I")

Events = Iterable[tuple[int, bytes]]
"""PCRs and the SHA-256 digests by which they are extended, in order."""


class _Ended(Exception):
    """A connection was closed."""


class _Lost(Exception):
    """The emulator is of no use; the text says how that is told, as the end of a sentence."""


def start(
    listener: socket.socket,
    emulator: socket.socket,
    measure: Callable[[], Events],
    failed: Callable[[str], None],
) -> None:
    """Serve the VMM that connects to `listener`, in a thread; `emulator` is a connection to the emulator's
    control channel. Both are owned here. The thread ends when the VMM or the emulator closes a connection,
    or anything fails, and closes all others.

    measure: says what the VM boots; may take a while; raises OSError, VmmError. failed: is told how the
    TPM failed, as the end of a sentence, before the VMM can notice; not where the VMM ended first. Both
    are called in the thread."""

    def serve() -> None:
        with listener, emulator, contextlib.ExitStack() as stack:
            try:
                events = tuple(measure())
                vmm = stack.enter_context(_accept(listener, emulator))
                relay = _Relay(vmm, emulator, events)
                stack.callback(relay.close)
                while True:
                    relay.serve()
            except (_Ended, BrokenPipeError, ConnectionResetError):
                pass  # the VMM's: what the emulator does to a connection is _Lost
            except _Lost as error:
                failed(str(error))
            except (tpm2.TpmError, VmmError) as error:
                failed(f"failed: {error}")
            except OSError as error:
                where = f"{error.filename}: " if error.filename else ""
                failed(f"failed: {where}{error.strerror or error}")

    threading.Thread(target=serve, name="tpm", daemon=True).start()


def _accept(listener: socket.socket, emulator: socket.socket) -> socket.socket:
    """The VMM's connection. Raises _Lost where the emulator ends before there is one."""
    if emulator in _readable((listener, emulator), None):
        raise _Lost("ended")
    return listener.accept()[0]


@contextlib.contextmanager
def _asking(emulator: socket.socket) -> Iterator[None]:
    """What goes wrong with this connection is the emulator's. Raises _Lost."""
    emulator.settimeout(ANSWER_SECONDS)
    try:
        yield
    except TimeoutError as error:
        raise _Lost(f"did not answer within {ANSWER_SECONDS:g} s") from error
    except (OSError, _Ended) as error:
        raise _Lost("ended") from error


class _Pending(NamedTuple):
    """A command that the emulator was given. waiting: its sender was not answered yet."""

    command: bytes
    waiting: bool


class _Relay:
    def __init__(
        self, vmm: socket.socket, emulator: socket.socket, events: Sequence[tuple[int, bytes]]
    ) -> None:
        """vmm, emulator: connections of the control channel."""
        self._vmm, self._emulator, self._events = vmm, emulator, events
        self._tpm, self._theirs = socket.socketpair()
        self._guest: socket.socket | None = None
        self._pending: _Pending | None = None
        self._late: tuple[bytes, bytes] | None = None  # a command, and an answer nobody waited for

    def close(self) -> None:
        """The TPM's own connections."""
        for end in (self._tpm, self._theirs, self._guest):
            if end is not None:
                end.close()

    def serve(self) -> None:
        """Wait, and deal with what comes. Raises _Ended, _Lost, OSError, TpmError."""
        pending = self._pending
        channels = [self._vmm, self._emulator, self._tpm]
        # While the emulator works on what was sent again already, the next one waits for it.
        if self._guest is not None and (pending is None or not pending.waiting):
            channels.append(self._guest)
        ready = _readable(channels, SECONDS if pending and pending.waiting else None)
        if not ready and pending and self._guest:
            self._guest.sendall(tpm2.AGAIN)
            self._pending = _Pending(pending.command, waiting=False)
        if self._emulator in ready:  # it speaks only when it is spoken to
            raise _Lost("ended")
        if self._tpm in ready:
            self._answered()
        elif self._guest in ready:
            self._asked(self._guest)
        elif self._vmm in ready:
            self._controlled()

    def _asked(self, guest: socket.socket) -> None:
        """The guest has a command, and the emulator an older one or none."""
        command = _message(guest)
        if self._late and self._late[0] == command:
            guest.sendall(self._late[1])
        elif self._pending is None:
            self._tell(command)
            self._pending = _Pending(command, waiting=True)
        elif self._pending.command == command:
            self._pending = _Pending(command, waiting=True)
        else:  # whoever sent the older one gave up
            guest.sendall(tpm2.AGAIN)
        self._late = None

    def _answered(self) -> None:
        answer, pending = self._answer(), self._pending
        self._pending = None
        if pending is None:
            return
        if pending.waiting and self._guest:
            self._guest.sendall(answer)
        else:
            self._late = pending.command, answer

    def _controlled(self) -> None:
        """One command of the VMM's control channel, and its answer."""
        command, descriptors, _, _ = socket.recv_fds(self._vmm, _CONTROL_BYTES, 1)
        (code,) = _CODE.unpack_from(command.ljust(_CODE.size, b"\0"))
        if code != _SET_DATA_FD or self._guest is not None:
            for (
                descriptor
            ) in descriptors:  # Cloud Hypervisor sends its standard input with each command
                os.close(descriptor)
        elif descriptors:
            self._guest = socket.socket(fileno=descriptors[0])
        if not command:
            raise _Ended
        with _asking(self._emulator):
            answer = self._control(command, code)
        if code == _INIT:
            if answer[: _CODE.size] != bytes(_CODE.size):
                raise _Lost(f"cannot be switched on (result {answer[: _CODE.size].hex()})")
            self._switched_on()
        self._vmm.sendall(answer)

    def _control(self, command: bytes, code: int) -> bytes:
        """The emulator's answer. Raises _Ended, OSError."""
        if code == _SET_DATA_FD:
            socket.send_fds(self._emulator, [command], [self._theirs.fileno()])
            self._theirs.close()
        else:
            self._emulator.sendall(command)
        if not (answer := self._emulator.recv(_CONTROL_BYTES)):
            raise _Ended
        return answer

    def _switched_on(self) -> None:
        """Raises _Lost, TpmError."""
        if self._pending is not None:  # an answer from before is still to be read
            self._answer()
        self._pending = self._late = None
        tpm2.started(self._ask(tpm2.startup()))
        tpm2.done(self._ask(tpm2.self_test()), "test itself")
        for pcr, digest in self._events:
            tpm2.done(self._ask(tpm2.extend(pcr, digest)), f"extend PCR {pcr}")

    def _ask(self, command: bytes) -> bytes:
        """Raises _Lost, TpmError."""
        self._tell(command)
        return self._answer()

    def _tell(self, command: bytes) -> None:
        """Raises _Lost."""
        with _asking(self._tpm):
            self._tpm.sendall(command)

    def _answer(self) -> bytes:
        """Raises _Lost, TpmError."""
        with _asking(self._tpm):
            return _message(self._tpm)


def _readable(channels: Sequence[socket.socket], seconds: float | None) -> list[socket.socket]:
    poll = select.poll()
    by_number = {channel.fileno(): channel for channel in channels}
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(seconds and seconds * 1000)]


def _message(channel: socket.socket) -> bytes:
    """One command or answer. Raises _Ended, OSError, TpmError."""
    message = b""
    wanted = tpm2.HEADER_BYTES
    while len(message) < wanted:
        part = channel.recv(wanted - len(message))
        if not part:
            raise _Ended
        message += part
        if len(message) == tpm2.HEADER_BYTES:
            wanted = tpm2.length(message)
            if not tpm2.HEADER_BYTES <= wanted <= tpm2.RESPONSE_BYTES:
                raise tpm2.TpmError(f"a command or an answer of a TPM has {wanted} bytes")
    return message
