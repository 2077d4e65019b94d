"""A way from the network namespace's own programs to the VM, at the addresses that its interfaces have.

The port forwarder of a rootless engine (RootlessKit) is such a program: it connects to the interface's
address from inside. That address belongs to the namespace's stack, too, which would answer by itself. So
a route through the tap stands before the one that says so, packets on it come from a link-local address of
the tap, and what the VM sends back to this one address is not redirected. All of it is the tap's, and is
gone with it.
"""

import contextlib
import socket
from typing import Final

from sealrun_protocol.network import Address, Neighbour, Route
from sealrun_protocol.rtnetlink import (
    LOCAL_TABLE,
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

from sealrun_runtime.network import tap
from sealrun_runtime.network.netlink import Netlink

_PEERS: Final = socket.inet_aton("169.254.83.0")  # RFC 3927: no router forwards them
_LINK_SCOPE: Final = 253  # RT_SCOPE_LINK
_WHOLE: Final = 32  # bits of an address
_INET: Final = socket.AF_INET
_CONF, _ACCEPT_LOCAL = 1, 23  # IFLA_INET_CONF of linux/if_link.h, IPV4_DEVCONF_… of linux/ip.h


class Door:
    """Of one interface. IPv4 only: no forwarder that is known connects to another address."""

    def __init__(self, netlink: Netlink, interface: int, place: int) -> None:
        """interface: the tap's index. place: a number that no other door of the namespace has, from
        1 to 254. Raises OSError."""
        self._netlink, self._tap = netlink, interface
        self._peer = _PEERS[:3] + bytes([place])
        found = link(netlink.get(Kind.GET_LINK, link_body(interface)))
        self._mac = found.attributes[LinkAttribute.ADDRESS]
        tap.let_pass(netlink, interface, self._peer)
        netlink.change(
            Kind.NEW_ADDRESS,
            address_body(_INET, _WHOLE, interface, _LINK_SCOPE)
            + attribute(AddressAttribute.LOCAL, self._peer),
            Flag.CREATE,
        )
        # What the VM sends comes from an address that the namespace has, too.
        conf = attribute(_INET, attribute(_CONF, number(_ACCEPT_LOCAL, 1)))
        netlink.change(
            Kind.SET_LINK, link_body(interface) + attribute(LinkAttribute.FAMILIES, conf)
        )

    def lead_to(self, mac: bytes, addresses: tuple[Address, ...]) -> None:
        """What goes to these addresses goes to the VM, whose interface has `mac`. Those that were
        named before stay. Raises OSError."""
        for ip in (one.ip for one in addresses if len(one.ip) == len(self._peer)):
            self._netlink.change(
                Kind.NEW_NEIGHBOUR,
                neighbour_body(_INET, self._tap)
                + attribute(NeighbourAttribute.ADDRESS, ip)
                + attribute(NeighbourAttribute.MAC, mac),
                Flag.CREATE | Flag.REPLACE,
            )
            with contextlib.suppress(FileExistsError):
                # Neither REPLACE nor APPEND: it comes before the route that is there (ip route prepend).
                self._netlink.change(
                    Kind.NEW_ROUTE,
                    route_body(_INET, _WHOLE, scope=_LINK_SCOPE, table=LOCAL_TABLE)
                    + attribute(RouteAttribute.DESTINATION, ip)
                    + number(RouteAttribute.INTERFACE, self._tap)
                    + attribute(RouteAttribute.SOURCE, self._peer),
                    Flag.CREATE,
                )

    def route(self, interface: str) -> Route:
        """The VM's way back, through its interface of that name."""
        return Route(interface=interface, destination=self._peer, prefix=_WHOLE, scope=_LINK_SCOPE)

    def neighbour(self, interface: str) -> Neighbour:
        """Whom the VM finds there: nobody answers it."""
        return Neighbour(interface=interface, ip=self._peer, mac=self._mac)
