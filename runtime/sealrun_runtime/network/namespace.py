"""Entering a network namespace for as long as it takes to open something in it.

Sockets and taps belong to the namespace that the thread is in when they are opened; what is done with
them afterwards needs no entering. Other threads are not moved.
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from sealrun_runtime import namespaces

OWN: Final = "/proc/thread-self/ns/net"


@contextlib.contextmanager
def entered(descriptor: int) -> Iterator[None]:
    """The calling thread is in the namespace of an open /proc/PID/ns/net file. Raises OSError."""
    own = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespaces.setns(descriptor, namespaces.CLONE["network"])
        try:
            yield
        finally:
            namespaces.setns(own, namespaces.CLONE["network"])
    finally:
        os.close(own)


def is_own(descriptor: int) -> bool:
    """Whether it is the namespace of the calling thread. Raises OSError."""
    return os.path.samestat(os.fstat(descriptor), os.stat(OWN))


def identity(descriptor: int) -> str:
    """What tells a namespace from others, also from one that later has the same path."""
    status = os.fstat(descriptor)
    return f"{status.st_dev}:{status.st_ino}"
