"""What the containers of a pod share besides the network: namespaces for ipc, uts and pid, and /dev/shm.

A container that shares none has new ones of its own. The first that asks for one kind of them makes it;
it lasts as long as the sandbox, so members may come, go and come again. None of them is the agent's own:
a container can neither see the agent's processes nor speak to them.

    directory/ipc, uts, pid    namespaces, bound to files (namespaces(7))
    directory/shm              the tmpfs that is /dev/shm for all who share ipc
"""

import os
import sys
import threading
from collections.abc import Collection, Mapping
from typing import Final

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.container.bundle import set_sysctl
from sealrun_agent.container.linux import split_sysctl
from sealrun_agent.errors import StartError
from sealrun_agent.processes import Processes

_CLONE: Final = {"uts": 0x0400_0000, "ipc": 0x0800_0000, "pid": 0x2000_0000}  # sched.h
_SHM_BYTES: Final = 64 << 20  # where the engine does not say it, as engines do
# The first process of the pid namespace, which dies with it. It inherits orphans, and ignores their end:
# the kernel reaps them then (wait(2)). No signal that it has no handler for reaches it from inside.
_HOLDER: Final = "import signal as s; s.signal(s.SIGCHLD, s.SIG_IGN)\nwhile True: s.pause()"


class SandboxNamespaces:
    """`take` from any worker; `set_sysctl` before it."""

    def __init__(self, directory: str, processes: Processes) -> None:
        self._directory, self._processes = directory, processes
        self._lock = threading.Lock()
        self._made: set[str] = set()
        self._sysctl: dict[str, str] = {}

    def set_sysctl(self, settings: Mapping[str, str]) -> None:
        """Kernel parameters of the pod: those of the network at once, those of ipc when somebody shares
        it. Raises StartError(SPEC_REFUSED)."""
        self._sysctl, network = split_sysctl(settings)
        set_sysctl(network)

    def take(self, kinds: Collection[str], shm_bytes: int) -> str:
        """The directory in which each of `kinds` lies (of ipc, uts, pid), and shm with ipc. shm_bytes: the
        size of /dev/shm where this makes it; 0: a usual one. Raises StartError."""
        with self._lock:
            for kind in sorted(set(kinds) - self._made):
                self._make(kind, shm_bytes or _SHM_BYTES)
                self._made.add(kind)
        return self._directory

    def _make(self, kind: str, shm_bytes: int) -> None:
        failures: list[Exception] = []

        def make() -> None:
            try:
                self._unshare(kind, shm_bytes)
            except (OSError, StartError) as error:
                failures.append(error)

        # What unshare(2) changes is the thread's, and ends with it.
        thread = threading.Thread(target=make, name=f"unshare-{kind}")
        thread.start()
        thread.join()
        for failure in failures:
            if isinstance(failure, StartError):
                raise failure
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"cannot make the pod's {kind} namespace: {failure}"
            ) from failure

    def _unshare(self, kind: str, shm_bytes: int) -> None:
        """Raises OSError, StartError."""
        from sealrun_agent import syscall

        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        place = f"{self._directory}/{kind}"
        with open(place, "wb"):
            pass
        syscall.unshare(_CLONE[kind])
        source = "/proc/thread-self/ns/"
        if kind == "pid":  # it is the children's only
            source = f"/proc/{self._hold()}/ns/"
        if kind == "ipc":
            # The kernel looks at the ipc namespace of who opens the file, which is this thread's.
            set_sysctl(self._sysctl)
            shm = f"{self._directory}/shm"
            os.mkdir(shm)
            flags = syscall.MS_NOSUID | syscall.MS_NODEV | syscall.MS_NOEXEC
            syscall.mount("shm", shm, "tmpfs", flags, f"mode=1777,size={shm_bytes}")
        syscall.mount(source + kind, place, "", syscall.MS_BIND, "")

    def _hold(self) -> int:
        """Its pid. Raises OSError."""
        null = [os.open(os.devnull, os.O_RDWR) for _ in range(3)]
        try:
            stdio = (null[0], null[1], null[2])
            return self._processes.spawn([sys.executable, "-ISE", "-c", _HOLDER], {}, stdio).pid
        finally:
            for descriptor in null:
                os.close(descriptor)
