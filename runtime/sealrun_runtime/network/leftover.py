"""The redirections of a sandbox whose shim was killed, found by what it recorded and undone.

Called by `delete`, and only where there is a record. A namespace that is gone has taken them with it; in
one that a living sandbox has taken over since, nothing is touched.
"""

import contextlib
import os

from sealrun_runtime.network import namespace, tap
from sealrun_runtime.network.netlink import Netlink
from sealrun_runtime.network.survey import survey


def line(interface: int, descriptor: int, path: str) -> str:
    """What is recorded of a redirection at the interface with this index. descriptor, path: of the
    namespace."""
    return f"{interface} {namespace.identity(descriptor)} {path}"


def release(record: str) -> None:
    """Undo what the lines of a record name. Raises OSError."""
    for one in record.splitlines():
        interface, identity, path = one.split(" ", 2)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if namespace.identity(descriptor) == identity:
                    _release(int(interface), descriptor)
            finally:
                os.close(descriptor)


def _release(interface: int, descriptor: int) -> None:
    with namespace.inside(descriptor, Netlink) as netlink:
        if not survey(netlink).in_use:
            tap.release(netlink, interface)
