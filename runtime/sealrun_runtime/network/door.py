"""A way from the network namespace's own programs to the VM, at the addresses that its interfaces have.

The port forwarders of rootless engines are such programs: RootlessKit, and pasta for what comes from the
host's loopback, connect to the interface's address from inside. That address belongs to the namespace's
stack, too, which would answer by itself. So a route through the tap stands before the one that says
so, packets on it come from an address of the tap that nobody else has, and what the VM sends back to
this one address is not redirected. All of it is the tap's, and is gone with it, but for one rule
(precedence.py).

One door of a namespace also leads from 127.0.0.1 and ::1, to which older forwarders connect, to its
interface's first address: no kernel takes packets for its loopback from outside, so they are translated.
"""

import contextlib
import socket
from collections.abc import Iterable
from typing import Final

from sealrun_protocol.network import Address, Neighbour, Route
from sealrun_protocol.rtnetlink import (
    LOCAL_TABLE,
    NO_DAD,
    AddressAttribute,
    Flag,
    Kind,
    LinkAttribute,
    NeighbourAttribute,
    RouteAttribute,
    address_body,
    attribute,
    link,
    link_body,
    neighbour_body,
    number,
    route_body,
)

from sealrun_runtime.network import precedence, tap
from sealrun_runtime.network.netlink import Netlink
from sealrun_runtime.network.nftables import Translation

_PEERS: Final = {
    4: socket.inet_aton("169.254.83.0"),  # RFC 3927: no router forwards them
    16: socket.inet_pton(socket.AF_INET6, "fd5e:a152:9c0d:83::"),  # RFC 4193, drawn once
}
"""By the width of an address."""
_LOOPBACK: Final = {4: b"\x7f", 16: bytes(15) + b"\1"}  # the first bytes of its addresses
_LOOPBACK_ROUTES: Final = {
    # two, as the kernel has them there
    4: ((socket.inet_aton("127.0.0.0"), 8), (socket.inet_aton("127.0.0.1"), 32)),
    16: ((socket.inet_pton(socket.AF_INET6, "::1"), 128),),
}
"""Destinations and their bits."""
_FAMILY: Final = {4: socket.AF_INET, 16: socket.AF_INET6}
_LINK_SCOPE: Final = 253  # RT_SCOPE_LINK
_CONF, _ACCEPT_LOCAL = 1, 23  # IFLA_INET_CONF of linux/if_link.h, IPV4_DEVCONF_… of linux/ip.h


class Door:
    """Of one interface."""

    def __init__(self, netlink: Netlink, interface: int, place: int) -> None:
        """interface: the tap's index. place: a number that no other door of the namespace has, from
        1 to 254. Raises OSError."""
        self._netlink, self._tap, self._place = netlink, interface, place
        found = link(netlink.get(Kind.GET_LINK, link_body(interface)))
        self._mac = found.attributes[LinkAttribute.ADDRESS]
        self._peers: dict[int, bytes] = {}
        self._led: set[bytes] = set()
        # What the VM sends comes from an address that the namespace has, too.
        conf = attribute(_FAMILY[4], attribute(_CONF, number(_ACCEPT_LOCAL, 1)))
        netlink.change(
            Kind.SET_LINK, link_body(interface) + attribute(LinkAttribute.FAMILIES, conf)
        )

    def lead_to(self, mac: bytes, addresses: Iterable[Address]) -> None:
        """What goes to these addresses goes to the VM, whose interface has `mac`. Those that were
        named before stay. Said anew each time (0.1 ms an address), so that what somebody in the namespace
        took away comes back. Raises OSError."""
        for ip in (one.ip for one in addresses):
            if len(ip) not in self._peers:
                self._open(len(ip))
            self._netlink.change(
                Kind.NEW_NEIGHBOUR,
                neighbour_body(_FAMILY[len(ip)], self._tap)
                + attribute(NeighbourAttribute.ADDRESS, ip)
                + attribute(NeighbourAttribute.MAC, mac),
                Flag.CREATE | Flag.REPLACE,
            )
            self._route(ip, len(ip))
            self._led.add(ip)

    def leads(self, ip: bytes) -> bool:
        """Whether it does to this address."""
        return ip in self._led

    def lead_from_loopback(self, translation: Translation, ip: bytes) -> None:
        """To this address of those that it leads to. Raises OSError."""
        width = len(ip)
        translation.translate(self._tap, _LOOPBACK[width], width, ip)
        for destination, prefix in _LOOPBACK_ROUTES[width]:
            self._route(destination, width, prefix)

    def leave_loopback(self, width: int) -> None:
        """Another door leads from there now, by routes that may stand behind this one's."""
        for destination, prefix in _LOOPBACK_ROUTES[width]:
            with contextlib.suppress(OSError):  # they went with the tap, or somebody took them away
                body = self._route_body(destination, width, prefix)
                self._netlink.change(Kind.DELETE_ROUTE, body)

    def routes(self, interface: str) -> list[Route]:
        """The VM's ways back, through its interface of that name."""
        return [
            Route(interface=interface, destination=peer, prefix=width * 8, scope=_scope(width))
            for width, peer in self._peers.items()
        ]

    def neighbours(self, interface: str) -> list[Neighbour]:
        """Whom the VM finds there: nobody answers it."""
        return [
            Neighbour(interface=interface, ip=peer, mac=self._mac) for peer in self._peers.values()
        ]

    def _open(self, width: int) -> None:
        """The tap's own address of this family."""
        peer = _PEERS[width][:-1] + bytes([self._place])
        self._netlink.change(
            Kind.NEW_ADDRESS,
            address_body(_FAMILY[width], width * 8, self._tap, _scope(width))
            + attribute(AddressAttribute.LOCAL, peer)
            + number(AddressAttribute.FLAGS, NO_DAD),
            Flag.CREATE,
        )
        # Where the tap can have no such address there is no filter either, however often that is tried.
        tap.let_pass(self._netlink, self._tap, peer)
        if width == 16:
            precedence.take(self._netlink)
        self._peers[width] = peer

    def _route(self, destination: bytes, width: int, prefix: int = 0) -> None:
        """prefix: in bits; a whole address without one."""
        body = self._route_body(destination, width, prefix or width * 8)
        with contextlib.suppress(FileExistsError):
            # Neither REPLACE nor APPEND: it comes before the route that is there (ip route prepend).
            self._netlink.change(Kind.NEW_ROUTE, body, Flag.CREATE)

    def _route_body(self, destination: bytes, width: int, prefix: int) -> bytes:
        table = LOCAL_TABLE if width == 4 else precedence.TABLE
        return (
            route_body(_FAMILY[width], prefix, scope=_scope(width), table=table)
            + attribute(RouteAttribute.DESTINATION, destination)
            + number(RouteAttribute.INTERFACE, self._tap)
            + attribute(RouteAttribute.SOURCE, self._peers[width])
        )


def _scope(width: int) -> int:
    """IPv6 has none but an address's own."""
    return _LINK_SCOPE if width == 4 else 0
