"""A container's control group (cgroup v2): its processes, the freezer, how often memory ran out.

crun makes and removes it, and sets its limits; what is only a file is read and written here. Blocking
for a moment at most: for workers, but for `oom_kills`. See Documentation/admin-guide/cgroup-v2.rst in
the kernel's sources.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import RunError

_ROOT: Final = "/sys/fs/cgroup"
_FREEZE_SECONDS: Final = 10.0  # a process in the middle of a system call is frozen at its end


def path_of(container: str) -> str:
    """Below the root of the cgroup file system, as config.json's linux.cgroupsPath has it."""
    return f"/sealrun/{container}"


class Cgroup:
    """directory: absolute."""

    def __init__(self, directory: str) -> None:
        self._directory = directory

    @classmethod
    def of(cls, container: str) -> "Cgroup":
        """The one that crun makes for a container."""
        return cls(_ROOT + path_of(container))

    def read(self, name: str) -> str | None:
        """The content of a file, None where the controller is not there."""
        try:
            with open(f"{self._directory}/{name}", encoding="ascii", errors="replace") as file:
                return file.read()
        except OSError:  # no such file, or a controller that has no figures (ENODEV, EOPNOTSUPP)
            return None

    def names(self) -> list[str]:
        """The files there are."""
        try:
            return os.listdir(self._directory)
        except OSError:
            return []

    def table(self, name: str) -> dict[str, int]:
        """A file of lines `key number`; empty where it is not there."""
        pairs = (line.split() for line in (self.read(name) or "").splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}

    def pids(self) -> Iterator[int]:
        """All processes, also those that the container has put into groups of its own."""
        for directory, _, _ in os.walk(self._directory):
            with suppress(FileNotFoundError), open(f"{directory}/cgroup.procs") as file:
                yield from map(int, file.read().split())

    def oom_kills(self) -> int:
        """How many processes were killed because memory ran out."""
        return self.table("memory.events").get("oom_kill", 0)

    def freeze(self) -> None:
        """Stop all processes. Raises RunError where they do not stop, and lets them go on then."""
        self._write("cgroup.freeze", "1")
        deadline = time.monotonic() + _FREEZE_SECONDS
        while not self.table("cgroup.events").get("frozen"):
            if time.monotonic() > deadline:
                self.thaw()
                raise RunError(
                    ErrorCode.RUNTIME_FAILED,
                    f"cannot pause: the processes did not stop in {_FREEZE_SECONDS:.0f} s",
                )
            time.sleep(0.002)

    def thaw(self) -> None:
        """Let all processes go on. Raises RunError."""
        self._write("cgroup.freeze", "0")

    def signal_all(self, number: int) -> None:
        """Send a signal to every process. They are held meanwhile, so that none escapes by forking.

        Raises RunError."""
        frozen = (self.read("cgroup.freeze") or "").strip() == "1"
        if not frozen:
            self.freeze()
        try:
            for pid in self.pids():
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        finally:
            if not frozen:
                self.thaw()

    def kill(self) -> None:
        """End every process, at once: for any thread. Nothing where there is none left."""
        with suppress(RunError):
            self._write("cgroup.kill", "1")

    def _write(self, name: str, text: str) -> None:
        try:
            with open(f"{self._directory}/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise RunError(
                ErrorCode.RUNTIME_FAILED, f"cannot write {name}: {error.strerror}"
            ) from error
