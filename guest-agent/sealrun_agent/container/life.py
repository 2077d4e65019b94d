"""One container from request to removal: its states, its stdio, its first process.

    CREATING --made--> CREATED --start--> STARTING --> RUNNING <--pause, resume--> PAUSED
                          \\________________|____________/_______________________/--exit--> STOPPED

CREATED can be paused, too, and goes on as what it was.

State belongs to the loop's thread. What is slow (pull, crun, unmounting) is done by the container's
own worker, one piece after the other, so that a delete waits for the create it cancelled.

The exit is reported when the last byte of stdout and stderr has been sent, and never before the
answer to the start.
"""

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import Enum
from typing import Final, NamedTuple

from sealrun_protocol import messages, share
from sealrun_protocol.errors import ErrorCode, Phase

from sealrun_agent.container import bundle, home, spec
from sealrun_agent.container.cgroup import Cgroup
from sealrun_agent.container.execution import Executions, Inside
from sealrun_agent.container.linux import accept_update
from sealrun_agent.container.listing import list_processes
from sealrun_agent.container.sealed import opened, remembering
from sealrun_agent.container.statistics import read_statistics
from sealrun_agent.container.stdio import ConsoleSocket, Stdio
from sealrun_agent.container.surroundings import DONE, Answer, Order, Success, Surroundings
from sealrun_agent.container.worker import Worker
from sealrun_agent.container.workload import (
    check_disks,
    check_hooks,
    check_joins,
    check_shares,
    check_terminal,
    check_volumes,
    may_execute,
    may_read,
    restrict,
)
from sealrun_agent.errors import AgentError, RunError, StartError
from sealrun_agent.processes import Child

_KILL: Final = 9
_DEATH_SECONDS: Final = 30  # from SIGKILL to the status, on a loaded emulated machine


class State(Enum):
    """See the module's docstring."""

    CREATING = "being created"
    CREATED = "created"
    STARTING = "being started"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


class _Made(NamedTuple):
    """What creating left in the guest. master: of the first process's terminal."""

    bundle: bundle.Bundle
    init: Child
    master: int | None
    image_digest: str


class Container:
    """Loop thread only, but for methods that say «worker»."""

    def __init__(
        self,
        here: Surroundings,
        request: messages.CreateContainer,
        answer: Answer,
        gone: Callable[[], None],
    ) -> None:
        """Begin to create. `gone` is called when nothing of the container is left, before `answer`
        where creating failed. The request's stream ids are free to use."""
        here = here._replace(unseal=remembering(here.unseal))
        self._here, self._id, self._gone = here, request.container, gone
        self._state = self._before_pause = State.CREATING
        self._unwanted = threading.Event()
        self._made: _Made | None = None
        self._left: _Made | None = None  # the same, as the worker knows it
        self._forgotten = False
        self._code: int | None = None
        self._reported = False
        self._cgroup = Cgroup.of(self._id)
        self._shares_pid = "pid" in request.joins
        self._oom = False
        self.executions = Executions(here, self._id, Inside(self._cgroup.oom_kills, self._root))
        readable = may_read(here.tenant)
        self._stdio = Stdio(
            here.streams, here.events, here.post, request, self._report_exit, readable=readable
        )
        self._worker = Worker(f"container-{self._id}", here.events.post, here.attempt)
        self._worker.submit(
            lambda: self._decide(request), lambda result: self._created(result, answer)
        )

    @property
    def alive(self) -> bool:
        """Whether it has a process."""
        return self._made is not None and self._made.init.code is None

    def start(self, answer: Answer) -> None:
        """Let the program run."""
        made = self._made
        if self._state is not State.CREATED or made is None:
            answer(self._wrong_state("start"))
            return
        self._state = State.STARTING

        def started(error: AgentError | None) -> None:
            self._state = State.CREATED if error else State.RUNNING
            if self._code is not None:
                self._state = State.STOPPED
            answer(error or DONE)
            self._report_exit()

        self._worker.submit(lambda: self._here.crun.start(made.bundle, made.init), started)

    def signal(self, number: int, answer: Answer, *, everyone: bool) -> None:
        """Send a signal to the first process, or to everyone."""
        made = self._made
        if made is None or self._state is State.STOPPED:
            answer(self._wrong_state("signal"))
        elif everyone and number != _KILL:
            self._worker.submit(
                lambda: self._cgroup.signal_all(number), lambda error: answer(error or DONE)
            )
        else:  # with its first process all others end (_exited)
            answer(DONE if made.init.signal(number) else self._wrong_state("signal"))

    def execute(self, request: messages.ExecProcess, answer: Answer) -> None:
        """Run one more program."""
        allowed = may_execute(self._here.tenant)
        self._here.decided("exec", allowed)
        if not allowed:
            answer(RunError(ErrorCode.POLICY_DENIED, "[container] of the init-data allows no exec"))
        elif self._state in {State.CREATED, State.RUNNING}:
            self.executions.begin(request, answer)
        else:
            answer(self._wrong_state("execute a program in"))

    def resize(self, rows: int, columns: int) -> None:
        """The size of the first process's terminal; nothing where it has none."""
        self._stdio.resize(rows, columns)

    def pause(self, answer: Answer) -> None:
        """Stop all processes, but for what kills them."""
        if self._state not in {State.CREATED, State.RUNNING}:
            answer(self._wrong_state("pause"))
            return
        self._before_pause = self._state
        self._switch(State.PAUSED, self._cgroup.freeze, answer)

    def resume(self, answer: Answer) -> None:
        """Let all processes go on."""
        if self._state is not State.PAUSED:
            answer(self._wrong_state("resume"))
            return
        self._switch(self._before_pause, self._cgroup.thaw, answer)

    def update(self, resources: bytes, answer: Answer) -> None:
        """Change limits. resources: JSON text of an OCI linux.resources."""

        def update() -> Success:
            made = self._existing()
            limits = bundle.write_resources(made.bundle, accept_update(resources))
            self._here.crun.update(made.bundle, limits)
            return DONE

        self._inspect("update", update, answer)

    def refresh(self, files: dict[int, messages.File], answer: Answer) -> None:
        """Copies of the host's files get another content."""

        def refresh() -> Success:
            bundle.refresh_files(self._existing().bundle, spec.check_files(files))
            return DONE

        self._inspect("refresh the files of", refresh, answer)

    def list_processes(self, answer: Answer, *, show_commands: bool) -> None:
        """Answer with a document; commands are left empty unless they may be shown."""
        self._inspect(
            "list the processes of",
            lambda: Success(document=list_processes(self._cgroup, show_commands=show_commands)),
            answer,
        )

    def read_statistics(self, answer: Answer) -> None:
        """Answer with a document."""
        self._inspect(
            "read the statistics of",
            lambda: Success(document=read_statistics(self._cgroup)),
            answer,
        )

    def kill(self) -> None:
        """Whatever it is doing."""
        self._unwanted.set()
        if self._made is not None:
            self._made.init.signal(_KILL)

    def delete(self, answer: Answer) -> None:
        """Kill and remove. Answers success where another delete was first."""
        self.kill()
        self._here.tunnels.abandon(self._id)

        def deleted(error: AgentError | None) -> None:
            self._forget()
            answer(error or DONE)

        self._worker.submit(self._delete, deleted)

    def _decide(self, request: messages.CreateContainer) -> _Made:
        """Create, and write down where the tenant's policy denies it. Worker."""
        try:
            return self._create(request)
        except AgentError as error:
            if error.code in (ErrorCode.POLICY_DENIED, ErrorCode.IMAGE_NOT_ALLOWED):
                self._here.decided("create", False)
            raise

    def _create(self, request: messages.CreateContainer) -> _Made:
        """Worker."""
        here, name = self._here, self._id
        with ExitStack() as always, ExitStack() as undo:
            always.callback(self._stdio.close_theirs)
            accepted = spec.accept(request)
            check_hooks(accepted.spec, here.tenant)
            check_terminal(request.terminal, here.tenant)
            check_shares(accepted.shared, here.tenant, root=request.shared_root)
            check_disks(accepted.disks, here.tenant)
            check_joins(request.joins, here.tenant)
            self._record_leave(request, accepted)
            accepted = self._with_disks(accepted)
            place = self._take_shares(request)
            undo.callback(here.shares.release, name)
            rootfs = here.images.prepare(self._order(request, place, accepted))
            undo.callback(here.images.release, name)
            if here.tenant is not None and rootfs.program is not None:
                accepted = check_volumes(accepted, rootfs.program, here.tenant)
                restricted = restrict(accepted.spec, rootfs.program, here.tenant)
                accepted = accepted._replace(spec=restricted)
            accepted = home.settle(opened(accepted, here.unseal), rootfs.path)
            self._progress(Phase.START, "creating the container", 0, 0)
            volumes = here.volumes.take(name, accepted.volumes, rootfs.path)
            undo.callback(here.volumes.give_up, name)
            bundle.make_device_directory(accepted, rootfs.path)
            bundle.set_sysctl(accepted.network_sysctl)
            pod = here.namespaces.take(request.joins, request.shm_bytes) if request.joins else ""
            own = bundle.Own(place, pod, volumes)
            files = bundle.write_bundle(here.directory, name, accepted, rootfs.path, own)
            undo.callback(bundle.remove_bundle, files)
            undo.callback(self._delete_from_crun, files)
            console = None
            if request.terminal:
                console = always.enter_context(ConsoleSocket(f"{here.directory}/.{request.id}"))
            init = here.crun.create(
                files,
                accepted.spec.process.args[0],
                self._stdio.theirs,
                console.path if console else "",
            )
            undo.callback(init.wait, _DEATH_SECONDS)
            undo.callback(init.signal, _KILL)
            here.volumes.settle(name)
            master = console.receive() if console else None
            if master is not None:
                undo.callback(os.close, master)
            self._check_wanted()
            undo.pop_all()
        self._left = _Made(files, init, master, rootfs.image_digest)
        return self._left

    def _with_disks(self, accepted: spec.Accepted) -> spec.Accepted:
        """Raises StartError."""
        find = self._here.find_disk
        numbers = {path: find(serial) for path, serial in accepted.disks.items()}
        return spec.with_disks(accepted, numbers)

    def _take_shares(self, request: messages.CreateContainer) -> str:
        """The directory of what the host shares; empty where that is nothing. Raises StartError."""
        names = [share.ROOT] if request.shared_root else []
        names += map(str, dict.fromkeys(request.shared_mounts))
        return self._here.shares.take(self._id, names) if names else ""

    def _record_leave(self, request: messages.CreateContainer, accepted: spec.Accepted) -> None:
        """Write down what the tenant leaves to the host, before it has an effect. Raises AttestError."""
        tenant = self._here.tenant
        if tenant is None:
            return
        if tenant.container.insecure_any_process:
            self._here.decided("any-process", True)
        elif tenant.container.allow_output:
            self._here.decided("output", True)
        if accepted.shared:
            self._here.decided("shared-directory", True)
        if accepted.disks:
            self._here.decided("block-device", True)
        if request.shared_root:
            self._here.decided("shared-root", True)
        if "pid" in request.joins:
            self._here.decided("shared-pid", True)

    def _order(
        self, request: messages.CreateContainer, place: str, accepted: spec.Accepted
    ) -> Order:
        return Order(
            self._id,
            request.image,
            request.insecure_registries,
            self._here.tunnels.dialler(self._id),
            self._progress,
            directory=f"{place}/{share.ROOT}" if request.shared_root else "",
            readonly=accepted.spec.root.readonly,
            fetch=self._here.tunnels.fetcher(self._id, request.image) if request.cached else None,
        )

    def _created(self, result: _Made | AgentError, answer: Answer) -> None:
        if isinstance(result, AgentError):
            self._stdio.forget()
            self._forget()
            answer(result)
            return
        self._made = result
        self._state = State.CREATED
        answer(Success(image_digest=result.image_digest))
        self._stdio.begin(result.master)
        result.init.on_exit(self._exited)
        if self._unwanted.is_set():
            result.init.signal(_KILL)

    def _delete(self) -> None:
        """Worker, after everything else of this container."""
        left, self._left = self._left, None
        if left is None:
            return
        left.init.signal(_KILL)
        left.init.wait(_DEATH_SECONDS)
        with ExitStack() as stack:  # the later steps also where an earlier one fails
            stack.callback(bundle.remove_bundle, left.bundle)
            stack.callback(self._here.shares.release, self._id)
            stack.callback(self._here.images.release, self._id)
            self._here.crun.delete(left.bundle)

    def _delete_from_crun(self, files: bundle.Bundle) -> None:
        """Worker, after crun create failed or its container is not wanted: usually nothing."""
        with suppress(StartError):
            self._here.crun.delete(files)

    def _exited(self) -> None:
        assert self._made is not None
        self._code = self._made.init.code
        self._oom = self._cgroup.oom_kills() > 0
        if self._shares_pid:  # else the kernel ends the others together with the first
            self._cgroup.kill()
        self._stdio.finish()
        self._report_exit()

    def _report_exit(self) -> None:
        """As soon as everything that goes before it has been said."""
        if self._code is None or self._reported or self._state is State.STARTING:
            return
        self._state = State.STOPPED
        if self._stdio.open:
            return
        self._reported = True
        self._post_exit(self._code)

    def _forget(self) -> None:
        """Nothing of it is left, except perhaps output that the host did not wait for."""
        if self._forgotten:
            return
        self._forgotten = True
        self.executions.abandon()
        self._stdio.reset()
        if self._made is not None and not self._reported:
            self._reported = True
            code = self._made.init.code
            self._post_exit(128 + _KILL if code is None else code)
        self._worker.stop()
        self._gone()

    def _post_exit(self, code: int) -> None:
        self._here.post(messages.ProcessExited(container=self._id, code=code, oom=self._oom))

    def _switch(self, after: State, work: Callable[[], None], answer: Answer) -> None:
        """Into another state at once, so that nothing else begins, and back where it fails."""
        before, self._state = self._state, after

        def done(error: AgentError | None) -> None:
            if error is not None and self._state is after:
                self._state = before
            answer(error or DONE)

        self._worker.submit(work, done)

    def _inspect(self, verb: str, work: Callable[[], Success], answer: Answer) -> None:
        """Do what needs a container that has processes."""
        if self._made is None or self._state is State.STOPPED:
            answer(self._wrong_state(verb))
        else:
            self._worker.submit(work, answer)

    def _root(self) -> str:
        """What its programs have as /. Worker. Raises RunError."""
        return f"/proc/{self._existing().init.pid}/root"

    def _existing(self) -> _Made:
        """Worker. Raises RunError where it was deleted meanwhile."""
        if self._left is None:
            raise RunError(ErrorCode.WRONG_STATE, f"container {self._id} was deleted meanwhile")
        return self._left

    def _progress(self, phase: Phase, text: str, done: int, total: int) -> None:
        """Worker. Raises RunError where the container is not wanted any more."""
        self._check_wanted()
        self._here.progress(self._id, phase, text, done, total)

    def _check_wanted(self) -> None:
        if self._unwanted.is_set():
            raise RunError(ErrorCode.WRONG_STATE, f"container {self._id} was deleted meanwhile")

    def _wrong_state(self, verb: str) -> RunError:
        return RunError(
            ErrorCode.WRONG_STATE,
            f"cannot {verb} container {self._id}: it is {self._state.value}",
        )
