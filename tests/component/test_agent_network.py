"""The guest's half of a sandbox's network: the real agent in a network namespace of its own, where veth
interfaces stand for the VM's devices. What is looked at is the kernel's own word and real packets."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import netns
from fixtures.agent import Host, agent, config
from fixtures.netns import Netns
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.network import Address, Interface, Neighbour, Network, Route

pytestmark = pytest.mark.root

DEVICE = bytes.fromhex("020000000001")
SECOND = bytes.fromhex("020000000002")
MAC = bytes.fromhex("0e0000000005")


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


class Inside:
    """The agent's network namespace, and one in which the far ends of its devices are."""

    def __init__(self, host: Host, far: Netns) -> None:
        self.host, self.far = host, far
        self._count = 0

    def __call__(self, script: str) -> str:
        return netns.run("nsenter", "-t", str(self.host.agent_pid), "-n", "sh", "-ec", script)

    def plug(self, mac: bytes, name: str = "") -> str:
        """One more device; the name of its far end, which is up."""
        self._count += 1
        name, far = name or f"dev{self._count}", f"far{self._count}"
        self(
            f"ip link add {name} address {mac.hex(':')} type veth"
            f" peer name {far} netns {self.far.name}"
        )
        self.far(f"ip link set {far} up")
        return far

    def ask(self, *interfaces: Interface, **members: Any) -> int:
        """Send ConfigureNetwork; the request's id."""
        network = Network(interfaces=interfaces, **members)
        return self.host.ask(messages.ConfigureNetwork, network=network)

    def done(self, *interfaces: Interface, **members: Any) -> None:
        """ConfigureNetwork, which must go well."""
        answer = self.host.answer(self.ask(*interfaces, **members))
        assert isinstance(answer, messages.Done), answer

    def failed(self, *interfaces: Interface, **members: Any) -> str:
        """ConfigureNetwork, which must be refused; the text."""
        answer = self.host.answer(self.ask(*interfaces, **members))
        assert isinstance(answer, messages.Failed), answer
        assert (answer.phase, answer.code) == (Phase.START, ErrorCode.NETWORK_FAILED)
        return str(answer.text)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    with netns.empty() as far, agent(tmp_path) as host:
        host.configure()
        one = Inside(host, far)
        one("ip link set lo up")  # as boot.py does
        yield one


def interface(name: str = "eth0", device: bytes = DEVICE, **members: Any) -> Interface:
    return Interface(**{"device": device, "name": name, "mac": device, "mtu": 1500, **members})


FOUR = Address(ip=ip("10.1.1.2"), prefix=24, broadcast=ip("10.1.1.255"))
SIX = Address(ip=ip("fd00::2"), prefix=64)


WHOLE = interface(
    mac=MAC,
    mtu=1400,
    addresses=(FOUR, SIX, Address(ip=ip("10.3.0.1"), prefix=32, scope=253)),
    settings={"ipv6/accept_dad": 0, "ipv6/autoconf": 0, "ipv4/rp_filter": 2},
)
ROUTES = (
    Route(interface="eth0", destination=ip("169.254.0.0"), prefix=16, scope=253),
    Route(interface="eth0", destination=bytes(4), prefix=0, gateway=ip("10.1.1.1"), metric=9),
    Route(
        interface="eth0",
        destination=ip("10.9.0.0"),
        prefix=16,
        gateway=ip("192.0.2.1"),
        on_link=True,
        source=ip("10.1.1.2"),
    ),
    Route(interface="eth0", destination=bytes(16), prefix=0, gateway=ip("fd00::1")),
)


def test_neighbours_hear_of_an_address_that_has_another_owner_now(inside: Inside) -> None:
    """Where the engine wants that (netavark does): a container that comes after another one with its address
    would not be reached for a minute."""
    far = inside.plug(DEVICE)
    inside.far(
        f"ip address add 10.1.1.1/24 dev {far};"
        f"ip neighbour add 10.1.1.2 lladdr 02:00:00:00:00:77 nud stale dev {far}"
    )
    time.sleep(1.1)  # that an entry is younger than this is a reason to keep it (locktime)
    inside.done(interface(addresses=(FOUR,), settings={"ipv4/arp_notify": 1}))
    deadline = time.monotonic() + 10
    while DEVICE.hex(":") not in inside.far("ip neighbour show 10.1.1.2"):
        assert time.monotonic() < deadline, inside.far("ip neighbour")
        time.sleep(0.1)


def test_an_interface_becomes_what_the_engines_was(inside: Inside) -> None:
    far = inside.plug(DEVICE)
    neighbour = Neighbour(interface="eth0", ip=ip("10.1.1.1"), mac=SECOND)
    inside.done(WHOLE, routes=ROUTES, neighbours=(neighbour,))
    link = inside("ip -o link show eth0")
    assert "mtu 1400" in link
    assert f"link/ether {MAC.hex(':')}" in link
    assert ",UP" in link
    addresses = inside("ip -o address show eth0")
    for text in (
        "inet 10.1.1.2/24 brd 10.1.1.255 scope global eth0",
        "inet 10.3.0.1/32 scope link eth0",
        "inet6 fd00::2/64 scope global",
        "inet6 fe80::c00:ff:fe00:5/64 scope link",
    ):
        assert text in addresses, addresses
    assert "nodad" not in addresses
    routes = inside("ip route")
    for text in (
        "default via 10.1.1.1 dev eth0 proto static metric 9",
        "10.1.1.0/24 dev eth0 proto kernel scope link src 10.1.1.2",
        "10.9.0.0/16 via 192.0.2.1 dev eth0 proto static src 10.1.1.2 onlink",
        "169.254.0.0/16 dev eth0 proto static scope link",
    ):
        assert text in routes, routes
    assert "default via fd00::1 dev eth0" in inside("ip -6 route")
    assert f"10.1.1.1 dev eth0 lladdr {SECOND.hex(':')} PERMANENT" in inside("ip neighbour")
    for path, value in (("ipv6/conf/eth0/autoconf", "0"), ("ipv4/conf/eth0/rp_filter", "2")):
        assert inside(f"cat /proc/sys/net/{path}").strip() == value
    inside.far(f"ip address add 10.1.1.1/24 dev {far}; ip link set {far} address {SECOND.hex(':')}")
    inside.far("busybox ping -c 1 -W 5 10.1.1.2")


def test_the_container_sees_it(inside: Inside) -> None:
    inside.plug(DEVICE)
    inside.done(interface(addresses=(FOUR,)))
    mounts = [{"destination": "/sys", "type": "sysfs", "source": "sysfs"}]
    script = "cat /proc/net/route; echo $(ls /sys/class/net); cat /sys/class/net/eth0/address"
    assert (
        inside.host.run("sh", "-c", script, config=config("sh", "-c", script, mounts=mounts)) == 0
    )
    text = bytes(inside.host.output[4]).decode()
    assert "eth0\t0001010A" in text
    assert "eth0 lo" in text
    assert DEVICE.hex(":") in text


def test_names_that_others_have(inside: Inside) -> None:
    """The kernel counts devices in an order of its own."""
    inside.plug(SECOND, "eth0")
    inside.plug(DEVICE, "eth1")
    inside.done(interface("eth0", DEVICE), interface("eth1", SECOND))
    assert DEVICE.hex(":") in inside("ip -o link show eth0")
    assert SECOND.hex(":") in inside("ip -o link show eth1")
    inside.done(interface("eth1", DEVICE), interface("net", SECOND))
    assert DEVICE.hex(":") in inside("ip -o link show eth1")
    assert SECOND.hex(":") in inside("ip -o link show net")
    inside.done(interface("net", DEVICE))
    assert DEVICE.hex(":") in inside("ip -o link show net")


def test_two_interfaces_with_one_address(inside: Inside) -> None:
    """As ipvlan's have. Once it has its address, a device is known by its index."""
    inside.plug(DEVICE)
    inside.plug(SECOND)
    inside.done(interface("eth0", DEVICE, mac=MAC), interface("eth1", SECOND, mac=MAC))
    for name in ("eth0", "eth1"):
        assert MAC.hex(":") in inside(f"ip -o link show {name}")
    inside.done(interface("eth0", DEVICE, mac=MAC, mtu=1300), interface("eth1", SECOND, mac=MAC))
    assert "mtu 1300" in inside("ip -o link show eth0")
    assert "mtu 1500" in inside("ip -o link show eth1")


def test_neighbours_that_are_not_asked_for(inside: Inside) -> None:
    inside.plug(DEVICE)
    inside.done(interface(arp=False))
    assert "NOARP" in inside("ip -o link show eth0")


DEFAULT = Route(interface="eth0", destination=bytes(4), prefix=0, gateway=ip("10.1.1.1"))


def test_what_stays_is_not_touched(inside: Inside) -> None:
    """An IPv6 address and a route that the workload adds would be gone had the link been down."""
    inside.plug(DEVICE)
    inside.done(interface(addresses=(FOUR,)), routes=(DEFAULT,))
    inside(
        "ip address add fd00::77/64 dev eth0 nodad; ip route add 10.7.0.0/16 via 10.1.1.7 dev eth0"
    )
    inside.plug(SECOND)
    more = Address(ip=ip("10.1.1.9"), prefix=24)
    eth0 = interface(addresses=(FOUR, more))
    inside.done(eth0, interface("eth1", SECOND), routes=(DEFAULT,))
    assert "10.1.1.9/24" in inside("ip -o address show eth0")
    inside.done(interface(addresses=(FOUR,)), routes=(DEFAULT,))
    addresses = inside("ip -o address show eth0")
    assert "10.1.1.9" not in addresses
    assert "10.1.1.2/24" in addresses
    assert "fd00::77/64" in addresses
    routes = inside("ip route")
    assert "default via 10.1.1.1" in routes
    assert "10.7.0.0/16 via 10.1.1.7" in routes


def test_what_is_named_no_more_is_taken_away(inside: Inside) -> None:
    inside.plug(DEVICE)
    inside.plug(SECOND)
    second = interface("eth1", SECOND, addresses=(Address(ip=ip("10.2.0.2"), prefix=24),))
    route = Route(interface="eth1", destination=ip("10.9.0.0"), prefix=16, gateway=ip("10.2.0.1"))
    neighbour = Neighbour(interface="eth0", ip=ip("10.1.1.5"), mac=SECOND)
    inside.done(
        interface(addresses=(FOUR,)), second, routes=(DEFAULT, route), neighbours=(neighbour,)
    )
    inside.done(interface(addresses=(FOUR,)))
    assert inside("ip -o address show eth1") == ""
    assert ",UP" not in inside("ip -o link show eth1")
    assert inside("ip route").splitlines() == [
        "10.1.1.0/24 dev eth0 proto kernel scope link src 10.1.1.2 "
    ]
    assert inside("ip neighbour show nud permanent") == ""
    inside.done()
    assert inside("ip -o -4 address").split()[1:2] == ["lo"]


def test_alternatives_keep_the_hosts_order(inside: Inside) -> None:
    """Of routes that differ in the gateway only, the kernel takes the first."""
    inside.plug(DEVICE)
    inside.plug(SECOND)
    links = (
        interface(addresses=(FOUR,)),
        interface("eth1", SECOND, addresses=(Address(ip=ip("10.2.0.2"), prefix=24),)),
    )
    other = Route(interface="eth1", destination=bytes(4), prefix=0, gateway=ip("10.2.0.1"))
    inside.done(*links, routes=(DEFAULT,))
    for order in ((other, DEFAULT), (DEFAULT, other), (other, DEFAULT), (other,)):
        inside.done(*links, routes=order)
        gateways = [line.split()[2] for line in inside("ip route show default").splitlines()]
        assert gateways == [socket.inet_ntoa(route.gateway) for route in order]


def test_a_device_that_comes_later_is_waited_for(inside: Inside) -> None:
    number = inside.ask(interface(addresses=(FOUR,)))
    inside.host.silence(0.3)
    inside.plug(DEVICE)
    assert isinstance(inside.host.answer(number), messages.Done)
    assert "10.1.1.2/24" in inside("ip -o address show eth0")


def test_a_newer_description_ends_the_wait(inside: Inside) -> None:
    inside.plug(DEVICE)
    first = inside.ask(interface(), interface("eth1", SECOND))
    second = inside.ask(interface(addresses=(FOUR,)))
    answers = inside.host.answers([first, second])
    assert answers[first].code is ErrorCode.NETWORK_FAILED
    assert isinstance(answers[second], messages.Done)


def test_a_device_that_was_taken_out_and_one_that_takes_its_place(inside: Inside) -> None:
    inside.plug(DEVICE)
    inside.done(interface(addresses=(FOUR,)))
    inside("ip link delete eth0")
    inside.done()
    inside.plug(SECOND)
    inside.done(interface(device=SECOND, mac=DEVICE, addresses=(FOUR,)))
    assert DEVICE.hex(":") in inside("ip -o link show eth0")


def test_what_the_kernel_refuses_is_told_and_can_be_mended(inside: Inside) -> None:
    inside.plug(DEVICE)
    unreachable = Route(interface="eth0", destination=bytes(4), prefix=0, gateway=ip("192.0.2.1"))
    text = inside.failed(interface(addresses=(FOUR,)), routes=(unreachable,))
    assert text == "cannot add the route through eth0: Network is unreachable"
    inside.done(interface(addresses=(FOUR,)), routes=(DEFAULT,))
    assert "default via 10.1.1.1" in inside("ip route")


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"name": "lo"}, "interfaces[0].name: lo is taken"),
        ({"name": "all"}, "interfaces[0].name: all is taken"),
        ({"mac": b"\x01\0\0\0\0\1"}, "interfaces[0].mac: it is no address of one interface"),
        ({"mac": bytes(6)}, "interfaces[0].mac: it is no address of one interface"),
        (
            {"settings": {"ipv4/../../../kernel/core_pattern": 1}},
            "interfaces[0].settings: 'ipv4/../../../kernel/core_pattern' is not to be set",
        ),
        (
            {"addresses": (Address(ip=ip("127.0.0.2"), prefix=8),)},
            "interfaces[0].addresses[0].ip: it belongs to the loopback, or to nobody",
        ),
        (
            {"addresses": (Address(ip=ip("::1"), prefix=128),)},
            "interfaces[0].addresses[0].ip: it belongs to the loopback, or to nobody",
        ),
        (
            {"addresses": (Address(ip=ip("224.0.0.1"), prefix=8),)},
            "interfaces[0].addresses[0].ip: it is an address of many",
        ),
        (
            {"addresses": (Address(ip=ip("10.0.0.1"), prefix=33),)},
            "interfaces[0].addresses[0].prefix: 33 is longer than the address",
        ),
    ],
)
def test_a_hostile_description_is_refused_before_anything_is_done(
    inside: Inside, members: dict[str, Any], text: str
) -> None:
    """The other rules: tests/unit/agent/network."""
    inside.plug(DEVICE)
    before = inside("ip -o link; ip -o address; ip route")
    assert inside.failed(interface(**members)) == text
    assert inside("ip -o link; ip -o address; ip route") == before
    inside.done(interface(addresses=(FOUR,)))


def test_before_the_sandbox_is_configured_it_is_a_violation(tmp_path: Path) -> None:
    with agent(tmp_path) as host:
        host.expect(messages.Hello)
        host.ask(messages.ConfigureNetwork, network=Network())
        host.last_words(ErrorCode.PROTOCOL_VIOLATION)


def test_bounds_are_the_protocols(inside: Inside) -> None:
    """A description that is too large is no message."""
    many = tuple(interface(f"eth{n}", DEVICE[:5] + bytes([n])) for n in range(17))
    inside.ask(*many)
    inside.host.last_words(ErrorCode.PROTOCOL_VIOLATION)
