"""More programs in a running container, each from request to exit.

crun takes its time, so each execution has a thread of its own until the program runs. The exit is reported after the last byte of output, as for a container's first
process, and never before the answer to the request. A container that ends takes its executed programs
with it: the kernel kills what is in its pid namespace.

Loop thread only, but for what says «worker».
"""

import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.container import process
from sealrun_agent.container.crun import Execution
from sealrun_agent.container.home import with_home
from sealrun_agent.container.sealed import opened_process
from sealrun_agent.container.stdio import ConsoleSocket, Stdio
from sealrun_agent.container.surroundings import DONE, Answer, Surroundings
from sealrun_agent.container.worker import Worker
from sealrun_agent.container.workload import check_terminal, may_read
from sealrun_agent.errors import AgentError, RunError, StartError
from sealrun_agent.processes import Child

_KILL: Final = 9


class _Started(NamedTuple):
    """A program that runs. master: of its terminal, where it has one."""

    child: Child
    master: int | None


class Inside(NamedTuple):
    """Of the container. oom_kills: so far. root: a path to its files as they are now; called by workers,
    raises RunError."""

    oom_kills: Callable[[], int]
    root: Callable[[], str]


class Executions:
    """All of one container, by the name that the host gave them."""

    def __init__(self, here: Surroundings, container: str, inside: Inside) -> None:
        self._here, self._container, self._inside = here, container, inside
        self._running: dict[str, Executed] = {}

    def __len__(self) -> int:
        """How many run, or begin to."""
        return len(self._running)

    def begin(self, request: messages.ExecProcess, answer: Answer) -> None:
        """Run one more program; the container runs."""
        name = request.process
        if name in self._running:
            answer(self._wrong_state(f"cannot execute process {name!a}", "it exists"))
            return

        def gone() -> None:
            del self._running[name]

        self._running[name] = Executed(self._here, request, answer, gone, self._inside)

    def signal(self, name: str, number: int, answer: Answer) -> None:
        """Send a signal (Linux number) to one program."""
        program = self._running.get(name)
        if program is not None and program.signal(number):
            answer(DONE)
        else:
            answer(self._wrong_state(f"cannot signal process {name[:128]!a}", "it does not run"))

    def resize(self, name: str, rows: int, columns: int) -> None:
        """A terminal's size. Nothing where there is no such program: its end can cross the words."""
        if name in self._running:
            self._running[name].resize(rows, columns)

    def abandon(self) -> None:
        """The container is gone."""
        for program in list(self._running.values()):
            program.abandon()

    def _wrong_state(self, what: str, why: str) -> RunError:
        return RunError(ErrorCode.WRONG_STATE, f"{what} of container {self._container}: {why}")


class Executed:
    """`gone` is called once, after everything that is said of it."""

    def __init__(
        self,
        here: Surroundings,
        request: messages.ExecProcess,
        answer: Answer,
        gone: Callable[[], None],
        inside: Inside,
    ) -> None:
        """Begin. The request's stream ids are free to use."""
        self._here, self._request, self._answer, self._gone = here, request, answer, gone
        self._inside, self._oom_before = inside, inside.oom_kills()
        self._child: Child | None = None
        self._over = False
        readable = may_read(here.tenant)
        self._stdio = Stdio(
            here.streams, here.events, here.post, request, self._report_exit, readable=readable
        )
        worker = Worker(f"exec-{request.process}", here.events.post, here.attempt)
        worker.submit(self._execute, self._executed)
        worker.stop()

    def signal(self, number: int) -> bool:
        """Send a signal. Returns whether the program was there to get it."""
        return self._child is not None and self._child.signal(number)

    def resize(self, rows: int, columns: int) -> None:
        """The terminal's size; nothing where there is none."""
        self._stdio.resize(rows, columns)

    def abandon(self) -> None:
        """The container is gone, and its processes with it: nothing more is waited for."""
        if self._over:
            return
        self._stdio.reset()
        if self._child is not None:
            self._end(128 + _KILL if self._child.code is None else self._child.code)
        else:  # crun is still at it
            self._over = True
            self._gone()

    def _execute(self) -> _Started:
        """Worker."""
        here, request = self._here, self._request
        with ExitStack() as always, ExitStack() as undo:
            always.callback(self._stdio.close_theirs)
            check_terminal(request.terminal, here.tenant)
            program = with_home(process.decode(request), self._inside.root())
            program = opened_process(program, here.unseal)
            # Ids of requests are unique; a container's name does not begin with a dot.
            files = _write_files(f"{here.directory}/.exec/{request.id}", process.encode(program))
            always.callback(_remove_files, files)
            console = None
            if request.terminal:
                console = always.enter_context(ConsoleSocket(f"{files.directory}/tty"))
            path = console.path if console else ""
            child = here.crun.execute(
                request.container, files, program.args[0], self._stdio.theirs, path
            )
            undo.callback(child.signal, _KILL)
            if program.oomScoreAdj is not None:
                _set_oom_score(child, program.oomScoreAdj)
            master = console.receive() if console else None
            undo.pop_all()
        return _Started(child, master)

    def _executed(self, result: _Started | AgentError) -> None:
        if isinstance(result, AgentError):
            self._stdio.forget()
            self._finish_early(result)
            return
        if self._over:  # the container went away meanwhile, and has told so
            if result.master is not None:
                os.close(result.master)
            self._answer(_deleted(self._request.container))
            return
        self._child = result.child
        self._answer(DONE)
        self._stdio.begin(result.master)
        result.child.on_exit(self._exited)

    def _finish_early(self, error: AgentError) -> None:
        if not self._over:
            self._over = True
            self._gone()
        self._answer(error)

    def _exited(self) -> None:
        self._stdio.finish()
        self._report_exit()

    def _report_exit(self) -> None:
        """As soon as everything that goes before it has been said."""
        code = None if self._child is None else self._child.code
        if code is not None and not self._over and not self._stdio.open:
            self._end(code)

    def _end(self, code: int) -> None:
        self._over = True
        self._here.post(
            messages.ProcessExited(
                container=self._request.container,
                process=self._request.process,
                code=code,
                oom=self._inside.oom_kills() > self._oom_before,
            )
        )
        self._gone()


def _deleted(container: str) -> RunError:
    return RunError(ErrorCode.WRONG_STATE, f"container {container} was deleted meanwhile")


def _write_files(directory: str, config: bytes) -> Execution:
    """Raises StartError(RUNTIME_FAILED)."""
    files = Execution(directory)
    try:
        os.makedirs(directory, mode=0o700)
        with open(files.config, "xb") as file:
            file.write(config)
        os.mkfifo(files.log, 0o600)
    except OSError as error:
        with suppress(OSError):
            _remove_files(files)
        raise StartError(
            ErrorCode.RUNTIME_FAILED, f"cannot write the process's files: {error.strerror}"
        ) from error
    return files


def _remove_files(files: Execution) -> None:
    for name in os.listdir(files.directory):
        os.unlink(f"{files.directory}/{name}")
    os.rmdir(files.directory)


def _set_oom_score(child: Child, score: int) -> None:
    """crun sets it for first processes only."""
    with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        with open(f"/proc/{child.pid}/oom_score_adj", "w") as file:
            file.write(str(score))
