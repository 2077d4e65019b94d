"""The CLI's end of the control socket (the shim's end: shim/server.py).

SOCK_SEQPACKET on ROOT/ID/shim.sock. A request is one datagram of fields separated by NUL, file
descriptors beside it:

    join    ID                          to a pod's shim: with the container's directory and the listening
                                        socket at which it is asked about from then on
    create  ID  STANDIN_PID             with stdin, stdout, stderr, stand-in link, and what the
                                        guest is to see of the host, as sharing.Plan.names has it
    start   ID
    exec    ID  PROCESS_ID  STANDIN_PID  PROCESS_JSON    with the first four; ok: the program runs
    kill    ID  SIGNAL  ALL(0|1)
    pause   ID
    resume  ID
    update  ID  RESOURCES_JSON
    ps      ID                          ok {"pids": [stand-ins' host pids], "processes": [guest's]}
    stats   ID                          ok {runc's `data` of a stats event}
    attest  ID  NONCE (hex)             ok {"tee", "evidence"}
    delete  ID  FORCE(0|1)

To `delete`, and to the `kill` of SIGKILL, the shim says `progress` at once, since the rest may take long.

The answer is any number of `progress PHASE TEXT`, then one `ok [JSON]` or `error KIND TEXT REMEDY`.
KIND is an ErrorCode value of the protocol with the guest, or `host-unfit`, `vmm-failed`,
`wrong-state`, `not-found`, `refused`, `pod-closed`, `internal`. No datagram is larger than DATAGRAM_BYTES. A shim is alive
exactly as long as its socket can be connected to; that of a pod's container as long as the container is
in there.

Where the program has a terminal, its three descriptors are the (raw) slave of a pseudo-terminal.
PROCESS_ID is drawn by the caller and used once in the container's life. On its link a stand-in says
`winch` (its terminal has another size) and, an exec's, `signal N` (it was sent signal N). It is told
`CODE`. End of file means that it was killed.

`_socket` instead of `socket`, which costs 8 ms (it imports enum and selectors): this module is on
the hot path, and needs of sockets only what the C module has.
"""

from _socket import AF_UNIX, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_SEQPACKET, SOL_SOCKET
from _socket import socket as Socket

from sealrun_runtime.errors import HostError, InvalidRequest, Reported, Silent, cause
from sealrun_runtime.store import POD, SOCKET, Directory

ANSWER_SECONDS = 60.0
LOOK_SECONDS = 1.0  # of silence, after which it is looked whether somebody stopped the shim
# Until a shim says that it has begun, before it is killed for standing still; in a pod others die with it.
WORD_SECONDS = 5.0
POD_WORD_SECONDS = 15.0
DATAGRAM_BYTES = 192 * 1024  # a datagram has to fit into net.core.wmem_default, 208 KiB


def address(directory: Directory) -> str:
    """Where the socket is, short however long the path is: addresses end at 107 bytes."""
    return f"/proc/self/fd/{directory.descriptor}/{SOCKET}"


def is_alive(directory: Directory) -> bool:
    """Whether the container has a living shim."""
    probe = Socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK)
    try:
        probe.connect(address(directory))
    except BlockingIOError:  # it listens and is busy
        return True
    except OSError:
        return False
    finally:
        probe.close()
    return True


class Connection:
    """One request and its answer. document: what came with `ok`."""

    document = ""

    def __init__(self, directory: Directory) -> None:
        """Raises ConnectionRefusedError or FileNotFoundError where no shim lives, Silent."""
        self._directory = directory
        self._socket = Socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC)
        try:
            self._socket.settimeout(ANSWER_SECONDS)
            self._connect()
        except (OSError, HostError):
            self._socket.close()
            raise

    def _connect(self) -> None:
        seconds = ANSWER_SECONDS
        while True:
            try:
                self._socket.connect(address(self._directory))
            except BlockingIOError:  # it takes nobody in, and as many wait as the kernel lets wait
                from time import sleep

                sleep(LOOK_SECONDS)
                seconds = self._wait_on(seconds - LOOK_SECONDS)
            else:
                return

    def close(self) -> None:
        """For a `create` that was not answered yet, this calls it off."""
        self._socket.close()

    def send(self, *fields: str, descriptors: bytes = b"") -> None:
        """Send the request. descriptors: C ints, native, as SCM_RIGHTS wants them."""
        rights = [(SOL_SOCKET, SCM_RIGHTS, descriptors)] if descriptors else []
        request = _encode(fields)
        if len(request) > DATAGRAM_BYTES:
            raise InvalidRequest(
                f"cannot {fields[0]}: the request is larger than {DATAGRAM_BYTES} bytes"
            )
        try:
            self._socket.sendmsg([request], rights)
        except OSError as error:
            raise HostError(f"cannot ask the shim: {cause(error)}") from error

    def receive(self, seconds: float | None = ANSWER_SECONDS) -> tuple[str, str] | None:
        """The next progress as (phase, text), None for `ok`.

        seconds: how long to wait, None for ever. Raises Reported, HostError, Silent."""
        fields = self._hear(seconds).decode("utf-8", "replace").split("\0")
        if fields[0] == "ok":
            self.document = (*fields[1:], "")[0]
            return None
        if fields[0] == "progress":
            phase, text = (*fields[1:], "", "")[:2]
            return phase, text
        if fields[0] == "error":
            kind, text, remedy = (*fields[1:], "", "", "")[:3]
            raise Reported(kind, text, remedy=remedy)
        raise HostError("the shim ended without an answer")

    def _hear(self, seconds: float | None) -> bytes:
        """The next datagram; empty where the shim has ended."""
        remaining = float("inf") if seconds is None else seconds
        while True:
            step = min(remaining, LOOK_SECONDS)
            self._socket.settimeout(step)
            try:
                return self._socket.recv(DATAGRAM_BYTES)
            except TimeoutError:
                remaining = self._wait_on(remaining - step)
            except ConnectionResetError:  # it had something to read when it was killed
                return b""
            except OSError as error:
                raise HostError(f"cannot hear the shim: {cause(error)}") from error

    def _wait_on(self, seconds: float) -> float:
        """`seconds`, where there is a point in waiting for so long. Raises Silent."""
        from sealrun_runtime import leftovers  # costs 1 ms, and most shims answer

        if pid := leftovers.stopped_shim(self._directory):
            raise Silent("the shim is stopped", remedy=f"use kill -CONT {pid}, or delete --force")
        if seconds <= 0:
            raise Silent("the shim does not answer", remedy="use delete --force")
        return seconds


def word_seconds(directory: Directory) -> float:
    """How long to wait for a sign of life of the shim that is to end the container."""
    return POD_WORD_SECONDS if directory.read(POD) else WORD_SECONDS


def ask(
    directory: Directory, *fields: str, seconds: float = ANSWER_SECONDS, first: float = 0.0
) -> str:
    """One short request; the document of its answer.

    seconds: longer than the shim itself waits for the guest. first: until its first word, where that
    comes sooner. Raises Reported, HostError, Silent; ConnectionRefusedError, FileNotFoundError where no shim
    lives."""
    connection = Connection(directory)
    try:
        connection.send(*fields)
        if connection.receive(first or seconds) is not None:
            while connection.receive(seconds) is not None:
                pass
        return connection.document
    finally:
        connection.close()


def _encode(fields: tuple[str, ...]) -> bytes:
    return "\0".join(fields).encode("utf-8", "surrogateescape")
