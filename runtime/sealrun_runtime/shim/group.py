"""A control group on the host, however it is made: cgroup.py, or scope.py, which is imported where
systemd makes it only."""

from typing import Protocol

from sealrun_runtime.host_limits import VmLimits


class Group(Protocol):
    """Of a sandbox or a container."""

    def make(self) -> None:
        """Get ready. Raises OSError; what was made until then is removed by `remove`."""

    def join(self, pid: int) -> None:
        """Move a process, with its threads. Raises OSError."""

    def join_self(self) -> None:
        """Move this process. Raises OSError."""

    def limit(self, limits: VmLimits) -> None:
        """Set or change limits. Raises OSError."""

    def remove(self) -> list[str]:
        """Leave, and remove what was made. Returns what is still there: busy, or used by others."""
