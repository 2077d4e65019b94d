"""A control group on the host, however it is made: cgroup.py, or scope.py, which is imported where
systemd makes it only."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from sealrun_runtime.host_limits import VmLimits


class Group(Protocol):
    """Of a sandbox or a container. waits: joining and limiting it takes another process's answer."""

    waits: bool

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


async def carry_out(group: Group, work: Callable[[], None]) -> None:
    """Something with the group, by a thread where it waits: most shims have no use for one. Raises what
    `work` raises."""
    if group.waits:
        await asyncio.to_thread(work)
    else:
        work()
