"""Asking the kernel about the network of one namespace, and hearing of its changes.

A socket belongs to the namespace that the calling thread is in when it is made, for ever: nobody has
to enter the namespace again to speak to it.
"""

import socket
from typing import Final, Self

from sealrun_protocol.rtnetlink import (
    RECEIVE_BYTES,
    Answer,
    Flag,
    Interrupted,
    Kind,
    Packet,
    request,
)

_ATTEMPTS: Final = 5  # to be told something that changes meanwhile
# RTMGRP_… of linux/rtnetlink.h: links, IPv4 and IPv6 addresses and routes
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


class Netlink:
    """One request after the other. The kernel answers at once: nothing waits."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = _socket(0)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the namespace."""
        self._socket.close()

    def change(self, kind: Kind, body: bytes, flags: int = 0) -> None:
        """Carry out one request. Raises OSError where the kernel refuses."""
        self._ask(kind, Flag.ACKNOWLEDGE | flags, body)

    def get(self, kind: Kind, body: bytes) -> bytes:
        """The one thing that is asked for: the answer's body. Raises OSError."""
        return self._ask(kind, Flag.ACKNOWLEDGE, body)[0].body

    def dump(self, kind: Kind, body: bytes) -> list[Packet]:
        """All that there is of a kind (GET_…). Raises OSError."""
        for _ in range(_ATTEMPTS - 1):
            try:
                return self._ask(kind, Flag.DUMP, body)
            except Interrupted:
                continue
        try:
            return self._ask(kind, Flag.DUMP, body)
        except Interrupted as error:
            raise OSError(None, "it changes faster than it can be read") from error

    def _ask(self, kind: Kind, flags: int, body: bytes) -> list[Packet]:
        self._sequence += 1
        self._socket.send(request(kind, Flag.REQUEST | flags, self._sequence, body))
        answer = Answer(self._sequence)
        while not answer.take(self._socket.recv(RECEIVE_BYTES)):
            pass
        return answer.packets


class Changes:
    """Says that something in the namespace changed; what, is to be looked up."""

    def __init__(self) -> None:
        """Raises OSError."""
        self._socket = _socket(_GROUPS)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """Readable where something changed."""
        return self._socket.fileno()

    def close(self) -> None:
        """Let go of the namespace."""
        self._socket.close()

    def drain(self) -> None:
        """Forget what is known to have changed."""
        while True:
            try:
                self._socket.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: there was more than the kernel keeps; something changed
                continue


def _socket(groups: int) -> socket.socket:
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        made.bind((0, groups))
    except OSError:
        made.close()
        raise
    return made
