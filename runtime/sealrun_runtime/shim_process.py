"""Starting the shim: a daemon in a session of its own that keeps nothing of `create`'s descriptors.

Engines wait for whoever holds their pipes, and leak descriptors of their own into `create`: the shim
starts with /dev/null, its log and the listening control socket, and nothing else. It gets no
environment but a PATH: what it does depends on shim.json alone.
"""

import fcntl
import os
import signal
import socket
from typing import Final, NoReturn

from sealrun_runtime import installation, leftovers
from sealrun_runtime.errors import HostError, cause
from sealrun_runtime.store import SHIM_LOG, SOCKET, Directory

LISTEN: Final = 3  # the control socket's descriptor in the shim
_ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_DESCRIPTORS: Final = 2**31 - 1
_BACKLOG: Final = 128


def listen(directory: Directory) -> socket.socket:
    """The control socket, listening. It exists before the shim does, so that nobody waits for it.
    Raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(f"/proc/self/fd/{directory.descriptor}/{SOCKET}")
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def spawn(directory: Directory, listener: socket.socket) -> None:
    """Start the shim; it is enlisted and executed on return. Raises HostError."""
    try:
        reader, writer = os.pipe()
        with open(reader, "rb") as report:
            try:
                middle = os.fork()
                if middle == 0:
                    _detach(directory, listener, writer)
            finally:
                os.close(writer)
            os.waitpid(middle, 0)
            failure = (
                report.read()
            )  # its end: the shim, the last that has the writing end, executes
    except OSError as error:
        raise HostError(f"cannot start the shim: {cause(error)}") from error
    if failure:
        raise HostError(f"cannot start the shim: {failure.decode()}")


def explained(error: HostError, directory: Directory) -> HostError:
    """The error of asking a shim, with what the shim said last."""
    words = _last_words(directory)
    return HostError(f"{error.text}: {words}" if words else error.text, remedy=error.remedy)


def _last_words(directory: Directory) -> str:
    """What is to be said of a shim that ended without an answer: the last line of its log, where that
    is not just about what goes on."""
    lines = directory.read(SHIM_LOG).decode("utf-8", "replace").strip().splitlines()
    stamp, _, words = lines[-1].partition(" ") if lines else ("", "", "")
    level, _, text = words.partition(" ")
    if level in ("INFO", "DEBUG"):
        return ""
    return text if level == "ERROR" else f"{stamp} {words}".strip()


def _detach(directory: Directory, listener: socket.socket, report: int) -> NoReturn:
    """In the first child: fork the shim and end. The shim is then nobody's child here, and the engine
    that inherits it reaps it."""
    try:
        os.setsid()
        if os.fork() == 0:
            _execute(directory, listener, report)
    except OSError as error:
        os.write(report, cause(error).encode())
    finally:
        os._exit(0)


def _execute(directory: Directory, listener: socket.socket, report: int) -> NoReturn:
    """In the second child: become the shim. A failure is written to `report`."""
    try:
        leftovers.enlist(directory, leftovers.SHIM_ROLE)
        report = fcntl.fcntl(report, fcntl.F_DUPFD_CLOEXEC, LISTEN + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(SHIM_LOG, flags, 0o600, dir_fd=directory.descriptor), 2)
        os.umask(0o077)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.chdir("/")
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(0, 1)
        os.dup2(listener.fileno(), LISTEN)
        os.set_inheritable(LISTEN, True)
        os.closerange(LISTEN + 1, report)
        os.closerange(report + 1, _DESCRIPTORS)
        arguments = ("--directory", directory.path, "--listen-fd", str(LISTEN))
        launcher = installation.shim_launcher()
        os.execve(launcher, [launcher, *arguments], _ENVIRONMENT)  # noqa: S606
    except OSError as error:
        os.write(report, cause(error).encode())
    finally:
        os._exit(1)
