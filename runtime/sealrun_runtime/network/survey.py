"""What an engine left in a network namespace, in the words of the protocol.

Carried into the VM: each ethernet interface that is up (veth, macvlan, ipvlan, a tap, a device of the
host that was moved here) with its addresses, the unicast routes of the main table that go through it,
and permanent neighbours. Left out, because the guest's kernel makes them itself: the loopback, link-local
IPv6 addresses that come of the MAC address, IPv6 addresses and routes that come of router
advertisements, routes that come of addresses. Left out and told as a note: what is up and no ethernet
device, multipath routes, routes of other types. Rules and other tables of routes are not looked at.
"""

import socket
from typing import Final, NamedTuple

from sealrun_protocol import rtnetlink
from sealrun_protocol.network import Address, Interface, Neighbour, Network, Route
from sealrun_protocol.rtnetlink import (
    MAIN_TABLE,
    ON_LINK,
    PERMANENT,
    UNICAST,
    AddressAttribute,
    Kind,
    Link,
    LinkAttribute,
    LinkFlag,
    NeighbourAttribute,
    RouteAttribute,
    attributes,
)

from sealrun_runtime.network import tap
from sealrun_runtime.network.netlink import Netlink

_ETHERNET: Final = 1  # ARPHRD_ETHER of linux/if_arp.h
_KERNEL, _ADVERTISED = 2, 9  # RTPROT_KERNEL, RTPROT_RA of linux/rtnetlink.h
_CLONED: Final = 0x200  # RTM_F_CLONED
_INET, _INET6 = socket.AF_INET, socket.AF_INET6
_WIDTH: Final = {_INET: 4, _INET6: 16}  # of an address, in bytes
# IPV4_DEVCONF_… of linux/ip.h, counted from 1, and DEVCONF_… of linux/ipv6.h, from 0
_SETTINGS: Final = {
    "ipv4/rp_filter": (_INET, 7),
    "ipv4/arp_notify": (_INET, 21),
    "ipv6/accept_ra": (_INET6, 3),
    "ipv6/autoconf": (_INET6, 5),
    "ipv6/disable_ipv6": (_INET6, 26),
    "ipv6/accept_dad": (_INET6, 27),
}
_CONF: Final = {_INET: 1, _INET6: 2}  # IFLA_INET_CONF, IFLA_INET6_CONF


class Survey(NamedTuple):
    """network: its interfaces have their own MAC address as `device`. indexes: of the interfaces, by
    name. in_use: there is a tap of a sandbox. notes: what was left out, for a person."""

    network: Network
    indexes: dict[str, int]
    in_use: bool
    notes: tuple[str, ...]


def survey(netlink: Netlink) -> Survey:
    """Look at the namespace of `netlink`. Raises OSError."""
    links = _links(netlink)
    taps = [link for link in links if _name(link).startswith(tap.PREFIX)]
    others = [link for link in links if link not in taps and link.flags & LinkFlag.UP]
    carried = {link.number: _name(link) for link in others if _is_ethernet(link)}
    notes = [
        f"interface {_name(link)} is not carried into the VM: it is no ethernet device"
        for link in others
        if not link.flags & LinkFlag.LOOPBACK and link.type != _ETHERNET
    ]
    addresses = _addresses(netlink, {link.number: _mac(link) for link in others})
    routes, left_out = _routes(netlink, carried)
    network = Network(
        interfaces=tuple(
            _interface(link, tuple(addresses.get(link.number, ())))
            for link in others
            if link.number in carried
        ),
        routes=routes,
        neighbours=_neighbours(netlink, carried),
    )
    indexes = {name: index for index, name in carried.items()}
    return Survey(network, indexes, bool(taps), (*notes, *left_out))


def _links(netlink: Netlink) -> list[Link]:
    return [
        rtnetlink.link(packet.body)
        for packet in netlink.dump(Kind.GET_LINK, rtnetlink.link_body(0))
    ]


def _is_ethernet(link: Link) -> bool:
    """A port of a bridge or bond is that one's, which is carried instead."""
    return (
        link.type == _ETHERNET
        and not link.flags & LinkFlag.LOOPBACK
        and LinkAttribute.MASTER not in link.attributes
        and len(_mac(link)) == 6
    )


def _name(link: Link) -> str:
    return link.attributes[LinkAttribute.NAME].rstrip(b"\0").decode("utf-8", "replace")


def _mac(link: Link) -> bytes:
    return link.attributes.get(LinkAttribute.ADDRESS, b"")


def _interface(link: Link, addresses: tuple[Address, ...]) -> Interface:
    return Interface(
        device=_mac(link),
        name=_name(link),
        mac=_mac(link),
        mtu=int.from_bytes(link.attributes[LinkAttribute.MTU], "little"),
        arp=not link.flags & LinkFlag.NO_ARP,
        addresses=addresses,
        settings=_settings(link.attributes.get(LinkAttribute.FAMILIES, b"")),
    )


def _settings(families: bytes) -> dict[str, int]:
    """The sysctls of an interface, as the kernel tells them beside the link."""
    conf = {
        family: attributes(value).get(_CONF[socket.AddressFamily(family)], b"")
        for family, value in attributes(families).items()
        if family in _CONF
    }
    found = {}
    for name, (family, place) in _SETTINGS.items():
        value = conf.get(family, b"")[4 * place : 4 * place + 4]
        if value:
            found[name] = int.from_bytes(value, "little", signed=True)
    return found


def _addresses(netlink: Netlink, macs: dict[int, bytes]) -> dict[int, list[Address]]:
    found: dict[int, list[Address]] = {}
    for packet in netlink.dump(Kind.GET_ADDRESS, rtnetlink.address_body(0, 0, 0)):
        one = rtnetlink.address(packet.body)
        parts = one.attributes
        ip = parts.get(AddressAttribute.LOCAL) or parts.get(AddressAttribute.PEER, b"")
        if one.family == _INET6:
            if not one.flags & PERMANENT or ip == _link_local(macs.get(one.interface, b"")):
                continue
        elif one.family != _INET:
            continue
        found.setdefault(one.interface, []).append(
            Address(
                ip=ip,
                prefix=one.prefix,
                scope=one.scope,
                broadcast=parts.get(AddressAttribute.BROADCAST, b""),
            )
        )
    return found


def _link_local(mac: bytes) -> bytes:
    """The address that an interface gives itself: RFC 4291, appendix A."""
    return (
        b"\xfe\x80" + bytes(6) + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
        if mac
        else b""
    )


def _routes(netlink: Netlink, carried: dict[int, str]) -> tuple[tuple[Route, ...], list[str]]:
    """Those that need no gateway first: they make the gateways of the others reachable."""
    found, left_out = [], []
    for packet in netlink.dump(Kind.GET_ROUTE, rtnetlink.route_body(0, 0)):
        one = rtnetlink.route(packet.body)
        if (
            one.table != MAIN_TABLE
            or one.family not in _WIDTH
            or one.flags & _CLONED
            or one.protocol in (_KERNEL, _ADVERTISED)
        ):
            continue
        interface = carried.get(_number(one.attributes, RouteAttribute.INTERFACE))
        plain = not {RouteAttribute.MULTIPATH, RouteAttribute.VIA} & one.attributes.keys()
        if one.type != UNICAST or not plain:
            left_out.append(f"a route to {_destination(one)} is not carried into the VM")
        elif interface is not None:
            found.append(_route(one, interface))
    return tuple(sorted(found, key=lambda route: bool(route.gateway))), left_out


def _route(one: rtnetlink.Route, interface: str) -> Route:
    parts = one.attributes
    return Route(
        interface=interface,
        destination=parts.get(
            RouteAttribute.DESTINATION, bytes(_WIDTH[socket.AddressFamily(one.family)])
        ),
        prefix=one.prefix,
        gateway=parts.get(RouteAttribute.GATEWAY, b""),
        source=parts.get(RouteAttribute.SOURCE, b""),
        scope=one.scope,
        metric=_number(parts, RouteAttribute.METRIC),
        on_link=bool(one.flags & ON_LINK),
    )


def _number(parts: dict[int, bytes], kind: RouteAttribute) -> int:
    return int.from_bytes(parts.get(kind, b""), "little")


def _destination(one: rtnetlink.Route) -> str:
    ip = one.attributes.get(RouteAttribute.DESTINATION)
    return f"{socket.inet_ntop(one.family, ip)}/{one.prefix}" if ip else "default"


def _neighbours(netlink: Netlink, carried: dict[int, str]) -> tuple[Neighbour, ...]:
    found = []
    for packet in netlink.dump(Kind.GET_NEIGHBOUR, rtnetlink.neighbour_body(0, 0)):
        one = rtnetlink.neighbour(packet.body)
        ip = one.attributes.get(NeighbourAttribute.ADDRESS, b"")
        mac = one.attributes.get(NeighbourAttribute.MAC, b"")
        if (
            one.state & PERMANENT
            and one.interface in carried
            and one.family in _WIDTH
            and len(mac) == 6
        ):
            found.append(Neighbour(interface=carried[one.interface], ip=ip, mac=mac))
    return tuple(found)
