"""A VMM process: started with nothing of its parent's but what it is given, noticed when it dies.

It gets its own session, /dev/null as stdin, bounded logs as stdout and stderr, no other descriptors
but those named, and a SIGKILL from the kernel when the thread that started it ends. That must
therefore be the main thread of the process that owns the VM.
"""

import asyncio
import ctypes
import os
import resource
import signal
import subprocess
from collections.abc import Callable, Sequence

from sealrun_vmm.errors import LaunchFailed
from sealrun_vmm.log import CappedLog

# Engines call with little or no PATH.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LOG_TAIL_BYTES = 4096
_TEXT_CHARACTERS = 300

Enlist = Callable[[], None]
"""What a process that was just forked does to become known, before it executes its program; raises
OSError, and is then no more."""

_prctl = ctypes.CDLL(None, use_errno=True).prctl


class VmmProcess:
    """A running VMM. Must be created with a running event loop, which watches it."""

    def __init__(self, process: "subprocess.Popen[bytes]", logs: Sequence[CappedLog] = ()) -> None:
        self._process, self._logs = process, logs
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    async def wait(self) -> int:
        """The exit status once the process is gone and reaped; -n where signal n ended it.

        The logs are complete by then."""
        return await asyncio.shield(self._ended)

    async def kill(self) -> None:
        """End it now; returns when it is reaped. Idempotent."""
        if not self._ended.done():
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        await self.wait()

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        for log in self._logs:
            log.finish()
        self._ended.set_result(self._process.wait())


def unknown() -> None:
    """Enlist nowhere."""


def die_with(parent: int) -> None:
    """A process that was just forked by `parent` is to be killed when that thread of it ends."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was gone before the kernel was asked
        os._exit(1)


def spawn(
    command: Sequence[str],
    directory: str,
    *,
    output: str,
    errors: str,
    descriptors: Sequence[int] = (),
    user: int | None = None,
    enlist: Enlist = unknown,
) -> VmmProcess:
    """Start `command` in `directory`, with what it writes in the files `output` and `errors` there.

    user: uid and gid that it runs with, without any other group; None: those of this process.
    Raises LaunchFailed where the program cannot be executed, a log cannot be written, or `enlist`
    fails."""
    parent = os.getpid()
    most = resource.getrlimit(resource.RLIMIT_CORE)[1]

    def prepare() -> None:
        enlist()
        if user is not None:
            os.setgroups(())
            os.setgid(user)
            os.setuid(user)
        # Of a VM's memory nothing may come to a disk because its VMM crashes.
        resource.setrlimit(resource.RLIMIT_CORE, (0, most))
        die_with(parent)  # which a change of the user would take back

    logs: list[CappedLog] = []
    try:
        for name in (output, errors):
            logs.append(CappedLog(os.path.join(directory, name)))  # noqa: PERF401 - kept on failure
        process = subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=logs[0].writer,
            stderr=logs[1].writer,
            pass_fds=tuple(descriptors),
            start_new_session=True,
            preexec_fn=prepare,  # noqa: PLW1509 - a few system calls, no Python locks
        )
    except (OSError, subprocess.SubprocessError) as error:
        for log in logs:
            log.finish()
        # Of what went wrong in `prepare` no more is known.
        cause = error.strerror if isinstance(error, OSError) else "its process cannot be noted"
        raise LaunchFailed(f"cannot start {command[0]}: {cause}") from error
    finally:
        for log in logs:
            log.handed_over()
    return VmmProcess(process, logs)


def last_line(path: str) -> str:
    """The last line with text in the log at `path`, made fit for a message; empty without one."""
    return printable(next(reversed(tail(path)), ""))


def tail(path: str, size: int = _LOG_TAIL_BYTES) -> list[str]:
    """The lines with text in the last `size` bytes of `path`; none where it cannot be read."""
    try:
        with open(path, "rb") as stream:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - size))
            data = stream.read(size)
    except OSError:
        return []
    lines = data.decode("utf-8", "replace").splitlines()
    return [printable(line) for line in lines if line.strip()]


def printable(text: str) -> str:
    """One bounded line without control characters: a guest may have written it, and a terminal may
    show it."""
    shown = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(shown.split())[:_TEXT_CHARACTERS]
