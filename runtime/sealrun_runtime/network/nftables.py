"""The few words of nftables that a way to the VM needs, as the kernel's netlink has them (nft(8)).

A table belongs to the socket that made it, and is gone with it: also where the process was killed.
Layouts and numbers are those of linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h; numbers in
attributes are in the network's byte order.
"""

import os
import socket
import struct
from collections.abc import Iterable
from typing import Final

from sealrun_protocol.rtnetlink import RECEIVE_BYTES, Flag, attribute, request

_NETFILTER: Final = 12  # NETLINK_NETFILTER
_BEGIN, _END = 0x10, 0x11  # NFNL_MSG_BATCH_…
_SUBSYSTEM: Final = 10  # NFNL_SUBSYS_NFTABLES
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_NESTED: Final = 0x8000
_NAME: Final = b"sealrun\0"
_OWNER: Final = 0x2  # NFT_TABLE_F_OWNER, since Linux 5.12
_OUTPUT, _NAT_PRIORITY = 3, -100  # NF_INET_LOCAL_OUT, NF_IP_PRI_NAT_DST
_META_OUT: Final = 5  # NFT_META_OIF
_NETWORK_HEADER: Final = 1
_DESTINATION: Final = {4: 16, 16: 24}  # where it is in the header, by its width
_FAMILY: Final = {4: 2, 16: 10}  # NFPROTO_…
_REGISTER: Final = 1  # NFT_REG_1: as wide as the widest address
_EQUAL, _DNAT = 0, 1


class Translation:
    """What this namespace's own programs send out by an interface, to one address, goes to another.
    One per namespace; its name is `sealrun` in each family."""

    def __init__(self) -> None:
        """In the namespace of the calling thread. Raises OSError."""
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER
        )
        self._sequence = 0

    def close(self) -> None:
        """Nothing is translated any more."""
        self._socket.close()

    def translate(self, interface: int, aim: bytes, width: int, to: bytes) -> None:
        """Instead of what was said before for this family. interface: an index. aim: the first bytes of
        the addresses. width: of an address. Raises OSError: also where the kernel has no nftables."""
        assert len(to) == width
        family = _FAMILY[width]
        table = _text(1, _NAME)
        owned = table + _number(2, _OWNER)
        hook = attribute(4 | _NESTED, _number(1, _OUTPUT), _number(2, _NAT_PRIORITY))
        chain = table + _text(3, _NAME) + hook + _text(7, b"nat\0")
        rule = table + _text(2, _NAME) + attribute(4 | _NESTED, *_rule(interface, aim, width, to))
        self._carry_out(
            family,
            [
                (_NEW_TABLE, Flag.CREATE, owned),  # so that there is one to delete
                (_DELETE_TABLE, 0, table),
                (_NEW_TABLE, Flag.CREATE, owned),
                (_NEW_CHAIN, Flag.CREATE, chain),
                (_NEW_RULE, Flag.CREATE | Flag.ACKNOWLEDGE, rule),
            ],
        )

    def _carry_out(self, family: int, steps: Iterable[tuple[int, int, bytes]]) -> None:
        """All of them, or none."""
        parts = [self._message(_BEGIN, 0, _header(0, _SUBSYSTEM))]
        for kind, flags, body in steps:
            parts.append(self._message(_SUBSYSTEM << 8 | kind, flags, _header(family, 0) + body))
        parts.append(self._message(_END, 0, _header(0, _SUBSYSTEM)))
        self._socket.send(b"".join(parts))
        # The first that is told is what is wrong, or that nothing is.
        answer = self._socket.recv(RECEIVE_BYTES)
        code = -struct.unpack_from("=i", answer, 16)[0]
        if code:
            while _more(self._socket):
                pass
            raise OSError(code, os.strerror(code))

    def _message(self, kind: int, flags: int, body: bytes) -> bytes:
        self._sequence += 1
        return request(kind, Flag.REQUEST | flags, self._sequence, body)


def _more(answers: socket.socket) -> bool:
    """Forget one answer, where there is one."""
    try:
        return bool(answers.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT))
    except BlockingIOError:
        return False


def _rule(interface: int, aim: bytes, width: int, to: bytes) -> Iterable[bytes]:
    yield _expression("meta", _number(1, _REGISTER) + _number(2, _META_OUT))
    yield _compare(struct.pack("=I", interface))
    place = _number(3, _DESTINATION[width]) + _number(4, len(aim))
    yield _expression("payload", _number(1, _REGISTER) + _number(2, _NETWORK_HEADER) + place)
    yield _compare(aim)
    yield _expression("immediate", _number(1, _REGISTER) + _value(2, to))
    nat = _number(1, _DNAT) + _number(2, _FAMILY[width]) + _number(3, _REGISTER)
    yield _expression("nat", nat)


def _compare(value: bytes) -> bytes:
    return _expression("cmp", _number(1, _REGISTER) + _number(2, _EQUAL) + _value(3, value))


def _expression(name: str, body: bytes) -> bytes:
    return attribute(1 | _NESTED, _text(1, name.encode() + b"\0"), attribute(2 | _NESTED, body))


def _value(kind: int, value: bytes) -> bytes:
    return attribute(kind | _NESTED, attribute(1, value))


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!i", value))


def _text(kind: int, text: bytes) -> bytes:
    return attribute(kind, text)


def _header(family: int, resource: int) -> bytes:
    """An nfgenmsg."""
    return struct.pack("!BBH", family, 0, resource)
