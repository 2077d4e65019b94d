"""rtnetlink to the guest's kernel: one request after the other, each answered at once."""

import contextlib
import errno
import socket
from typing import Final

from sealrun_protocol.rtnetlink import (
    RECEIVE_BYTES,
    Answer,
    Flag,
    Kind,
    Link,
    LinkAttribute,
    Packet,
    link,
    link_body,
    request,
)

_APPEND: Final = 0x800  # NLM_F_APPEND
_GONE: Final = frozenset({errno.ENODEV, errno.ENOENT, errno.ESRCH, errno.EADDRNOTAVAIL})


class Kernel:
    """Works on the network namespace of the process. All methods raise OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._sequence = 0

    def links(self) -> dict[int, Link]:
        """All interfaces, by index."""
        found = [link(packet.body) for packet in self._ask(Kind.GET_LINK, Flag.DUMP, link_body(0))]
        return {one.number: one for one in found}

    def set_link(self, index: int, *attributes: bytes, flags: int = 0, changed: int = 0) -> None:
        """Change an interface."""
        body = link_body(index, flags, changed) + b"".join(attributes)
        self._ask(Kind.SET_LINK, Flag.ACKNOWLEDGE, body)

    def add(self, kind: Kind, body: bytes) -> None:
        """Make something; nothing where it is there already."""
        with contextlib.suppress(FileExistsError):
            self._ask(kind, Flag.ACKNOWLEDGE | Flag.CREATE | _APPEND, body)

    def remove(self, kind: Kind, body: bytes) -> None:
        """Unmake something; nothing where it is gone, with its interface for instance."""
        try:
            self._ask(kind, Flag.ACKNOWLEDGE, body)
        except OSError as error:
            if error.errno not in _GONE:
                raise

    def _ask(self, kind: Kind, flags: int, body: bytes) -> list[Packet]:
        self._sequence += 1
        self._socket.send(request(kind, Flag.REQUEST | flags, self._sequence, body))
        answer = Answer(self._sequence)
        while not answer.take(self._socket.recv(RECEIVE_BYTES)):
            pass
        return answer.packets


def name_of(one: Link) -> str:
    """An interface's name."""
    return one.attributes[LinkAttribute.NAME].rstrip(b"\0").decode("utf-8", "replace")


def mac_of(one: Link) -> bytes:
    """An interface's MAC address; empty without one."""
    return one.attributes.get(LinkAttribute.ADDRESS, b"")
