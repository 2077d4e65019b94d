"""rtnetlink as bytes: what host and guest each ask their own kernel about its network. No I/O.

Nothing of it travels between host and guest; it stands here because both speak it. Layouts and numbers
are those of linux/netlink.h, linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h and
linux/neighbour.h. All numbers are in the machine's byte order but for addresses, which are in the
network's.
"""

import os
import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import Final, NamedTuple

RECEIVE_BYTES: Final = 64 << 10  # more than the kernel ever puts into one datagram
PERMANENT: Final = 0x80  # IFA_F_PERMANENT, NUD_PERMANENT
NO_DAD: Final = 0x02  # IFA_F_NODAD
MAIN_TABLE: Final = 254  # RT_TABLE_MAIN
LOCAL_TABLE: Final = 255  # RT_TABLE_LOCAL
UNICAST: Final = 1  # RTN_UNICAST
ON_LINK: Final = 4  # RTNH_F_ONLINK

_HEADER: Final = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, kind
_LINK: Final = struct.Struct("=BxHiII")  # family, type, index, flags, changed flags
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, prefix, flags, scope, index
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_NEIGHBOUR: Final = struct.Struct("=B3xiHBB")  # family, index, state, flags, type
_RULE: Final = struct.Struct("=BxxxBxxBI")  # family, table, action, flags
_KIND_MASK: Final = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER
_ERROR, _DONE = 2, 3
_INTERRUPTED: Final = 0x10  # NLM_F_DUMP_INTR


class Kind(IntEnum):
    """Of a message: RTM_…"""

    NEW_LINK = 16
    DELETE_LINK = 17
    GET_LINK = 18
    SET_LINK = 19
    NEW_ADDRESS = 20
    DELETE_ADDRESS = 21
    GET_ADDRESS = 22
    NEW_ROUTE = 24
    DELETE_ROUTE = 25
    GET_ROUTE = 26
    NEW_NEIGHBOUR = 28
    DELETE_NEIGHBOUR = 29
    GET_NEIGHBOUR = 30
    NEW_RULE = 32
    DELETE_RULE = 33
    NEW_QDISC = 36
    DELETE_QDISC = 37
    NEW_FILTER = 44
    GET_FILTER = 46


class Flag(IntFlag):
    """Of a request: NLM_F_…"""

    REQUEST = 0x001
    ACKNOWLEDGE = 0x004
    DUMP = 0x300
    REPLACE = 0x100
    EXCLUSIVE = 0x200
    CREATE = 0x400


class LinkFlag(IntFlag):
    """Of an interface: IFF_…"""

    UP = 0x1
    LOOPBACK = 0x8
    NO_ARP = 0x80


class LinkAttribute(IntEnum):
    """IFLA_…"""

    ADDRESS = 1
    NAME = 3
    MTU = 4
    MASTER = 10
    INFO = 18
    FAMILIES = 26


class AddressAttribute(IntEnum):
    """IFA_…"""

    PEER = 1
    LOCAL = 2
    BROADCAST = 4
    FLAGS = 8


class RouteAttribute(IntEnum):
    """RTA_…"""

    DESTINATION = 1
    INTERFACE = 4
    GATEWAY = 5
    METRIC = 6
    SOURCE = 7
    MULTIPATH = 9
    VIA = 18


class NeighbourAttribute(IntEnum):
    """NDA_…"""

    ADDRESS = 1
    MAC = 2


class Packet(NamedTuple):
    """One message of the kernel's. body: behind the common header."""

    kind: int
    body: bytes


class Link(NamedTuple):
    """An interface: ifinfomsg. number: its index. type: ARPHRD_… of linux/if_arp.h."""

    number: int
    type: int
    flags: int
    attributes: dict[int, bytes]


class Address(NamedTuple):
    """An address of an interface: ifaddrmsg. interface: its index. flags: IFA_F_…"""

    family: int
    prefix: int
    scope: int
    interface: int
    flags: int
    attributes: dict[int, bytes]


class Route(NamedTuple):
    """A route: rtmsg. protocol: who made it, RTPROT_…; type: RTN_…"""

    family: int
    prefix: int
    table: int
    protocol: int
    scope: int
    type: int
    flags: int
    attributes: dict[int, bytes]


class Neighbour(NamedTuple):
    """An entry of the table of neighbours: ndmsg. interface: its index. state: NUD_…"""

    family: int
    interface: int
    state: int
    attributes: dict[int, bytes]


def request(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    """A whole message to the kernel."""
    return _HEADER.pack(_HEADER.size + len(body), kind, flags, sequence, 0) + body


def attribute(kind: int, *parts: bytes) -> bytes:
    """One attribute, padded; its value is the parts in a row, which may be attributes themselves."""
    value = b"".join(parts)
    size = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(size, kind) + value + bytes(-size % 4)


def number(kind: int, value: int) -> bytes:
    """An attribute that is a number of 32 bits."""
    return attribute(kind, value.to_bytes(4, "little"))


def attributes(data: bytes) -> dict[int, bytes]:
    """Value by kind; the last one counts."""
    return dict(each_attribute(data))


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and value of the attributes in `data`, up to the first that does not fit."""
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        size, kind = _ATTRIBUTE.unpack_from(data, at)
        if not _ATTRIBUTE.size <= size <= len(data) - at:
            return
        yield kind & _KIND_MASK, data[at + _ATTRIBUTE.size : at + size]
        at += (size + 3) & ~3


def link_body(index: int, flags: int = 0, changed: int = 0, family: int = 0) -> bytes:
    """An ifinfomsg. changed: the flags that are to become as in `flags`."""
    return _LINK.pack(family, 0, index, flags, changed)


def address_body(family: int, prefix: int, index: int, scope: int = 0) -> bytes:
    """An ifaddrmsg."""
    return _ADDRESS.pack(family, prefix, 0, scope, index)


def route_body(
    family: int,
    prefix: int,
    *,
    protocol: int = 0,
    scope: int = 0,
    flags: int = 0,
    table: int = MAIN_TABLE,
) -> bytes:
    """The rtmsg of a unicast route."""
    return _ROUTE.pack(family, prefix, 0, 0, table, protocol, scope, UNICAST, flags)


def neighbour_body(family: int, index: int) -> bytes:
    """The ndmsg of a permanent neighbour."""
    return _NEIGHBOUR.pack(family, index, PERMANENT, 0, 0)


def rule_body(family: int, table: int) -> bytes:
    """The fib_rule_hdr of a rule that leads to a table of routes."""
    return _RULE.pack(family, table, 1, 0)  # FR_ACT_TO_TBL


def link(body: bytes) -> Link:
    """What a NEW_LINK says."""
    _, kind, index, flags, _ = _LINK.unpack_from(body)
    return Link(index, kind, flags, attributes(body[_LINK.size :]))


def address(body: bytes) -> Address:
    """What a NEW_ADDRESS says."""
    family, prefix, flags, scope, index = _ADDRESS.unpack_from(body)
    found = attributes(body[_ADDRESS.size :])
    if AddressAttribute.FLAGS in found:  # the wider form of the member
        flags = int.from_bytes(found[AddressAttribute.FLAGS], "little")
    return Address(family, prefix, scope, index, flags, found)


def route(body: bytes) -> Route:
    """What a NEW_ROUTE says."""
    family, prefix, _, _, table, protocol, scope, kind, flags = _ROUTE.unpack_from(body)
    return Route(family, prefix, table, protocol, scope, kind, flags, attributes(body[12:]))


def neighbour(body: bytes) -> Neighbour:
    """What a NEW_NEIGHBOUR says."""
    family, index, state, _, _ = _NEIGHBOUR.unpack_from(body)
    return Neighbour(family, index, state, attributes(body[_NEIGHBOUR.size :]))


class Interrupted(Exception):
    """What was asked for changed while the kernel told it: ask again."""


class Answer:
    """The kernel's answer to one request, gathered from what is received until it is complete."""

    def __init__(self, sequence: int) -> None:
        self._sequence = sequence
        self._interrupted = False
        self.packets: list[Packet] = []

    def take(self, data: bytes) -> bool:
        """One datagram; whether the answer is complete. Raises OSError where the kernel refuses, and
        Interrupted."""
        at = 0
        while at + _HEADER.size <= len(data):
            size, kind, flags, sequence, _ = _HEADER.unpack_from(data, at)
            if not _HEADER.size <= size <= len(data) - at:
                break
            body = data[at + _HEADER.size : at + size]
            at += (size + 3) & ~3
            if sequence != self._sequence:
                continue
            self._interrupted |= bool(flags & _INTERRUPTED)
            if kind == _ERROR:
                self._check(body)
                return True
            if kind == _DONE:
                self._check(body)
                if self._interrupted:
                    raise Interrupted
                return True
            self.packets.append(Packet(kind, body))
        return False

    @staticmethod
    def _check(body: bytes) -> None:
        code = -int.from_bytes(body[:4], "little", signed=True)
        if code:
            raise OSError(code, os.strerror(code))
