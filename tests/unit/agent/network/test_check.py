"""What the guest refuses of a description of its network, rule by rule."""

import socket
from typing import Any

import msgspec
import pytest
from sealrun_agent.errors import StartError
from sealrun_agent.network.check import check
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.messages import (
    ConfigureNetwork,
    ProtocolViolation,
    decode_from_host,
    encode,
)
from sealrun_protocol.network import Address, Interface, Neighbour, Network, Route

MAC = bytes.fromhex("020000000001")
OTHER = bytes.fromhex("020000000002")


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def interface(**members: Any) -> Interface:
    return Interface(**{"device": MAC, "name": "eth0", "mac": MAC, "mtu": 1500, **members})


def route(to: str, prefix: int, **members: Any) -> Route:
    return Route(**{"interface": "eth0", "destination": ip(to), "prefix": prefix, **members})


GOOD = Network(
    interfaces=(
        interface(
            addresses=(
                Address(ip=ip("10.0.0.2"), prefix=24, broadcast=ip("10.0.0.255")),
                Address(ip=ip("fd00::2"), prefix=64),
                Address(ip=ip("fe80::2"), prefix=64, scope=253),
            ),
            settings={"ipv6/accept_ra": 2, "ipv4/rp_filter": 0},
        ),
        interface(device=OTHER, name="net-1.x_Y"),
    ),
    routes=(
        route("0.0.0.0", 0, gateway=ip("10.0.0.1")),
        route("::", 0, gateway=ip("fe80::1")),
        route("224.0.0.0", 4),
        route("10.9.0.0", 16, gateway=ip("10.0.0.1"), source=ip("10.0.0.2"), on_link=True),
    ),
    neighbours=(Neighbour(interface="eth0", ip=ip("10.0.0.1"), mac=OTHER),),
)


def test_what_engines_ask_for_is_accepted() -> None:
    check(GOOD)
    check(Network())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"interfaces": (interface(), interface(device=OTHER))},
            "interfaces[1].name: eth0 is taken",
        ),
        (
            {"interfaces": (interface(), interface(name="eth1"))},
            "interfaces[1].device: it is another interface's",
        ),
        ({"interfaces": (interface(name="default"),)}, "interfaces[0].name: default is taken"),
        (
            {"interfaces": (interface(mac=b"\xff" * 6),)},
            "interfaces[0].mac: it is no address of one interface",
        ),
        ({"routes": (route("10.0.0.0", 8, interface="eth9"),)}, "eth9 is none of the interfaces"),
        ({"routes": (route("127.0.0.0", 8),)}, "it belongs to the loopback"),
        ({"routes": (route("127.5.0.0", 16),)}, "it belongs to the loopback"),
        ({"routes": (route("::1", 128),)}, "it belongs to the loopback"),
        ({"routes": (route("::ffff:127.0.0.1", 128),)}, "it belongs to the loopback"),
        ({"routes": (route("10.0.0.0", 33),)}, "33 is longer than the address"),
        (
            {"routes": (route("10.0.0.0", 8, gateway=ip("fd00::1")),)},
            "routes[0].gateway: it is of another family",
        ),
        (
            {"routes": (route("fd00::", 8, source=ip("10.0.0.2")),)},
            "routes[0].source: it is of another family",
        ),
        ({"routes": (route("10.0.0.0", 8, gateway=ip("127.0.0.1")),)}, "belongs to the loopback"),
        ({"routes": (route("10.0.0.0", 8, gateway=ip("224.0.0.1")),)}, "an address of many"),
        ({"routes": (route("10.0.0.0", 8, destination=bytes(5)),)}, "it is no IP address"),
        (
            {"neighbours": (Neighbour(interface="lo", ip=ip("10.0.0.1"), mac=OTHER),)},
            "neighbours[0].interface: lo is none of the interfaces",
        ),
        (
            {"neighbours": (Neighbour(interface="eth0", ip=ip("127.0.0.1"), mac=OTHER),)},
            "neighbours[0].ip: it belongs to the loopback",
        ),
    ],
)
def test_what_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(StartError) as refused:
        check(msgspec.structs.replace(GOOD, **changes))
    assert text in str(refused.value)
    assert refused.value.code is ErrorCode.NETWORK_FAILED


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.255.254", "239.1.1.1", "255.255.255.255"),
        *("::", "::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:0.0.0.0", "::ffff:224.0.0.1"),
    ],
)
def test_addresses_that_no_interface_has(address: str) -> None:
    one = interface(addresses=(Address(ip=ip(address), prefix=8),))
    with pytest.raises(StartError, match=r"addresses\[0\]\.ip: it (belongs|is an address of many)"):
        check(Network(interfaces=(one,)))


@pytest.mark.parametrize("length", [5, 15])
def test_addresses_of_no_family(length: int) -> None:
    one = interface(addresses=(Address(ip=b"\x0a" * length, prefix=8),))
    with pytest.raises(StartError, match="it is no IP address"):
        check(Network(interfaces=(one,)))


def test_a_broadcast_address_is_ipv4s() -> None:
    for address in (
        Address(ip=ip("fd00::2"), prefix=64, broadcast=ip("fd00::ffff")),
        Address(ip=ip("10.0.0.2"), prefix=24, broadcast=ip("fd00::ffff")),
        Address(ip=ip("10.0.0.2"), prefix=24, broadcast=b"\x0a"),
    ):
        with pytest.raises(StartError, match="broadcast: it is no IPv4 address"):
            check(Network(interfaces=(interface(addresses=(address,)),)))


@pytest.mark.parametrize(
    "members",
    [
        {"name": ""},
        {"name": "."},
        {"name": ".."},
        {"name": "a/b"},
        {"name": "a b"},
        {"name": "a" * 16},
        {"name": "eth0\n"},
        {"mtu": 67},
        {"mtu": 65536},
        {"mac": bytes(5)},
        {"device": bytes(7)},
        {"addresses": (Address(ip=bytes(3), prefix=0),)},
        {"addresses": (Address(ip=bytes(17), prefix=0),)},
        {"addresses": (Address(ip=bytes(16), prefix=129),)},
        {"addresses": (Address(ip=bytes(4), prefix=0),) * 65},
        {"settings": {"ipv4/rp_filter": 1 << 40}},
        {"settings": {str(n): 0 for n in range(17)}},
    ],
)
def test_what_is_no_message_at_all(members: dict[str, Any]) -> None:
    """msgspec does not look at what our own code constructs, only at what it decodes."""
    network = Network(interfaces=(interface(**members),))
    with pytest.raises(ProtocolViolation):
        decode_from_host(encode(ConfigureNetwork(id=1, network=network)))


def test_what_is_a_message_comes_through_unchanged() -> None:
    message = ConfigureNetwork(id=1, network=GOOD)
    assert decode_from_host(encode(message)) == message
