"""Executing one more program in a container: its terminal, its stand-in, the request, the wait."""

import array
import os
import select
import signal
from contextlib import ExitStack, suppress
from functools import partial
from typing import Final, NamedTuple

from sealrun_runtime import handover, leftovers, open_files, pid_file, stand_in, store
from sealrun_runtime.client import Connection
from sealrun_runtime.commands import state
from sealrun_runtime.errors import (
    KIND_WRONG_STATE,
    HostError,
    NotFound,
    Reported,
    WrongState,
)
from sealrun_runtime.interruption import exit_code, forwarding, hold_back, interruptible
from sealrun_runtime.oci_config import Process
from sealrun_runtime.terminal import Size, Terminal, own_size, proxied, pump

ANSWER_SECONDS: Final = 150.0  # the guest's crun starts the program, emulated, on a loaded machine
LINK_SECONDS: Final = 2.0  # the shim lets go of a link at once


class Request(NamedTuple):
    """What to execute. content: the OCI `process` that goes to the guest, as it was read."""

    process: Process
    content: str
    pid_path: str
    console_socket: str


class Executed(NamedTuple):
    """A program that runs. terminal: where it has one and no engine took the master."""

    stand_in: int
    terminal: Terminal | None


def execute(directory: store.Directory, request: Request, *, detached: bool) -> int:
    """The exit code of the program; 0 at once where `detached`.

    Signals are held back from here to the process's end, but where they call the execution off or
    are passed on. Raises WrongState where the container does not run, Reported, HostError,
    InvalidRequest."""
    if request.pid_path:
        pid_file.expect_place(request.pid_path)
    hold_back()
    open_files.raise_limit()
    executed = _begin(directory, request)
    if detached:
        return 0
    with forwarding(lambda number: _pass_on(executed.stand_in, number)):
        if executed.terminal is not None:
            with proxied(executed.terminal.master):
                pump(executed.terminal.master)
        return exit_code(executed.stand_in)


def _begin(directory: store.Directory, request: Request) -> Executed:
    """Return when the program runs. What was made is undone where that fails: a stand-in that is
    killed takes its program with it."""
    expect_live(directory)
    with ExitStack() as undo:
        terminal, slave = None, stand_in.NO_TERMINAL
        if request.process.terminal:
            terminal = Terminal(_size(request))
            undo.callback(terminal.close)
            slave = terminal.slave
        pid, link = _stand_in(directory, slave)
        undo.callback(_end, directory, pid)
        with link:
            if terminal is not None and request.console_socket:
                terminal.hand_over(request.console_socket)
            stdio = (0, 1, 2) if terminal is None else (slave, slave, slave)
            descriptors = array.array("i", (*stdio, link.fileno())).tobytes()
            connection = _ask(directory, request, pid, descriptors)
        undo.callback(connection.close)
        if terminal is not None:
            terminal.close_slave()
        _await_answer(directory, connection)
        if request.pid_path:
            pid_file.write(request.pid_path, pid)
        undo.pop_all()
        connection.close()
    return Executed(pid, terminal)


def _size(request: Request) -> Size:
    said = request.process.console_size
    size = Size(said.height, said.width) if said else Size(0, 0)
    return size if request.console_socket else own_size() or size


def _stand_in(directory: store.Directory, slave: int) -> stand_in.StandIn:
    container = handover.decode(directory.read(handover.FILE)).container
    try:
        first = leftovers.find(directory, leftovers.STAND_IN_ROLE)
    except NotFound:
        raise _stopped() from None
    try:
        enlist = partial(leftovers.enlist_exec, directory)
        return stand_in.start_exec(first, container.rootfs, enlist, slave)
    except HostError:
        expect_live(directory)  # its namespaces go when it ends
        raise
    finally:
        os.close(first)


def _ask(directory: store.Directory, request: Request, pid: int, descriptors: bytes) -> Connection:
    try:
        connection = Connection(directory)
    except (ConnectionRefusedError, FileNotFoundError):
        raise _stopped() from None
    process_id = os.urandom(8).hex()
    fields = ("exec", directory.container, process_id, str(pid), request.content)
    with ExitStack() as undo:
        undo.callback(connection.close)
        connection.send(*fields, descriptors=descriptors)
        undo.pop_all()
    return connection


def _await_answer(directory: store.Directory, connection: Connection) -> None:
    try:
        with interruptible():
            while connection.receive(ANSWER_SECONDS) is not None:
                pass
    except Reported as error:
        if error.kind == KIND_WRONG_STATE:
            expect_live(directory)
        raise


def expect_live(directory: store.Directory) -> None:
    """Raises WrongState, in runc's words."""
    status = store.status_of(state.current(directory))
    if status == "paused":
        raise WrongState("cannot exec in a paused container")
    if status in ("stopped", ""):
        raise _stopped()
    if status not in ("created", "running"):
        raise WrongState(f"cannot exec in a container that is not running: {status}")


def _stopped() -> WrongState:
    return WrongState("cannot exec in a stopped container")


def _pass_on(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _end(directory: store.Directory, pid: int) -> None:
    """Reap a stand-in whose program does not run. It ends with its link, and has then reaped who reads
    it: killed, it would leave that one to the container's stand-in, which never reaps. One whose link
    somebody still holds is killed."""
    stand_in_ended = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(stand_in_ended, select.POLLIN)
        if not poller.poll(LINK_SECONDS * 1000):
            os.kill(pid, signal.SIGKILL)
    finally:
        os.close(stand_in_ended)
    os.waitpid(pid, 0)
    leftovers.strike(directory, pid)
