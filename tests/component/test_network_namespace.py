"""The host's half of a sandbox's network in real network namespaces: what is found there, and the way
of its packets through a tap. In place of a VM the test holds the tap."""

import os
import select
import socket
import time
from collections.abc import Iterator

import pytest
from fixtures import netns
from fixtures.netns import Netns
from sealrun_protocol.network import Address, Neighbour, Route
from sealrun_runtime.network import namespace, tap
from sealrun_runtime.network.netlink import Changes, Netlink
from sealrun_runtime.network.survey import Survey, survey
from sealrun_runtime.shim.errors import HostUnfit
from sealrun_runtime.shim.wires import Namespace

pytestmark = pytest.mark.root

VNET_HEADER = bytes(10)
PROTOCOL = b"\x88\xb5"  # for experiments: IEEE 802
SECONDS = 10.0


def opened(where: Netns) -> Namespace:
    return Namespace(os.open(where.path, os.O_RDONLY | os.O_CLOEXEC))


@pytest.fixture
def place(inside: Netns) -> Iterator[Namespace]:
    """A sandbox's hold on the namespace."""
    one = opened(inside)
    yield one
    one.close()


def look(where: Netns) -> Survey:
    descriptor = os.open(where.path, os.O_RDONLY | os.O_CLOEXEC)
    with namespace.inside(descriptor, Netlink) as netlink:
        found = survey(netlink)
    os.close(descriptor)
    return found


def ip(text: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


# --- what is found -----------------------------------------------------------------------------------


ENGINE = (
    "ip link set eth0 down; ip link set eth0 address 02:00:00:00:00:05 mtu 1400 up;"
    "ip address add 10.1.1.2/24 brd + dev eth0;"
    "ip address add 10.1.2.2/32 scope link dev eth0;"
    "ip address add fd00::2/64 dev eth0;"
    "ip route add default via 10.1.1.1 metric 100;"
    "ip route add 10.9.0.0/16 via 169.254.1.1 dev eth0 onlink src 10.1.1.2;"
    "ip route add 169.254.0.0/16 dev eth0 scope link;"
    "ip -6 route add default via fd00::1 metric 7;"
    "ip neighbour add 169.254.1.1 lladdr 02:00:00:00:00:09 dev eth0;"
    "echo 0 >/proc/sys/net/ipv6/conf/eth0/autoconf;"
    "echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad;"
    "echo 2 >/proc/sys/net/ipv6/conf/eth0/accept_ra;"
    "echo 1 >/proc/sys/net/ipv4/conf/eth0/arp_notify;"
    "echo 2 >/proc/sys/net/ipv4/conf/eth0/rp_filter"
)


def test_everything_that_an_engine_leaves(inside: Netns) -> None:
    inside(ENGINE)
    found = look(inside)
    (interface,) = found.network.interfaces
    assert (interface.name, interface.mtu, interface.arp) == ("eth0", 1400, True)
    assert interface.mac == interface.device == bytes.fromhex("020000000005")
    assert set(interface.addresses) == {
        Address(ip=ip("10.1.1.2"), prefix=24, broadcast=ip("10.1.1.255")),
        Address(ip=ip("10.1.2.2"), prefix=32, scope=253),
        Address(ip=ip("fd00::2"), prefix=64),
    }
    assert interface.settings == {
        "ipv4/arp_notify": 1,
        "ipv4/rp_filter": 2,
        "ipv6/accept_dad": 0,
        "ipv6/accept_ra": 2,
        "ipv6/autoconf": 0,
        "ipv6/disable_ipv6": 0,
    }
    assert set(found.network.routes) == {
        Route(interface="eth0", destination=bytes(4), prefix=0, gateway=ip("10.1.1.1"), metric=100),
        Route(
            interface="eth0",
            destination=ip("10.9.0.0"),
            prefix=16,
            gateway=ip("169.254.1.1"),
            source=ip("10.1.1.2"),
            on_link=True,
        ),
        Route(interface="eth0", destination=ip("169.254.0.0"), prefix=16, scope=253),
        Route(interface="eth0", destination=bytes(16), prefix=0, gateway=ip("fd00::1"), metric=7),
    }
    assert not found.network.routes[0].gateway, "what makes gateways reachable comes first"
    assert found.network.neighbours == (
        Neighbour(interface="eth0", ip=ip("169.254.1.1"), mac=bytes.fromhex("020000000009")),
    )
    assert not found.in_use
    assert not found.notes


def test_what_the_guest_makes_itself_is_left_out(inside: Netns) -> None:
    """Link-local addresses, connected routes; an interface that is down, a port of a bridge."""
    inside(
        "ip address add 10.1.1.2/24 dev eth0;"
        "ip link add down type veth peer name down2;"
        "ip link add port type veth peer name port2; ip link add br0 type bridge;"
        "ip link set port master br0 up; ip link set br0 up"
    )
    found = look(inside)
    assert {one.name for one in found.network.interfaces} == {"eth0", "br0"}
    assert found.network.routes == ()
    (interface,) = (one for one in found.network.interfaces if one.name == "eth0")
    assert [one.ip for one in interface.addresses] == [ip("10.1.1.2")]


def test_a_link_local_address_of_the_engines_choice_is_carried(inside: Netns) -> None:
    inside("ip address add fe80::1234/64 dev eth0 nodad")
    (interface,) = look(inside).network.interfaces
    assert [one.ip for one in interface.addresses] == [ip("fe80::1234")]


def test_what_cannot_be_carried_is_told(inside: Netns) -> None:
    inside(
        "ip address add 10.1.1.2/24 dev eth0;"
        "ip tuntap add name point mode tun; ip link set point up;"
        "ip route add blackhole 10.7.0.0/16;"
        "ip route add 10.8.0.0/16 nexthop via 10.1.1.3 nexthop via 10.1.1.4"
    )
    notes = look(inside).notes
    assert notes[0] == "interface point is not carried into the VM: it is no ethernet device"
    assert set(notes[1:]) == {
        "a route to 10.7.0.0/16 is not carried into the VM",
        "a route to 10.8.0.0/16 is not carried into the VM",
    }


def test_more_than_one_datagram_of_addresses(inside: Netns) -> None:
    inside("for n in $(seq 1 250); do ip address add 10.2.0.$n/16 dev eth0; done")
    (interface,) = look(inside).network.interfaces
    assert len(interface.addresses) == 250


# --- the way of the packets --------------------------------------------------------------------------


def frame(source: str, text: bytes) -> bytes:
    return b"\xff" * 6 + bytes.fromhex(source) + PROTOCOL + text.ljust(46, b"\0")


def read_frame(descriptor: int, text: bytes) -> None:
    """Wait for a frame with this text; others (a kernel's own) are passed over."""
    deadline = time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0] and text in os.read(descriptor, 65536):
            return
    raise AssertionError(f"{text!r} did not arrive")


def packets(where: Netns, interface: str) -> socket.socket:
    """A raw socket at an interface."""
    descriptor = os.open(where.path, os.O_RDONLY | os.O_CLOEXEC)
    kind = int.from_bytes(PROTOCOL, "big")
    made = namespace.inside(
        descriptor, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind)
    )
    made.bind((interface, kind))
    os.close(descriptor)
    made.settimeout(SECONDS)
    return made


def test_packets_pass_both_ways_and_by_the_namespaces_own_stack(
    place: Namespace, inside: Netns, outside: Netns
) -> None:
    inside("ip address add 10.1.1.2/24 dev eth0")
    outside("ip address add 10.1.1.1/24 dev far; busybox ping -c 1 -W 2 10.1.1.2 >/dev/null")
    ((name, nic),) = place.look().plugged
    assert name == "nic0"
    assert inside.links == {"lo", "eth0", "sealrun0"}
    with packets(outside, "far") as far:
        far.send(frame("020000000001", b"into the VM"))
        read_frame(nic.tap_fd, b"into the VM")
        os.write(nic.tap_fd, VNET_HEADER + frame("020000000002", b"out of the VM"))
        assert b"out of the VM" in far.recv(65536)
    # The VM, which does not answer here, is in the interface's place.
    outside("! busybox ping -c 1 -W 1 10.1.1.2 >/dev/null")


def test_the_tap_goes_with_its_file_and_the_redirection_with_the_sandbox(
    inside: Netns, outside: Netns
) -> None:
    place = opened(inside)
    inside("ip address add 10.1.1.2/24 dev eth0")
    outside("ip address add 10.1.1.1/24 dev far")
    place.look()
    assert inside.redirected("eth0")
    place.handed_over()
    assert inside.links == {"lo", "eth0"}, "nobody has the tap's file any more"
    place.close()
    assert not inside.redirected("eth0")
    outside("busybox ping -c 1 -W 2 10.1.1.2 >/dev/null")


def test_the_device_has_the_interfaces_address_and_size(place: Namespace, inside: Netns) -> None:
    inside("ip link set eth0 address 02:00:00:00:00:05 mtu 1400")
    ((_, nic),) = place.look().plugged
    assert (nic.mac, nic.mtu) == ("02:00:00:00:00:05", 1400)
    assert "mtu 1400" in inside("ip -o link show sealrun0")
    assert inside("ip -o address show sealrun0") == "", "the tap has nothing to say by itself"


@pytest.mark.parametrize("kind", ["macvlan", "macvtap"])
def test_interfaces_on_top_of_others(ends: tuple[Netns, Netns], kind: str) -> None:
    inside, outside = ends
    with netns.empty() as container:
        inside(f"ip link add link eth0 name mv0 netns {container.name} type {kind} mode bridge")
        container("ip link set mv0 up")
        place = opened(container)
        try:
            ((_, nic),) = place.look().plugged
            with packets(outside, "far") as far:
                far.send(frame("020000000001", b"into the VM"))
                read_frame(nic.tap_fd, b"into the VM")
                mac = nic.mac.replace(":", "")
                os.write(nic.tap_fd, VNET_HEADER + frame(mac, b"out of the VM"))
                assert b"out of the VM" in far.recv(65536)
        finally:
            place.close()


# --- one after the other, and several at once --------------------------------------------------------


def test_a_namespace_belongs_to_one_sandbox(place: Namespace, inside: Netns) -> None:
    place.look()
    second = opened(inside)
    try:
        with pytest.raises(HostUnfit, match="another sandbox's already"):
            second.look()
    finally:
        second.close()
    assert inside.redirected("eth0"), "the first one's wires are untouched"


def test_what_a_killed_sandbox_left_is_taken_over(inside: Netns) -> None:
    descriptor = os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC)
    with namespace.inside(descriptor, Netlink) as netlink:
        made = namespace.inside(descriptor, lambda: tap.open_tap(netlink, 1500))
        tap.join(netlink, survey(netlink).indexes["eth0"], made.interface)
        os.close(made.descriptor)
    os.close(descriptor)
    assert inside.redirected("eth0")
    place = opened(inside)
    assert len(place.look().plugged) == 1
    place.close()
    assert not inside.redirected("eth0")


MIRROR = (
    "tc qdisc add dev eth0 ingress; tc filter add dev eth0 parent ffff: protocol ip u32"
    " match u32 0 0 action mirred egress mirror dev lo"
)


@pytest.mark.parametrize("control", ["tc qdisc add dev eth0 clsact", MIRROR])
def test_traffic_control_of_others_is_not_touched(
    place: Namespace, inside: Netns, control: str
) -> None:
    inside(control)
    before = inside("tc qdisc show dev eth0; tc filter show dev eth0 ingress")
    with pytest.raises(HostUnfit, match="interface eth0 has traffic control of its own") as caught:
        place.look()
    assert "tc qdisc del dev eth0 ingress" in caught.value.remedy
    assert inside("tc qdisc show dev eth0; tc filter show dev eth0 ingress") == before
    assert inside.links == {"lo", "eth0"}


def test_interfaces_come_and_go(place: Namespace, inside: Netns, outside: Netns) -> None:
    assert [name for name, _ in place.look().plugged] == ["nic0"]
    assert place.look() == ([], [])
    netns.connect(inside, "eth1", outside, "far1")
    ((name, nic),) = place.look().plugged
    assert (name, nic.mac) == ("nic1", place.network.interfaces[-1].device.hex(":"))
    mac = nic.mac
    inside("ip link delete eth1")
    assert place.look() == ([], ["nic1"])
    assert [one.name for one in place.network.interfaces] == ["eth0"]
    netns.connect(inside, "eth1", outside, "far1")
    inside(f"ip link set eth1 address {mac}")
    ((name, nic),) = place.look().plugged
    assert name == "nic2"
    assert nic.mac != mac, "the guest may still have the old device"
    (interface,) = (one for one in place.network.interfaces if one.name == "eth1")
    assert (interface.mac.hex(":"), interface.device.hex(":")) == (mac, nic.mac)


def test_interfaces_with_one_address_get_devices_with_several(
    place: Namespace, inside: Netns, outside: Netns
) -> None:
    """As ipvlan's do."""
    netns.connect(inside, "eth1", outside, "far1")
    for name in ("eth0", "eth1"):
        inside(f"ip link set {name} address 02:00:00:00:00:05")
    macs = [nic.mac for _, nic in place.look().plugged]
    assert macs[0] == "02:00:00:00:00:05"
    assert macs[1] != macs[0]
    assert {one.mac for one in place.network.interfaces} == {bytes.fromhex("020000000005")}


def test_an_interface_that_the_vm_cannot_have_is_left_alone(
    place: Namespace, inside: Netns, outside: Netns
) -> None:
    place.look()
    netns.connect(inside, "eth1", outside, "far1")
    place.look()
    place.refuse("nic1")
    assert not inside.redirected("eth1")
    assert [one.name for one in place.network.interfaces] == ["eth0"]
    assert place.look() == ([], [])
    assert [one.name for one in place.network.interfaces] == ["eth0"]


def test_changes_are_heard(inside: Netns, outside: Netns) -> None:
    descriptor = os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC)
    changes = namespace.inside(descriptor, Changes)
    os.close(descriptor)
    for change in (
        "ip address add 10.1.1.2/24 dev eth0",
        "ip route add default via 10.1.1.1",
        "ip address add fd00::2/64 dev eth0",
        "ip link set eth0 mtu 1400",
        "ip link delete eth0",
    ):
        changes.drain()
        assert not select.select([changes], [], [], 0.05)[0]
        inside(change)
        assert select.select([changes], [], [], SECONDS)[0], change
    changes.close()
    netns.connect(inside, "eth0", outside, "far")


def test_who_visits_a_namespace_is_not_moved(inside: Netns) -> None:
    own = os.stat(namespace.OWN).st_ino
    descriptor = os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC)
    assert namespace.inside(descriptor, lambda: os.stat(namespace.OWN).st_ino) != own
    with pytest.raises(ZeroDivisionError):
        namespace.inside(descriptor, lambda: 1 // 0)
    with pytest.raises(OSError, match="Invalid argument"), open(os.devnull, "rb") as file:
        namespace.inside(file.fileno(), lambda: None)
    assert os.stat(namespace.OWN).st_ino == own
    assert not namespace.is_own(descriptor)
    os.close(descriptor)
