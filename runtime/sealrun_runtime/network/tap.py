"""A tap device, and the redirection of all packets between it and an interface (tc-mirred(8)).

What arrives at either leaves at the other, before the namespace's own stack sees it: the VM is in the
interface's place. The tap lives as long as somebody has its file open; the redirection at the
interface outlives it and is removed by `release`.
"""

import errno
import fcntl
import os
import struct
from typing import Final, NamedTuple

from sealrun_protocol.rtnetlink import (
    Flag,
    Kind,
    LinkAttribute,
    LinkFlag,
    attribute,
    link,
    link_body,
    number,
)

from sealrun_runtime.network.netlink import Netlink

PREFIX: Final = "sealrun"
"""Of the names of our taps: a namespace with one is in a sandbox's hands."""

_DEVICE: Final = "/dev/net/tun"
_TUNSETIFF: Final = 0x400454CA  # linux/if_tun.h
_TAP, _NO_PI, _VNET_HDR = 0x0002, 0x1000, 0x4000
_INET6: Final = 10
_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1  # IFLA_INET6_ADDR_GEN_MODE, IN6_ADDR_GEN_MODE_NONE
# linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h
_TCMSG: Final = struct.Struct("=B3xiIII")  # family, interface, handle, parent, info
_INGRESS_PARENT, _INGRESS_HANDLE = 0xFFFF_FFF1, 0xFFFF_0000
_PREFERENCE: Final = 0x5EA1  # of our filters, by which they are known
_ALL_PROTOCOLS: Final = 0x0300  # ETH_P_ALL in the network's byte order
_INFO: Final = _PREFERENCE << 16 | _ALL_PROTOCOLS
_TCA_KIND, _TCA_OPTIONS = 1, 2
_TCA_U32_SEL, _TCA_U32_ACT = 5, 7
_TCA_ACT_KIND, _TCA_ACT_OPTIONS = 1, 2
_TCA_MIRRED_PARMS: Final = 2
_KEYS: Final = struct.Struct("=BBBxHHhhI")  # tc_u32_sel without its keys
_KEY: Final = struct.Struct("=4s4sii")  # tc_u32_key
_EVERYTHING: Final = _KEYS.pack(1, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(bytes(4), bytes(4), 0, 0)
# By the width of an address: ETH_P_… in the network's byte order, the destination's place in a packet
_IP: Final = {4: (0x0008, 16), 16: (0xDD86, 24)}
_STOLEN, _EGRESS_REDIRECT = 4, 1


class InUse(Exception):
    """The interface has traffic control of somebody else's."""


class Tap(NamedTuple):
    """descriptor: of the open device. interface: the index of what it is in its namespace."""

    descriptor: int
    interface: int


def open_tap(netlink: Netlink, mtu: int) -> Tap:
    """Make one in the network namespace of the calling thread, which is that of `netlink`; up, and
    without anything to say by itself. Raises OSError."""
    descriptor = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        wish = struct.pack("=16sH22x", f"{PREFIX}%d".encode(), _TAP | _NO_PI | _VNET_HDR)
        name = fcntl.ioctl(descriptor, _TUNSETIFF, wish)[:16].partition(b"\0")[0]
        index = _index(netlink, name)
        _silence(netlink, index)
        netlink.change(Kind.SET_LINK, link_body(index) + number(LinkAttribute.MTU, mtu))
    except OSError:
        os.close(descriptor)
        raise
    return Tap(descriptor, index)


def join(netlink: Netlink, interface: int, tap: int) -> None:
    """Redirect what arrives at the interface to the tap and the other way round, and bring the tap
    up. Raises OSError, InUse."""
    _add_ingress(netlink, tap)
    _add_redirect(netlink, tap, interface)
    _take_over(netlink, interface)
    try:
        _add_redirect(netlink, interface, tap)
        netlink.change(Kind.SET_LINK, link_body(tap, LinkFlag.UP, LinkFlag.UP))
    except OSError:
        release(netlink, interface)
        raise


def let_pass(netlink: Netlink, tap: int, ip: bytes) -> None:
    """What the VM sends to this IP address is for the namespace's own stack. Raises OSError."""
    protocol, place = _IP[len(ip)]
    words = [ip[at : at + 4] for at in range(0, len(ip), 4)]
    keys = [_KEY.pack(b"\xff" * 4, word, place + 4 * n, 0) for n, word in enumerate(words)]
    selector = _KEYS.pack(1, 0, len(keys), 0, 0, 0, 0, 0) + b"".join(keys)
    # Before the redirection, and each protocol at a place of its own; a filter without an action lets pass.
    info = (_PREFERENCE - len(words)) << 16 | protocol
    _add_filter(netlink, tap, info, attribute(_TCA_U32_SEL, selector))


def release(netlink: Netlink, interface: int) -> None:
    """Let the namespace's own stack have the interface's packets again. Nothing where the interface,
    or the redirection, is gone. Raises OSError."""
    try:
        netlink.change(
            Kind.DELETE_QDISC, _TCMSG.pack(0, interface, 0, _INGRESS_PARENT, 0) + _kind("ingress")
        )
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            raise


def _index(netlink: Netlink, name: bytes) -> int:
    body = link_body(0) + attribute(LinkAttribute.NAME, name + b"\0")
    return link(netlink.get(Kind.GET_LINK, body)).number


def _silence(netlink: Netlink, interface: int) -> None:
    """No link-local address, hence nothing that the namespace's own stack tells the VM. While the MTU
    is still one with which there is IPv6."""
    mode = attribute(_ADDR_GEN_MODE, bytes([_ADDR_GEN_NONE]))
    body = link_body(interface) + attribute(LinkAttribute.FAMILIES, attribute(_INET6, mode))
    try:
        netlink.change(Kind.SET_LINK, body)
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:  # a kernel without IPv6
            raise


def _add_ingress(netlink: Netlink, interface: int) -> None:
    body = _TCMSG.pack(0, interface, _INGRESS_HANDLE, _INGRESS_PARENT, 0) + _kind("ingress")
    netlink.change(Kind.NEW_QDISC, body, Flag.CREATE | Flag.EXCLUSIVE)


def _take_over(netlink: Netlink, interface: int) -> None:
    """An ingress at the interface, with nothing in it. Raises OSError, InUse."""
    try:
        _add_ingress(netlink, interface)
    except FileExistsError:
        if not _is_ours(netlink, interface):
            raise InUse from None
        release(netlink, interface)  # of a sandbox that was killed
        try:
            _add_ingress(netlink, interface)
        except FileExistsError:
            raise InUse from None


def _add_redirect(netlink: Netlink, source: int, target: int) -> None:
    """By a u32 filter with a key of no bits: `matchall` says it shorter, and more kernels lack it."""
    mirred = struct.pack("=IIiiiiI", 0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, target)
    action = attribute(
        1,
        attribute(_TCA_ACT_KIND, b"mirred\0"),
        attribute(_TCA_ACT_OPTIONS, attribute(_TCA_MIRRED_PARMS, mirred)),
    )
    options = attribute(_TCA_U32_SEL, _EVERYTHING) + attribute(_TCA_U32_ACT, action)
    _add_filter(netlink, source, _INFO, options)


def _add_filter(netlink: Netlink, interface: int, info: int, options: bytes) -> None:
    body = _TCMSG.pack(0, interface, 0, _INGRESS_HANDLE, info) + _kind("u32")
    body += attribute(_TCA_OPTIONS, options)
    netlink.change(Kind.NEW_FILTER, body, Flag.CREATE | Flag.EXCLUSIVE)


def _is_ours(netlink: Netlink, interface: int) -> bool:
    """Whether all filters at the interface's ingress are; there may be none yet."""
    found = netlink.dump(Kind.GET_FILTER, _TCMSG.pack(0, interface, 0, _INGRESS_HANDLE, 0))
    infos = [_TCMSG.unpack_from(packet.body)[4] for packet in found]
    return all(info >> 16 == _PREFERENCE for info in infos)


def _kind(name: str) -> bytes:
    return attribute(_TCA_KIND, name.encode() + b"\0")
