"""Every message that host (shim) and guest (agent) exchange. Read this page first.

Transport: one byte stream per sandbox that the guest dials, ZMTP on it (shim: ROUTER, agent:
DEALER with identity `AGENT_IDENTITY`), one ZeroMQ frame per message, encoded as MessagePack with
the message's name in the member `type`.

Order of a life::

    guest: Hello                                   (once, first)
    host:  ConfigureSandbox           guest: Done | Failed
    host:  ConfigureNetwork           guest: Done | Failed     (where there is one; again on changes)
    host:  CreateContainer            guest: Progress*, OpenTunnel*, OpenContent*, then Done | Failed
    host:  RefreshFiles               guest: Done | Failed
    host:  StartContainer             guest: Done | Failed
    both:  StreamData, StreamCredit, StreamEnd, StreamReset
    host:  ExecProcess                guest: Done | Failed (the program runs, or could not)
    host:  ResizeTerminal             (no answer)
    host:  Signal…, Pause…, Resume…, Update…, ListProcesses, ReadStatistics, Attest
                                      guest: Done | Failed
    host:  ResizeSandbox              guest: Done | Failed
    host:  Ping, at intervals         guest: Done
    guest: ProcessExited              (after the last byte of the process's stdout and stderr)
    host:  DeleteContainer            guest: Done | Failed
    host:  ShutdownSandbox            guest: Done, then it powers off

Requests carry an `id` that increases. A request whose id was answered already is answered again and
not carried out twice: ZeroMQ may queue and resend silently.

Streams carry stdio and tunnels. A stream id names both directions. The host picks even ids (stdio,
given in CreateContainer), the guest odd ones (tunnels). Each direction starts with
`limits.STREAM_WINDOW_BYTES` of credit; a sender never has more unacknowledged bytes than its credit,
a receiver returns credit with StreamCredit as it passes bytes on. StreamEnd closes one direction
after its last byte; StreamReset ends both at once. Data for a stream that is not open is dropped:
it can cross a reset on the wire.

Everything the host sends is untrusted in the guest, and the other way round; a message that does
not decode, is too large, or comes in a wrong state ends the sandbox with `PROTOCOL_VIOLATION`.
"""

from typing import Annotated, Final

import msgspec

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.network import Network
from sealrun_protocol.volume import Volume

PROTOCOL_VERSION: Final = 1
AGENT_IDENTITY: Final = b"agent"
CHANNEL_PORT_NAME: Final = "sealrun.agent"  # the virtio-serial port's name
CHANNEL_VSOCK_PORT: Final = 1024  # of the host, where the VM has a vsock device instead


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, forbid_unknown_fields=True):
    """What all messages have in common: immutable, named on the wire by the class name."""


# --- host to guest -------------------------------------------------------------------------------


class Request(Message, frozen=True, kw_only=True):
    """A message that is answered by Done or Failed with the same id."""

    id: int


class ConfigureSandbox(Request, frozen=True, kw_only=True):
    """The first request. `init_data` is the exact TOML text whose digest the TEE was launched with;
    empty where no tenant gave one. `time_ns` is the host's wall clock (the guest may have none);
    it is a hint: the guest trusts it only for the validity of certificates. `sysctl`: kernel parameters of
    a pod, by name with dots: of its network, and of the ipc namespace that its containers share."""

    init_data: bytes
    hostname: str
    time_ns: int
    sysctl: dict[str, str] = {}


class ConfigureNetwork(Request, frozen=True, kw_only=True):
    """The network is to be this from now on, all of it; any number of times. What a former request
    named and this one does not is taken away. Where a device is not there yet, the guest waits for it
    a while."""

    network: Network


class File(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A small file of the host's that the guest gets a copy of. mode: its permissions."""

    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


class CreateContainer(Request, frozen=True, kw_only=True):
    """Pull the image and prepare the container up to, not including, the start of its program.

    config: the OCI config.json, as the engine wrote it (JSON text).
    image: the reference as host or user named it; empty with `shared_root`.
    cached: the host answers OpenContent for this image.
    insecure_registries: the operator's hint, obeyed only where there is no init-data and no TEE.
    shared_root: the root file system is a directory that the host shares (share.py).
    shared_mounts: those of the config's mounts (by index) whose sources the host shares.
    files: copies of the sources of other mounts (by index): what engines prepare for each container
        (/etc/hosts, /etc/hostname, /etc/resolv.conf), and its secrets.
    volumes: those of the config's mounts (by index) that are the sandbox's own, whatever their sources.
    disks: the name of the VM's disk (disk_names.py) for each of the config's devices (by index) that is a
        block device of the host.
    shm_bytes: the size of /dev/shm; 0 where it is not said.
    joins: kinds of namespaces (ipc, uts, pid) that the container shares with the others of its pod, and
        does not get new. What config.json says of paths means nothing in the guest.
    stdin, stdout, stderr: stream ids; 0 = the container gets /dev/null there.
    terminal: the program gets a pseudo-terminal of rows x columns (0 x 0: unknown yet); its bytes
        travel on stdin and stdout, stderr is 0.
    """

    container: str
    config: bytes
    image: str
    cached: bool = False
    insecure_registries: tuple[str, ...] = ()
    shared_root: bool = False
    shared_mounts: tuple[int, ...] = ()
    files: dict[int, File] = {}
    volumes: dict[int, Volume] = {}
    disks: dict[int, str] = {}
    shm_bytes: int = 0
    joins: tuple[str, ...] = ()
    stdin: int = 0
    stdout: int = 0
    stderr: int = 0
    terminal: bool = False
    rows: int = 0
    columns: int = 0


class RefreshFiles(Request, frozen=True, kw_only=True):
    """The originals of files that CreateContainer brought copies of have another content now (engines
    write hosts and resolv.conf when a network comes or goes): the copies get it. files: as there."""

    container: str
    files: dict[int, File]


class StartContainer(Request, frozen=True, kw_only=True):
    """Let the prepared container's program run."""

    container: str


class ExecProcess(Request, frozen=True, kw_only=True):
    """Run one more program in a running container, under a name that the host picks.

    config: the OCI `process` object (JSON text). Streams and terminal as in CreateContainer."""

    container: str
    process: str
    config: bytes
    stdin: int = 0
    stdout: int = 0
    stderr: int = 0
    terminal: bool = False
    rows: int = 0
    columns: int = 0


class ResizeTerminal(Message, frozen=True, kw_only=True):
    """The terminal of a process has a new size. process: empty for the container's first one."""

    container: str
    process: str = ""
    rows: int
    columns: int


class SignalContainer(Request, frozen=True, kw_only=True):
    """Send `signal` (Linux number) to one process of the container, or to `all` of them.

    process: empty for the container's first one, else the name it was executed under."""

    container: str
    signal: int
    all: bool = False
    process: str = ""


class PauseContainer(Request, frozen=True, kw_only=True):
    """Freeze all processes of a container."""

    container: str


class ResumeContainer(Request, frozen=True, kw_only=True):
    """Let a paused container go on."""

    container: str


class UpdateContainer(Request, frozen=True, kw_only=True):
    """Change a container's limits. resources: an OCI `linux.resources` object (JSON text)."""

    container: str
    resources: bytes


class ListProcesses(Request, frozen=True, kw_only=True):
    """Done.document: a JSON list of {pid, ppid, uid, command}, pids as seen in the guest."""

    container: str


class ReadStatistics(Request, frozen=True, kw_only=True):
    """Done.document: the `data` object of runc's `events --stats` (JSON text)."""

    container: str


class ResizeSandbox(Request, frozen=True, kw_only=True):
    """The VM has become larger: take all its CPUs into use, `cpus` of them, which may take a moment to
    appear, and let file systems in memory have their share of what there is now."""

    cpus: int


class Ping(Request, frozen=True, kw_only=True):
    """Answered at once, by a guest that is alive: a VM that hangs keeps its connection. Failed where the scratch
    disk has failed. `time_ns` is the host's wall clock, behind which the guest's does not stay."""

    time_ns: Annotated[int, msgspec.Meta(ge=0, le=limits.CLOCK_NS)]


class Attest(Request, frozen=True, kw_only=True):
    """Done.document: JSON of {tee, evidence}, KBS's `primary_evidence`, of the sandbox as it is now, bound
    to evidence.bound_to(nonce). nonce: of evidence.NONCE_BYTES."""

    nonce: bytes


class DeleteContainer(Request, frozen=True, kw_only=True):
    """Remove a container, killing it first if it runs."""

    container: str


class ShutdownSandbox(Request, frozen=True, kw_only=True):
    """End all containers and power the VM off."""


# --- guest to host -------------------------------------------------------------------------------


class Hello(Message, frozen=True, kw_only=True):
    """The agent is up. `tee` is the kind of evidence it can produce (`none` where it has no TEE)."""

    version: int
    agent_version: str
    tee: str
    memory_available_kib: int
    uptime_ms: int


class Done(Message, frozen=True, kw_only=True):
    """The request `id` was carried out. `image_digest` is set by CreateContainer: the digest of the
    manifest that was pulled. `document` is what the request asked for, as JSON text."""

    id: int
    image_digest: str = ""
    document: bytes = b""


class Failed(Message, frozen=True, kw_only=True):
    """The request `id` failed and left nothing behind."""

    id: int
    phase: Phase
    code: ErrorCode
    text: str


class Progress(Message, frozen=True, kw_only=True):
    """A container entered a phase; `text` is one line for a person. Sent at a bounded rate."""

    container: str
    phase: Phase
    text: str
    done_bytes: int = 0
    total_bytes: int = 0


class ProcessExited(Message, frozen=True, kw_only=True):
    """A program ended. code: 0-255, 128+n where signal n ended it. process: empty for the
    container's first one, else the name it was executed under. oom: the container's memory limit
    killed something in it."""

    container: str
    code: int
    process: str = ""
    oom: bool = False


class OpenTunnel(Message, frozen=True, kw_only=True):
    """Ask the host for a TCP connection to `host`:`port`. Answered by TunnelOpened or StreamReset."""

    stream: int
    host: str
    port: int


class OpenContent(Message, frozen=True, kw_only=True):
    """Ask the host for a manifest or blob of a container's image by digest. image: as the host named it
    in CreateContainer. Answered by TunnelOpened, the content and StreamEnd, or by StreamReset; what
    ends early could not be had. Nothing is promised of the bytes."""

    stream: int
    image: str
    digest: str


class AgentFailed(Message, frozen=True, kw_only=True):
    """Last words: the agent cannot go on and powers off."""

    phase: Phase
    code: ErrorCode
    text: str


# --- both ways -----------------------------------------------------------------------------------


class TunnelOpened(Message, frozen=True, kw_only=True):
    """Host to guest: the connection stands, data may flow."""

    stream: int


class StreamData(Message, frozen=True, kw_only=True):
    """At most `limits.STREAM_CHUNK_BYTES` of a stream."""

    stream: int
    data: bytes


class StreamCredit(Message, frozen=True, kw_only=True):
    """The receiver passed `bytes` on: so many more may be sent."""

    stream: int
    bytes: int


class StreamEnd(Message, frozen=True, kw_only=True):
    """No more data in this direction (the half-close of a pipe or socket)."""

    stream: int


class StreamReset(Message, frozen=True, kw_only=True):
    """Both directions end now. `code` is empty for «nobody reads or writes here any more»."""

    stream: int
    code: ErrorCode | None = None
    text: str = ""


Stream = StreamData | StreamCredit | StreamEnd | StreamReset

HostMessage = (
    ConfigureSandbox
    | ConfigureNetwork
    | CreateContainer
    | RefreshFiles
    | StartContainer
    | ExecProcess
    | ResizeTerminal
    | SignalContainer
    | PauseContainer
    | ResumeContainer
    | UpdateContainer
    | ListProcesses
    | ReadStatistics
    | Attest
    | ResizeSandbox
    | Ping
    | DeleteContainer
    | ShutdownSandbox
    | TunnelOpened
    | StreamData
    | StreamCredit
    | StreamEnd
    | StreamReset
)
"""What the guest accepts."""

GuestMessage = (
    Hello
    | Done
    | Failed
    | Progress
    | ProcessExited
    | OpenTunnel
    | OpenContent
    | AgentFailed
    | StreamData
    | StreamCredit
    | StreamEnd
    | StreamReset
)
"""What the host accepts."""

_encoder = msgspec.msgpack.Encoder()
_host_decoder: msgspec.msgpack.Decoder[HostMessage] = msgspec.msgpack.Decoder(HostMessage)
_guest_decoder: msgspec.msgpack.Decoder[GuestMessage] = msgspec.msgpack.Decoder(GuestMessage)


class ProtocolViolation(Exception):
    """The peer sent something that is not a message of this protocol."""


def encode(message: Message) -> bytes:
    """One ZeroMQ frame."""
    return _encoder.encode(message)


def decode_from_host(frame: bytes) -> HostMessage:
    """What the guest received. Raises ProtocolViolation."""
    try:
        return _host_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"not a message to the guest: {error}") from error


def decode_from_guest(frame: bytes) -> GuestMessage:
    """What the host received. Raises ProtocolViolation."""
    try:
        return _guest_decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"not a message to the host: {error}") from error
