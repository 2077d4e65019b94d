"""Being in a network namespace for as long as it takes to open something in it.

Sockets and taps belong to the namespace that the thread is in when they are opened; what is done with
them afterwards needs no entering.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from sealrun_runtime import namespaces

OWN: Final = "/proc/thread-self/ns/net"
_Result = TypeVar("_Result")


def inside(descriptor: int, work: Callable[[], _Result]) -> _Result:
    """What `work` returns in the namespace of an open /proc/PID/ns/net file.

    By a thread of its own, which ends there: who is root in a user namespace only could not come back
    to the host's namespace. Raises OSError, and what `work` raises."""

    def enter() -> _Result:
        namespaces.setns(descriptor, namespaces.CLONE["network"])
        return work()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(enter).result()


def is_own(descriptor: int) -> bool:
    """Whether it is the namespace of the calling thread. Raises OSError."""
    return os.path.samestat(os.fstat(descriptor), os.stat(OWN))


def identity(descriptor: int) -> str:
    """What tells a namespace from others, also from one that later has the same path."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"
