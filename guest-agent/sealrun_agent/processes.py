"""The children of PID 1: who starts them, who reaps them, who is told.

PID 1 inherits every orphan of the VM and has to reap it. `Processes` is therefore the *only* caller
of wait in the agent: it reaps whatever ends and hands the status to whoever owns the process. The
subprocess module must not be used beside it (it takes a status that was reaped elsewhere for
success).

A pid is spoken to only under the lock that reaping takes too: until it is reaped, it cannot become
another process's.
"""

import os
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

_UNCLAIMED: Final = 64  # statuses kept of orphans that somebody may still adopt


class Child:
    """A process that the agent started or adopted. `wait` and `signal` from any thread."""

    def __init__(self, pid: int, lock: threading.Lock) -> None:
        self.pid = pid
        self._lock = lock
        self._ended = threading.Event()
        self._code = 0
        self._on_exit: Callable[[], None] | None = None

    @property
    def code(self) -> int | None:
        """0-255, 128+n where signal n ended it; None while it lives."""
        return self._code if self._ended.is_set() else None

    def wait(self, seconds: float) -> int | None:
        """The code as soon as it ended, None after `seconds` without."""
        self._ended.wait(seconds)
        return self.code

    def signal(self, number: int) -> bool:
        """Send a signal. Returns whether the process was still there to get it."""
        with self._lock:
            if self._ended.is_set():
                return False
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)
                return True
            return False

    def on_exit(self, call: Callable[[], None]) -> None:
        """Call once when it has ended, in the thread that reaps; at once where it has already."""
        with self._lock:
            if not self._ended.is_set():
                self._on_exit = call
                return
        call()

    def end(self, code: int) -> Callable[[], None] | None:
        """Record the end, with the lock held. Returns what is to be called without it."""
        self._code = code
        self._ended.set()
        return self._on_exit


class Processes:
    """All children. One per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: dict[int, Child] = {}
        self._unclaimed: dict[int, int] = {}

    def spawn(
        self, argv: list[str], environment: Mapping[str, str], stdio: tuple[int, int, int]
    ) -> Child:
        """Start a program with these three descriptors (all above 2) and no others.

        Raises OSError where it cannot be executed."""
        assert min(stdio) > 2, "dup2 must not overwrite what it still has to copy"
        actions = [(os.POSIX_SPAWN_DUP2, fd, target) for target, fd in enumerate(stdio)]
        with self._lock:
            pid = os.posix_spawn(
                argv[0],
                argv,
                environment,
                file_actions=actions,
                # Python ignores these; ignored signals would stay so in the container.
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
                setsigmask=[],
            )
            return self._own(pid)

    def adopt(self, pid: int) -> Child:
        """Own a process that was or will be re-parented to the agent, though it may have ended.

        Raises ProcessLookupError where there is none."""
        with self._lock:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                if pid not in self._unclaimed:
                    raise
                child = Child(pid, self._lock)
                child.end(self._unclaimed.pop(pid))
                return child
            return self._own(pid)

    def reap(self) -> None:
        """Take the status of all that ended. Called on SIGCHLD, by one thread."""
        calls: list[Callable[[], None]] = []
        with self._lock, suppress(ChildProcessError):
            while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG)) is not None:
                exited = ended.si_code == os.CLD_EXITED
                code = ended.si_status if exited else 128 + ended.si_status
                child = self._children.pop(ended.si_pid, None)
                if child is None:
                    self._leave(ended.si_pid, code)
                elif (call := child.end(code)) is not None:
                    calls.append(call)
        for call in calls:
            call()

    def _own(self, pid: int) -> Child:
        child = self._children[pid] = Child(pid, self._lock)
        return child

    def _leave(self, pid: int, code: int) -> None:
        self._unclaimed[pid] = code
        if len(self._unclaimed) > _UNCLAIMED:
            del self._unclaimed[next(iter(self._unclaimed))]
