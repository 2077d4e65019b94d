"""crun, which makes and runs the containers in the guest. Blocking: called by worker threads.

crun says what went wrong in a log file (`--log`); its stderr is the container's. Two of its
sentences have a meaning of their own to engines, which match on the text: a program that is not
there, and one that cannot be executed.

A program whose *interpreter* is missing, or that is no program, is found out only when it is executed,
after crun has succeeded. As the first process of a container it says so on the container's stderr and
exits with 1. For one that is executed in a running container the log is a FIFO: its end tells that
crun *and* the process behind it have let go of it, so what stands in it then is the whole truth.
(In JSON, were the log in JSON: hence plain lines.)
"""

import os
import select
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.container.bundle import Bundle
from sealrun_agent.errors import StartError
from sealrun_agent.processes import Child, Processes

_PROGRAM: Final = "/usr/bin/crun"
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
_SECONDS: Final = 120  # one call takes 0.3 s in an emulated guest
_EXECUTE_SECONDS: Final = 5  # from crun's success to the program's first instruction
_LAST_SECONDS: Final = 1.0  # for crun, when the process that it works on has ended
_POLL_MS: Final = 100
_EXECUTING: Final = 4  # calls of `crun exec` at once: each takes a CPU while it lasts
_NOT_FOUND: Final = "not found in $PATH"
_UNNAMED: Final = ("open executable", "exec")  # sentences that do not say which program
_NOT_EXECUTABLE: Final = {
    "Permission denied": ErrorCode.PROGRAM_NOT_EXECUTABLE,
    "Operation not permitted": ErrorCode.PROGRAM_NOT_EXECUTABLE,  # a directory
    "Exec format error": ErrorCode.PROGRAM_NOT_EXECUTABLE,
}
_NO_INTERPRETER: Final = "exec: No such file or directory"


class Execution(NamedTuple):
    """The files of one `crun exec`, in a directory of its own. config: an OCI process."""

    directory: str

    @property
    def config(self) -> str:
        """Read by crun."""
        return f"{self.directory}/process.json"

    @property
    def pid_file(self) -> str:
        """Written by crun."""
        return f"{self.directory}/pid"

    @property
    def log(self) -> str:
        """The FIFO; made by whoever makes the directory."""
        return f"{self.directory}/log"


class Crun:
    """crun with its state directory."""

    def __init__(
        self, processes: Processes, root: str = "/run/crun", options: Sequence[str] = ()
    ) -> None:
        """root: where crun keeps its state. options: more global options."""
        self._processes = processes
        self._executing = threading.BoundedSemaphore(_EXECUTING)
        self._globals = [_PROGRAM, f"--root={root}", *options]

    def create(
        self, bundle: Bundle, program: str, stdio: tuple[int, int, int], console: str
    ) -> Child:
        """Make the container and its first process, which waits for `start`.

        program: for texts. stdio: that process's descriptors, all above 2; the caller closes its
        copies. console: path of the ConsoleSocket, empty without a terminal. Raises StartError."""
        arguments = ["create", f"--bundle={bundle.directory}", f"--pid-file={bundle.pid_file}"]
        if console:
            arguments.append(f"--console-socket={console}")
        self._run([*arguments, bundle.container], bundle.log, stdio, program)
        return self._adopt(bundle.pid_file)

    def execute(
        self,
        container: str,
        files: Execution,
        program: str,
        stdio: tuple[int, int, int],
        console: str,
    ) -> Child:
        """Run one more program in a running container; returns when it runs. Members as in `create`.

        Raises StartError."""
        arguments = [f"--process={files.config}", "--detach", f"--pid-file={files.pid_file}"]
        if console:
            arguments.append(f"--console-socket={console}")
        log = os.open(files.log, os.O_RDONLY | os.O_NONBLOCK)
        try:
            with self._executing:
                crun = self._spawn(["exec", *arguments, container], files.log, stdio)
                words = _words_until_end(log, crun)
        finally:
            os.close(log)
        code = _wait(crun, "exec", 0)
        if code == 0:
            child = self._adopt(files.pid_file)
            if not words:
                return child
        raise translate(words or f"crun exec ended with {code}", program)

    def start(self, bundle: Bundle, init: Child) -> None:
        """Let the first process become the program. init: that process, which may be killed meanwhile:
        crun would then wait for it without end. Raises StartError."""
        self._call(bundle, "start", bundle.container, needed=init)

    def update(self, bundle: Bundle, resources: str) -> None:
        """Set other limits. resources: a file that holds an OCI linux.resources. Raises StartError."""
        self._call(bundle, "update", f"--resources={resources}", bundle.container)

    def delete(self, bundle: Bundle) -> None:
        """Remove what crun knows and made, whatever state it is in. Raises StartError."""
        self._call(bundle, "delete", "--force", bundle.container)

    def _call(self, bundle: Bundle, *arguments: str, needed: Child | None = None) -> None:
        null = os.open(os.devnull, os.O_RDWR)
        try:
            self._run(arguments, bundle.log, (null, null, null), needed=needed)
        finally:
            os.close(null)

    def _run(
        self,
        arguments: Sequence[str],
        log: str,
        stdio: tuple[int, int, int],
        program: str = "",
        needed: Child | None = None,
    ) -> None:
        with suppress(FileNotFoundError):
            os.unlink(log)
        crun = self._spawn(arguments, log, stdio)
        if needed is not None:
            _end_without(needed, crun)
        code = _wait(crun, arguments[0], _SECONDS)
        if code != 0:
            raise translate(last_words(log) or f"crun {arguments[0]} ended with {code}", program)

    def _spawn(self, arguments: Sequence[str], log: str, stdio: tuple[int, int, int]) -> Child:
        try:
            return self._processes.spawn(
                [*self._globals, f"--log={log}", *arguments], _ENVIRONMENT, stdio
            )
        except OSError as error:
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"cannot execute {_PROGRAM}: {error.strerror}"
            ) from error

    def _adopt(self, pid_file: str) -> Child:
        try:
            with open(pid_file, "rb") as file:
                return self._processes.adopt(int(file.read()))
        except (OSError, ValueError) as error:
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"cannot find the program's process: {error}"
            ) from error


def _wait(crun: Child, verb: str, seconds: float) -> int:
    code = crun.wait(seconds)
    if code is None:
        crun.signal(9)
        raise StartError(ErrorCode.RUNTIME_FAILED, f"crun {verb} did not end in {_SECONDS} s")
    return code


def _end_without(needed: Child, crun: Child) -> None:
    """Return when crun has ended; soon after `needed` has ended, it is killed."""
    deadline = time.monotonic() + _SECONDS
    while crun.wait(_POLL_MS / 1000) is None and time.monotonic() < deadline:
        if needed.code is not None and crun.wait(_LAST_SECONDS) is None:
            crun.signal(9)


def _words_until_end(log: int, crun: Child) -> str:
    """What crun and the program's process write until neither can write any more. log: a FIFO,
    non-blocking. Gives up on the program's process soon after crun has ended."""
    words = b""
    deadline = time.monotonic() + _SECONDS
    poll = select.poll()
    poll.register(log, select.POLLIN)
    ended = False
    while time.monotonic() < deadline:
        if poll.poll(_POLL_MS):
            chunk = os.read(log, limits.STREAM_CHUNK_BYTES)
            if not chunk:
                crun.wait(_EXECUTE_SECONDS)
                break
            words = (words + chunk)[-limits.STREAM_CHUNK_BYTES :]
        elif ended:
            continue
        elif crun.code is not None:
            ended = True
            deadline = min(deadline, time.monotonic() + _EXECUTE_SECONDS)
            if crun.code != 0:
                break
    return _last_line(words)


def translate(text: str, program: str) -> StartError:
    """crun's sentence as an error with the code that fits; engines match on its wording.

    program: what was to be executed, which crun does not always name."""
    if _NOT_FOUND in text:
        return StartError(ErrorCode.PROGRAM_NOT_FOUND, text)
    what, colon, cause = text.partition(": ")
    if what not in _UNNAMED or not colon:
        return StartError(ErrorCode.RUNTIME_FAILED, text)
    named = f"{what} `{program}`: {cause}"
    if text == _NO_INTERPRETER:
        return StartError(ErrorCode.PROGRAM_NOT_FOUND, named)
    if cause == "Operation not permitted":
        named += " (permission denied)"
    code = _NOT_EXECUTABLE.get(cause, ErrorCode.RUNTIME_FAILED)
    return StartError(code, named)


def last_words(log: str) -> str:
    """The last line of a log of crun's, empty where there is none."""
    try:
        with open(log, "rb") as file:
            return _last_line(file.read(limits.KIB * 64))
    except FileNotFoundError:
        return ""


def _last_line(text: bytes) -> str:
    lines = text.decode("utf-8", "replace").split("\n")
    return next((line for line in reversed(lines) if line.strip()), "")
