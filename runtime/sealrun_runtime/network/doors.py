"""The doors of one network namespace, and which of them leads from its loopback.

That IPv4 goes through them is what an engine's port forwarder rests on, so that a container is refused
without; of a kernel that has no IPv6 at the taps, or no nftables, there is a note, and the rest works.
"""

import logging
from collections.abc import Iterable, Sequence
from typing import Final

from msgspec.structs import replace
from sealrun_protocol.network import Interface, Network

from sealrun_runtime.network import namespace, precedence
from sealrun_runtime.network.door import Door
from sealrun_runtime.network.netlink import Netlink
from sealrun_runtime.network.nftables import Translation

_DOORS: Final = 254  # that a namespace has addresses for
_LINK_LOCAL: Final = b"\xfe\x80"  # of every interface, and nobody's who forwards

log = logging.getLogger(__name__)


class Doors:
    """Nothing here waits."""

    def __init__(self, netlink: Netlink, descriptor: int) -> None:
        """descriptor: of the namespace."""
        self._netlink, self._descriptor = netlink, descriptor
        self._count = 0
        self._translation: Translation | None = None
        self._from_loopback: dict[int, tuple[Door, bytes]] = {}  # by the width of an address
        self._told: set[str] = set()

    def open(self, tap: int) -> Door | None:
        """One for the tap with this index; none where there are too many. Raises OSError."""
        self._count += 1
        return Door(self._netlink, tap, self._count) if self._count <= _DOORS else None

    def lead(self, ways: Sequence[tuple[Door, Interface]], network: Network) -> Network:
        """All go where the interfaces' addresses are. The network, with the VM's ways back. Raises
        OSError."""
        for door, interface in ways:
            addresses = interface.addresses
            door.lead_to(interface.mac, (one for one in addresses if len(one.ip) == 4))
            six = [one for one in addresses if len(one.ip) == 16 and one.ip[:2] != _LINK_LOCAL]
            try:
                door.lead_to(interface.mac, six)
            except OSError as error:
                self._tell(f"its IPv6 addresses: {error.strerror}")
        self._lead_from_loopback(ways)
        routes = [one for door, interface in ways for one in door.routes(interface.name)]
        neighbours = [one for door, interface in ways for one in door.neighbours(interface.name)]
        return replace(
            network,
            routes=(*routes, *network.routes),
            neighbours=(*network.neighbours, *neighbours),
        )

    def close(self) -> None:
        """What the taps do not take with them."""
        if self._translation is not None:
            self._translation.close()
        if self._count:
            try:
                precedence.give_up(self._netlink)
            except OSError as error:
                log.error("cannot take a rule of routes away: %s", error.strerror)

    def _lead_from_loopback(self, ways: Iterable[tuple[Door, Interface]]) -> None:
        first: dict[int, tuple[Door, bytes]] = {}
        for door, interface in ways:
            for one in interface.addresses:
                if door.leads(one.ip):
                    first.setdefault(len(one.ip), (door, one.ip))
        for width, way in first.items():
            if self._from_loopback.get(width) == way:
                continue
            try:
                if self._translation is None:
                    self._translation = namespace.inside(self._descriptor, Translation)
                way[0].lead_from_loopback(self._translation, way[1])
            except OSError as error:
                self._tell(f"the loopback: {error.strerror}")
            else:
                before = self._from_loopback.get(width)
                if before is not None and before[0] is not way[0]:
                    before[0].leave_loopback(width)
                self._from_loopback[width] = way

    def _tell(self, what: str) -> None:
        if what not in self._told:
            self._told.add(what)
            log.info("the namespace's programs do not reach the VM by %s", what)
