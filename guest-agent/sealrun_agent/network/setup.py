"""Making the kernel's network what the host describes, again and again as the description changes.

An interface is found by the MAC address that its device was made with, and gets the name, the MAC
address, the MTU and the addresses of the one whose place it takes. What stays the same from one
description to the next is not touched: connections live on. What the workload itself adds (it may have
CAP_NET_ADMIN) is left alone.
"""

import contextlib
import socket
from collections.abc import Iterator, Sequence, Set
from typing import Final

from msgspec.structs import replace
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.network import Address, Interface, Neighbour, Network, Route
from sealrun_protocol.rtnetlink import (
    NO_DAD,
    ON_LINK,
    AddressAttribute,
    Kind,
    LinkAttribute,
    LinkFlag,
    NeighbourAttribute,
    RouteAttribute,
    address_body,
    attribute,
    neighbour_body,
    number,
    route_body,
)

from sealrun_agent.errors import StartError
from sealrun_agent.network.check import check
from sealrun_agent.network.kernel import Kernel, mac_of, name_of

SYSCTL: Final = "/proc/sys/net"
_STATIC: Final = 4  # RTPROT_STATIC


class Setup:
    """The network of this VM. Loop thread only."""

    def __init__(self, sysctl: str = SYSCTL) -> None:
        self._kernel: Kernel | None = None
        self._sysctl = sysctl
        self._indexes: dict[bytes, int] = {}  # of the interfaces, by device
        self._made = Network()

    def missing(self, network: Network) -> frozenset[bytes]:
        """The devices that are not there (yet). Raises StartError for a description that is none."""
        check(network)
        with _told("look for the network's devices"):
            self._find()
        return frozenset(
            one.device for one in network.interfaces if one.device not in self._indexes
        )

    def apply(self, network: Network) -> None:
        """Make it so; all devices are there. Raises StartError, and may have done a part then."""
        before, self._made = self._made, Network()
        old = {one.device: one for one in before.interfaces}
        kept = set()
        self._take_away(before, network)
        self._rename({self._indexes[one.device]: one.name for one in network.interfaces})
        for interface in network.interfaces:
            was = old.get(interface.device)
            if was is not None and _same_link(was, interface):
                kept.add(interface.name)
            else:
                self._make_link(interface)
                was = None
            self._make_addresses(interface, was.addresses if was else ())
            if was is None:
                self._bring_up(interface)
        self._make_routes(before.routes, network.routes, kept)
        for neighbour in network.neighbours:
            if neighbour.interface not in kept or neighbour not in before.neighbours:
                what = f"neighbour on {neighbour.interface}"
                self._change(what, Kind.NEW_NEIGHBOUR, self._neighbour(neighbour))
        self._made = network

    @property
    def _netlink(self) -> Kernel:
        if self._kernel is None:
            self._kernel = Kernel()
        return self._kernel

    def _find(self) -> None:
        """Learn which devices there are, and forget those that were taken out."""
        links = self._netlink.links()
        self._indexes = {device: index for device, index in self._indexes.items() if index in links}
        known = set(self._indexes.values())
        for index, link in links.items():
            if index not in known and not link.flags & LinkFlag.LOOPBACK:
                self._indexes.setdefault(mac_of(link), index)

    def _take_away(self, before: Network, after: Network) -> None:
        """Unmake what the old description named and the new one does not."""
        names = {self._indexes.get(one.device): one.name for one in before.interfaces}
        indexes = {name: index for index, name in names.items() if index is not None}
        wanted_routes = _alternatives(after.routes)
        for aim, routes in _alternatives(before.routes).items():
            if wanted_routes.get(aim) == routes:
                continue
            for route in routes:
                if route.interface in indexes:
                    body = self._route(route, indexes[route.interface])
                    self._netlink.remove(Kind.DELETE_ROUTE, body)
        for neighbour in before.neighbours:
            if neighbour not in after.neighbours and neighbour.interface in indexes:
                body = self._neighbour(neighbour, indexes[neighbour.interface])
                self._netlink.remove(Kind.DELETE_NEIGHBOUR, body)
        wanted = {one.device for one in after.interfaces}
        for interface in before.interfaces:
            if interface.device not in wanted and interface.name in indexes:
                index = indexes[interface.name]
                for address in interface.addresses:
                    self._netlink.remove(Kind.DELETE_ADDRESS, _address(address, index))
                with _told(f"take interface {interface.name} down"):
                    self._netlink.set_link(index, changed=LinkFlag.UP)

    def _rename(self, names: dict[int, str]) -> None:
        """Give interfaces their names, which others may have until then: first all move aside."""
        with _told("name the network's interfaces"):
            links = self._netlink.links()
            wanted = set(names.values())
            for index, link in links.items():
                name = name_of(link)
                if names.get(index) != name and (index in names or name in wanted):
                    self._netlink.set_link(index, changed=LinkFlag.UP)
                    self._netlink.set_link(index, _name(f"aside{index}"))
            for index, name in names.items():
                if name_of(links[index]) != name:
                    self._netlink.set_link(index, _name(name))

    def _make_link(self, interface: Interface) -> None:
        index = self._indexes[interface.device]
        with _told(f"set up interface {interface.name}"):
            self._netlink.set_link(index, changed=LinkFlag.UP)
            self._netlink.set_link(
                index,
                attribute(LinkAttribute.ADDRESS, interface.mac),
                number(LinkAttribute.MTU, interface.mtu),
            )
            for setting, value in interface.settings.items():
                self._set(interface.name, setting, value)

    def _bring_up(self, interface: Interface) -> None:
        """When it has its addresses: what it tells its neighbours then (arp_notify) is about those."""
        index = self._indexes[interface.device]
        arp = LinkFlag(0) if interface.arp else LinkFlag.NO_ARP
        with _told(f"set interface {interface.name} up"):
            self._netlink.set_link(
                index, flags=LinkFlag.UP | arp, changed=LinkFlag.UP | LinkFlag.NO_ARP
            )

    def _set(self, interface: str, setting: str, value: int) -> None:
        family, _, name = setting.partition("/")
        # A kernel without IPv6 has no such file, and nothing to be set.
        with contextlib.suppress(FileNotFoundError):
            with open(f"{self._sysctl}/{family}/conf/{interface}/{name}", "w") as file:
                file.write(str(value))

    def _make_addresses(self, interface: Interface, before: tuple[Address, ...]) -> None:
        index = self._indexes[interface.device]
        for address in before:
            if address not in interface.addresses:
                self._netlink.remove(Kind.DELETE_ADDRESS, _address(address, index))
        for address in interface.addresses:
            if address not in before:
                what = f"address {_text(address.ip)} of {interface.name}"
                body = _address(address, index, settled=_settles(interface))
                self._change(what, Kind.NEW_ADDRESS, body)

    def _make_routes(self, before: Sequence[Route], after: Sequence[Route], kept: Set[str]) -> None:
        """kept: the interfaces whose routes are still there."""
        old = _alternatives(before)
        for aim, routes in _alternatives(after).items():
            there = old.get(aim) == routes
            for route in routes:
                if not (there and route.interface in kept):
                    what = f"route through {route.interface}"
                    self._change(what, Kind.NEW_ROUTE, self._route(route))

    def _change(self, what: str, kind: Kind, body: bytes) -> None:
        with _told(f"add the {what}"):
            self._netlink.add(kind, body)

    def _index(self, name: str) -> int:
        """Of an interface by its name: the kernel has it by now."""
        return socket.if_nametoindex(name)

    def _route(self, route: Route, index: int = 0) -> bytes:
        parts = [number(RouteAttribute.INTERFACE, index or self._index(route.interface))]
        if route.prefix:
            parts.append(attribute(RouteAttribute.DESTINATION, route.destination))
        if route.gateway:
            parts.append(attribute(RouteAttribute.GATEWAY, route.gateway))
        if route.source:
            parts.append(attribute(RouteAttribute.SOURCE, route.source))
        if route.metric:
            parts.append(number(RouteAttribute.METRIC, route.metric))
        body = route_body(
            _family(route.destination),
            route.prefix,
            protocol=_STATIC,
            scope=route.scope,
            flags=ON_LINK if route.on_link else 0,
        )
        return body + b"".join(parts)

    def _neighbour(self, neighbour: Neighbour, index: int = 0) -> bytes:
        return (
            neighbour_body(_family(neighbour.ip), index or self._index(neighbour.interface))
            + attribute(NeighbourAttribute.ADDRESS, neighbour.ip)
            + attribute(NeighbourAttribute.MAC, neighbour.mac)
        )


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StartError(
            ErrorCode.NETWORK_FAILED, f"cannot {what}: {error.strerror or error}"
        ) from error


def _same_link(one: Interface, other: Interface) -> bool:
    return replace(one, addresses=()) == replace(other, addresses=())


def _family(ip: bytes) -> socket.AddressFamily:
    return socket.AF_INET if len(ip) == 4 else socket.AF_INET6


def _text(ip: bytes) -> str:
    return socket.inet_ntop(_family(ip), ip)


def _name(name: str) -> bytes:
    return attribute(LinkAttribute.NAME, name.encode() + b"\0")


def _alternatives(routes: Sequence[Route]) -> dict[tuple[bytes, int, int], list[Route]]:
    """By what they lead to and their metric: where there are several, their order counts."""
    found: dict[tuple[bytes, int, int], list[Route]] = {}
    for route in routes:
        found.setdefault((route.destination, route.prefix, route.metric), []).append(route)
    return found


def _settles(interface: Interface) -> bool:
    """Whether the kernel looks for duplicates of a new IPv6 address."""
    return interface.settings.get("ipv6/accept_dad", 1) > 0


def _address(address: Address, index: int, *, settled: bool = False) -> bytes:
    """settled: no duplicates are to be looked for: the engine's interface had the address before."""
    family = _family(address.ip)
    body = address_body(family, address.prefix, index, address.scope)
    body += attribute(AddressAttribute.LOCAL, address.ip)
    if settled and family == socket.AF_INET6:
        body += number(AddressAttribute.FLAGS, NO_DAD)
    if address.broadcast:
        body += attribute(AddressAttribute.BROADCAST, address.broadcast)
    return body
