"""What the agent does for the host: requests in, answers out, and the loop that drives it all.

`Service` knows the protocol's order of a life and nothing of sockets; `serve` puts it on a byte
stream; `run` is `serve` with everything that a real VM has. This is also the one place where any
exception at all becomes an answer (`attempt`): a request that fails ends with Failed and leaves the
sandbox alive; a broken protocol, or a failure of the loop itself, ends the sandbox.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from sealrun_protocol import evidence, init_data, limits, messages
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.messages import GuestMessage, HostMessage, ProtocolViolation, Request
from sealrun_protocol.network import Network

from sealrun_agent.channel import Channel
from sealrun_agent.container.bundle import is_container_id
from sealrun_agent.container.crun import Crun
from sealrun_agent.container.life import Container
from sealrun_agent.container.surroundings import DONE, Answer, Success, Surroundings
from sealrun_agent.container.worker import Result, Worker
from sealrun_agent.errors import AgentError, AttestError, BootError, RunError, StartError
from sealrun_agent.loop import Loop
from sealrun_agent.machine import Machine
from sealrun_agent.policy import Policy, one_line
from sealrun_agent.processes import Processes
from sealrun_agent.progress import Progress
from sealrun_agent.sandbox_namespaces import SandboxNamespaces
from sealrun_agent.streams import Post, Streams
from sealrun_agent.tunnel import Tunnels
from sealrun_agent.vault import Vault
from sealrun_agent.version import VERSION
from sealrun_agent.volumes import Volumes

if TYPE_CHECKING:
    from sealrun_agent.network.networking import Networking

_REMEMBERED: Final = 256  # answers that are given again, and requests that wait for theirs
_CONTAINERS: Final = 64  # in one sandbox: a pod has a few
_EXECUTIONS: Final = (
    128  # at once, in one sandbox: each is a process, some are a thread for a while
)
_SANDBOX: Final = "."  # the owner of tunnels that are no container's
_SIGNALS: Final = range(65)
_TERMINAL_SIZES: Final = range(1 << 16)
_CPUS: Final = range(1, 4097)
_GROWTH_SECONDS: Final = 10.0  # from a CPU's addition by the VMM to its appearance
_DEATH_SECONDS: Final = 5.0  # that a shutdown waits for the containers it killed


def run(port_fd: int) -> None:
    """Serve the host on the channel's port until the sandbox is over; the caller powers off."""
    from sealrun_agent import provision  # heavy

    serve(port_fd, provision.machine())


def serve(port_fd: int, machine: Machine) -> None:
    """`run` on any machine. port_fd: a blocking byte stream. Main thread only."""
    os.makedirs(machine.directory, mode=0o700, exist_ok=True)
    events, processes = Loop(), Processes()
    events.on_signal(signal.SIGCHLD, processes.reap)
    channel = Channel(
        port_fd, machine.directory, lambda why: events.post(lambda: service.channel_lost(why))
    )
    service = Service(events, processes, channel.send, machine)
    channel.handler = service.handle
    channel.on_violation = service.protocol_violated
    channel.attach(events)
    service.greet()
    outcome = attempt(events.run)
    if outcome is not None:
        service.fail(outcome)
    channel.close()


def attempt(work: Callable[[], Result], /) -> Result | AgentError:
    """What `work` returns, or whatever went wrong as an error that the host can be told.

    Lets ProtocolViolation pass: it has no answer. A traceback goes to the console only."""
    try:
        return work()
    except ProtocolViolation:
        raise
    except AgentError as error:
        return error
    except Exception as error:
        sys.excepthook(type(error), error, error.__traceback__)  # prints it, without an import
        return RunError(ErrorCode.INTERNAL, f"{type(error).__name__}: {error}")


class Service:
    """One sandbox. Loop thread only."""

    def __init__(self, events: Loop, processes: Processes, post: Post, machine: Machine) -> None:
        self._events, self._processes, self._post = events, processes, post
        self._machine = machine
        self._policy = Policy(tee=machine.tee)
        self._streams = Streams(events, post)
        self._tunnels = Tunnels(events, self._streams, post)
        self._progress = Progress(self._send_progress)
        self._here: Surroundings | None = None  # once it is configured
        self._network: Networking | None = None  # once it was described
        self._containers: dict[str, Container] = {}
        self._highest = -1
        self._pending: set[int] = set()
        self._answers: dict[int, GuestMessage] = {}
        self._closing = False
        self._attesting = False

    def greet(self) -> None:
        """The first message."""
        self._post(
            messages.Hello(
                version=messages.PROTOCOL_VERSION,
                agent_version=VERSION,
                tee=self._machine.tee,
                memory_available_kib=_memory_available_kib(),
                uptime_ms=time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000,
            )
        )

    def handle(self, message: HostMessage) -> None:
        """One message of the host's. Raises ProtocolViolation."""
        if isinstance(message, Request):
            self._admit(message)
        elif isinstance(message, messages.TunnelOpened):
            self._tunnels.opened(message.stream)
        elif isinstance(message, messages.StreamReset) and self._tunnels.refused(message):
            pass
        elif isinstance(message, messages.ResizeTerminal):
            self._resize(message)
        else:
            self._streams.handle(message)

    def protocol_violated(self, violation: ProtocolViolation) -> None:
        """The host does not keep to the protocol: nothing it says can be relied on."""
        self.fail(RunError(ErrorCode.PROTOCOL_VIOLATION, str(violation)))

    def channel_lost(self, why: str) -> None:
        """There is nobody left to serve."""
        _console(why)
        self._events.stop()

    def fail(self, error: AgentError) -> None:
        """Last words, and the end of the sandbox."""
        _console(str(error))
        text = self._policy.words(error)
        self._post(messages.AgentFailed(phase=error.phase, code=error.code, text=text))
        self._events.stop()

    def _admit(self, request: Request) -> None:
        """Carry a request out once, whatever often it arrives."""
        if request.id <= self._highest:
            if request.id in self._answers:
                self._post(self._answers[request.id])
            elif request.id not in self._pending:
                raise ProtocolViolation(f"request {request.id} is older than what is remembered")
            return
        if self._here is None and not isinstance(
            request, messages.ConfigureSandbox | messages.ShutdownSandbox
        ):
            raise ProtocolViolation("a request before ConfigureSandbox")
        self._highest = request.id
        self._pending.add(request.id)
        if len(self._pending) > _REMEMBERED:
            raise ProtocolViolation("too many requests at once")
        error = attempt(lambda: self._dispatch(request))
        if error is not None:
            self._answer(request.id, error)

    def _dispatch(self, request: Request) -> None:
        """Raises AgentError where the request fails at once."""
        answer = partial(self._answer, request.id)
        match request:
            case messages.ConfigureSandbox():
                self._configure(request)
                answer(DONE)
            case messages.ConfigureNetwork(network=network):
                self._configure_network(network, answer)
            case messages.CreateContainer():
                self._create(request, answer)
            case messages.RefreshFiles(container=name, files=files):
                self._container(name).refresh(files, answer)
            case messages.StartContainer(container=name):
                self._container(name).start(answer)
            case messages.ExecProcess():
                self._execute(request, answer)
            case messages.SignalContainer():
                self._signal(request, answer)
            case messages.PauseContainer(container=name):
                self._container(name).pause(answer)
            case messages.ResumeContainer(container=name):
                self._container(name).resume(answer)
            case messages.UpdateContainer(container=name, resources=resources):
                self._container(name).update(resources, answer)
            case messages.ListProcesses(container=name):
                show = not self._policy.protected
                self._container(name).list_processes(answer, show_commands=show)
            case messages.ReadStatistics(container=name):
                self._container(name).read_statistics(answer)
            case messages.ResizeSandbox(cpus=cpus):
                self._take(cpus, answer)
            case messages.Ping(time_ns=now):
                assert self._here is not None
                self._here.images.check_disk()
                self._machine.follow_clock(now)
                answer(DONE)
            case messages.Attest(nonce=nonce):
                self._attest(nonce, answer)
            case messages.DeleteContainer(container=name):
                self._container(name).delete(answer)
            case messages.ShutdownSandbox():
                self._shut_down(answer)
            case _:
                raise ProtocolViolation(f"a bare {type(request).__name__}")

    def _answer(self, request: int, result: AgentError | Success) -> None:
        answer: GuestMessage
        if isinstance(result, AgentError):
            text = self._policy.words(result)
            answer = messages.Failed(id=request, phase=result.phase, code=result.code, text=text)
        else:
            answer = messages.Done(id=request, **result._asdict())
        self._pending.discard(request)
        self._answers[request] = answer
        if len(self._answers) > _REMEMBERED:
            del self._answers[next(iter(self._answers))]
        self._post(answer)

    def _configure(self, request: messages.ConfigureSandbox) -> None:
        if self._here is not None:
            raise ProtocolViolation("a second ConfigureSandbox")
        machine = self._machine
        policy = Policy(_read_init_data(request.init_data), machine.tee)
        machine.bind(policy.init_data)
        try:
            machine.set_clock(request.time_ns)
            if request.hostname:
                machine.set_hostname(request.hostname)
        except (OSError, OverflowError, ValueError) as error:
            raise BootError(
                ErrorCode.BOOT_FAILED, f"cannot set the VM's clock and hostname: {error}"
            ) from error
        for name in policy.init_data.ignored:
            _console(f"the init-data's document {name!a} is not obeyed by this agent")
        namespaces = SandboxNamespaces(f"{machine.directory}/sandbox", self._processes)
        namespaces.set_sysctl(request.sysctl)
        vault = machine.vault(policy.init_data, self._tunnels.dialler(_SANDBOX))
        self._serve_workload(policy.init_data.workload, vault)
        self._policy = policy
        images = machine.images(policy, self._processes)
        self._here = Surroundings(
            events=self._events,
            streams=self._streams,
            tunnels=self._tunnels,
            crun=Crun(self._processes, f"{machine.directory}/crun", machine.crun_options),
            images=images,
            shares=machine.shares,
            volumes=Volumes(images.disk),
            find_disk=machine.find_disk,
            namespaces=namespaces,
            directory=f"{machine.directory}/containers",
            post=self._post,
            progress=self._progress.report,
            attempt=attempt,
            tenant=policy.tenant,
            decided=self._decided,
            unseal=vault.unseal,
        )

    def _serve_workload(self, wishes: init_data.Workload, vault: Vault) -> None:
        """Off unless the tenant turns it on."""
        if wishes.api:
            from sealrun_agent.workload_api import WorkloadApi

            WorkloadApi(vault, wishes.api)

    def _configure_network(self, network: Network, answer: Answer) -> None:
        if self._network is None:
            # Many a sandbox has no network.
            from sealrun_agent.network.networking import Networking

            self._network = Networking(self._events, self._machine.load_drivers, attempt)
        self._network.configure(network, lambda error: answer(error or DONE))

    def _create(self, request: messages.CreateContainer, answer: Answer) -> None:
        assert self._here is not None
        name = request.container
        self._check_streams(request)
        if not is_container_id(name):
            raise StartError(ErrorCode.SPEC_REFUSED, f"container id {name[:128]!a} is not a name")
        if name in self._containers:
            raise RunError(ErrorCode.CONTAINER_EXISTS, f"container {name} exists already")
        if self._closing:
            raise RunError(ErrorCode.WRONG_STATE, "the sandbox is being shut down")
        if len(self._containers) >= _CONTAINERS or self._streams_exhausted:
            raise StartError(ErrorCode.RUNTIME_FAILED, "the sandbox has too many containers")

        def gone() -> None:
            del self._containers[name]
            self._progress.forget(name)

        self._containers[name] = Container(self._here, request, answer, gone)

    def _execute(self, request: messages.ExecProcess, answer: Answer) -> None:
        self._check_streams(request)
        container = self._container(request.container)
        if not is_container_id(request.process):
            raise RunError(
                ErrorCode.SPEC_REFUSED, f"process id {request.process[:128]!a} is not a name"
            )
        running = sum(len(other.executions) for other in self._containers.values())
        if running >= _EXECUTIONS or self._streams_exhausted:
            raise RunError(ErrorCode.RUNTIME_FAILED, "the sandbox has too many processes")
        container.execute(request, answer)

    def _signal(self, request: messages.SignalContainer, answer: Answer) -> None:
        container = self._container(request.container)
        if request.signal not in _SIGNALS:
            raise RunError(
                ErrorCode.RUNTIME_FAILED, f"cannot send signal {request.signal}: there is none"
            )
        if request.process and request.all:
            raise ProtocolViolation("a signal to one process and to all of them")
        if request.process:
            container.executions.signal(request.process, request.signal, answer)
        else:
            container.signal(request.signal, answer, everyone=request.all)

    def _attest(self, nonce: bytes, answer: Answer) -> None:
        """In a thread of its own: a TEE takes its time."""
        if len(nonce) not in evidence.NONCE_BYTES:
            raise ProtocolViolation(f"a nonce of {len(nonce)} bytes")
        if self._attesting:
            raise RunError(ErrorCode.WRONG_STATE, "the VM is just being attested")
        self._attesting = True
        document = partial(self._machine.evidence, self._policy.init_data, evidence.bound_to(nonce))

        def attested(result: bytes | AgentError) -> None:
            self._attesting = False
            answer(result if isinstance(result, AgentError) else Success(document=result))

        worker = Worker("attest", self._events.post, attempt)
        worker.submit(document, attested)
        worker.stop()

    def _resize(self, message: messages.ResizeTerminal) -> None:
        _check_size(message.rows, message.columns)
        container = self._containers.get(message.container)
        if container is not None and message.process:
            container.executions.resize(message.process, message.rows, message.columns)
        elif container is not None:
            container.resize(message.rows, message.columns)

    @property
    def _streams_exhausted(self) -> bool:
        return len(self._streams) > limits.STREAMS - 3

    def _check_streams(self, request: messages.CreateContainer | messages.ExecProcess) -> None:
        _check_size(request.rows, request.columns)
        if request.terminal and (request.stderr or not request.stdout):
            raise ProtocolViolation("a terminal has its output on stdout only")
        given = [stream for stream in (request.stdin, request.stdout, request.stderr) if stream]
        for stream in given:
            if stream < 0 or stream % 2 or stream in self._streams or given.count(stream) > 1:
                raise ProtocolViolation(f"stream {stream} is not a new one of the host's")

    def _container(self, name: str) -> Container:
        try:
            return self._containers[name]
        except KeyError:
            raise RunError(
                ErrorCode.CONTAINER_UNKNOWN, f"container {name[:128]!a} does not exist"
            ) from None

    def _take(self, cpus: int, answer: Answer) -> None:
        """The VM has become larger, or is about to."""
        if cpus not in _CPUS:
            raise ProtocolViolation(f"a VM of {cpus} CPUs")
        deadline = time.monotonic() + _GROWTH_SECONDS

        def look() -> None:
            there = attempt(self._machine.take_added)
            if isinstance(there, AgentError):
                answer(there)
            elif there >= cpus:
                answer(DONE)
            elif time.monotonic() > deadline:
                text = f"only {there} of {cpus} CPUs came in {_GROWTH_SECONDS:.0f} s"
                answer(RunError(ErrorCode.RUNTIME_FAILED, text))
            else:
                self._events.later(0.05, look)

        look()

    def _shut_down(self, answer: Answer) -> None:
        self._closing = True
        deadline = time.monotonic() + _DEATH_SECONDS
        for container in self._containers.values():
            container.kill()

        def end() -> None:
            if time.monotonic() < deadline and any(
                container.alive for container in self._containers.values()
            ):
                self._events.later(0.02, end)
            else:
                answer(DONE)
                self._events.stop()

        end()

    def _decided(self, what: str, allowed: bool) -> None:
        """Any thread."""
        self._machine.record(
            "sealrun", "Decision", {"request": what, "allowed": str(allowed).lower()}
        )

    def _send_progress(
        self, container: str, phase: Phase, text: str, done: int, total: int
    ) -> None:
        """Any thread."""
        message = messages.Progress(
            container=container,
            phase=phase,
            text=self._policy.progress_words(phase, text),
            done_bytes=done,
            total_bytes=total,
        )
        self._events.post(lambda: self._post(message))


def _check_size(rows: int, columns: int) -> None:
    if rows not in _TERMINAL_SIZES or columns not in _TERMINAL_SIZES:
        raise ProtocolViolation(f"a terminal of {rows} x {columns}")


def _read_init_data(text: bytes) -> init_data.InitData:
    if not text:
        return init_data.ABSENT
    try:
        return init_data.parse(text)
    except init_data.InitDataInvalid as error:
        raise AttestError(ErrorCode.INIT_DATA_INVALID, str(error)) from error


def _memory_available_kib() -> int:
    with open("/proc/meminfo", "rb") as file:
        for line in file:
            if line.startswith(b"MemAvailable:"):
                return int(line.split()[1])
    return 0


def _console(text: str) -> None:
    """For the post-mortem: PID 1's stderr is the VM's serial console."""
    sys.stderr.write(f"sealrun-agent: {one_line(text)}\n")
