"""The network of a sandbox, as the host describes it in ConfigureNetwork and the guest makes it.

It is what the engine left in the network namespace of config.json: the guest takes the engine's
addresses, so that everybody outside finds it where the engine says. Bounds stand with the types,
because the guest decodes them from an untrusted host; what a value must be besides is the guest's to
check. Addresses are in the network's byte order: 4 bytes of IPv4 or 16 of IPv6.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

INTERFACES: Final = 16  # of one sandbox
INTERFACE_NAME: Final = r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,14}\Z"  # IFNAMSIZ is 16
SETTINGS: Final = frozenset(
    {
        "ipv4/arp_notify",
        "ipv4/rp_filter",
        "ipv6/accept_dad",
        "ipv6/accept_ra",
        "ipv6/autoconf",
        "ipv6/disable_ipv6",
    }
)
"""What engines set of an interface's sysctls, by family and name in net/FAMILY/conf/INTERFACE."""

Name = Annotated[str, Meta(pattern=INTERFACE_NAME)]
Ip = Annotated[bytes, Meta(min_length=4, max_length=16)]
SomeIp = Annotated[bytes, Meta(max_length=16)]
Mac = Annotated[bytes, Meta(min_length=6, max_length=6)]
Uint8 = Annotated[int, Meta(ge=0, le=0xFF)]
Uint32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Prefix = Annotated[int, Meta(ge=0, le=128)]


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the description."""


class Address(Part, frozen=True, kw_only=True):
    """An address of an interface. prefix: the length of its network in bits. scope: RT_SCOPE_… of
    linux/rtnetlink.h. broadcast: IPv4 only, empty for none."""

    ip: Ip
    prefix: Prefix
    scope: Uint8 = 0
    broadcast: SomeIp = b""


class Interface(Part, frozen=True, kw_only=True):
    """A network device of the VM. device: the MAC address with which the VMM shows it, by which the
    guest finds it; unique in the VM, where `mac`, which the guest gives it, need not be. arp: false
    where neighbours are not asked for. settings: as in SETTINGS."""

    device: Mac
    name: Name
    mac: Mac
    mtu: Annotated[int, Meta(ge=68, le=65535)]
    arp: bool = True
    addresses: Annotated[tuple[Address, ...], Meta(max_length=64)] = ()
    settings: Annotated[dict[str, Annotated[int, Meta(ge=-1, le=255)]], Meta(max_length=16)] = {}


class Route(Part, frozen=True, kw_only=True):
    """A unicast route of the main table. gateway: empty where the destination is on the link.
    source: the address preferred for it, or empty. on_link: the gateway is, though no route says so."""

    interface: Name
    destination: Ip
    prefix: Prefix
    gateway: SomeIp = b""
    source: SomeIp = b""
    scope: Uint8 = 0
    metric: Uint32 = 0
    on_link: bool = False


class Neighbour(Part, frozen=True, kw_only=True):
    """A permanent entry of the table of neighbours."""

    interface: Name
    ip: Ip
    mac: Mac


class Network(Part, frozen=True, kw_only=True):
    """All of it. Routes are in an order in which they can be made."""

    interfaces: Annotated[tuple[Interface, ...], Meta(max_length=INTERFACES)] = ()
    routes: Annotated[tuple[Route, ...], Meta(max_length=256)] = ()
    neighbours: Annotated[tuple[Neighbour, ...], Meta(max_length=256)] = ()
