"""Programs in an engine's network namespace reach the VM at its interfaces' addresses, where the engine
is rootless and its port forwarder is such a program. In place of the VM the test holds the tap; that a
real one answers is in tests/system/test_rootless.py."""

import os
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from fixtures import netns
from fixtures.netns import Netns
from sealrun_protocol.network import Neighbour, Route
from sealrun_runtime import namespaces
from sealrun_runtime.network import namespace
from sealrun_runtime.shim.wires import Namespace

pytestmark = pytest.mark.root

VNET_HEADER = bytes(10)
IPV4, IPV6, UDP = b"\x08\x00", b"\x86\xdd", 17
PEER = socket.inet_aton("169.254.83.1")
PEER_6 = socket.inet_pton(socket.AF_INET6, "fd5e:a152:9c0d:83::1")
ANOTHER = socket.inet_aton("169.254.83.77")
SECONDS = 10.0


@pytest.fixture
def place(inside: Netns, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A sandbox's hold on the namespace, which takes this test's root for one of a user namespace."""
    monkeypatch.setattr(namespaces, "is_rootless", lambda: True)
    one = Namespace(os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC))
    yield one
    one.close()


def program(where: Netns, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A socket of a program in the namespace."""
    descriptor = os.open(where.path, os.O_RDONLY | os.O_CLOEXEC)
    made = namespace.inside(descriptor, lambda: socket.socket(family, socket.SOCK_DGRAM))
    os.close(descriptor)
    made.settimeout(SECONDS)
    return made


def ipv6_is_ready(where: Netns) -> None:
    """The kernel takes packets for an address a moment after it is there, whoever asked for it."""
    deadline = time.monotonic() + SECONDS
    while "local fd5e:a152:9c0d:83::1 dev" not in where("ip -6 route show table local"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_udp(tap: int, text: bytes, kind: bytes = IPV4) -> bytes:
    """The frame with this text; a kernel's own are passed over."""
    deadline = time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if select.select([tap], [], [], left)[0]:
            found = os.read(tap, 65536)[len(VNET_HEADER) :]
            if found[12:14] == kind and text in found:
                return found
    raise AssertionError(f"{text!r} did not arrive")


def answer(to: bytes, text: bytes, *, destination: bytes | None = None) -> bytes:
    """The frame that a UDP service sends back. destination: an IP address instead of the sender's."""
    ip, udp = to[14:34], to[34:42]
    source, target = ip[16:20], destination or ip[12:16]
    length = 8 + len(text)
    back = struct.pack("!HHHH", *struct.unpack("!HH", udp[:4])[::-1], length, 0)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0, 64, UDP, 0, source, target)
    header = header[:10] + checksum(header) + header[12:]
    return VNET_HEADER + to[6:12] + to[:6] + IPV4 + header + back + text


def answer_6(to: bytes, text: bytes) -> bytes:
    """The same of IPv6, where UDP has a checksum always."""
    source, target, udp = to[38:54], to[22:38], to[54:62]
    length = 8 + len(text)
    back = struct.pack("!HHHH", *struct.unpack("!HH", udp[:4])[::-1], length, 0) + text
    back = back[:6] + checksum(source + target + struct.pack("!II", length, UDP) + back) + back[8:]
    header = struct.pack("!IHBB", 6 << 28, length, UDP, 64) + source + target
    return VNET_HEADER + to[6:12] + to[:6] + IPV6 + header + back


def checksum(data: bytes) -> bytes:
    """Of the internet: RFC 1071."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def test_the_vm_is_at_the_interfaces_address(place: Namespace, inside: Netns) -> None:
    inside("ip address add 10.1.1.2/24 dev eth0")
    ((_, nic),) = place.look().plugged
    with program(inside) as client:
        client.sendto(b"ping", ("10.1.1.2", 53))
        asked = read_udp(nic.tap_fd, b"ping")
        assert asked[:6].hex(":") == nic.mac, "nobody is asked for the VM's address"
        assert asked[26:30] == PEER
        assert asked[30:34] == socket.inet_aton("10.1.1.2")
        os.write(nic.tap_fd, answer(asked, b"pong"))
        assert client.recvfrom(100) == (b"pong", ("10.1.1.2", 53))


def test_the_vm_is_at_the_interfaces_ipv6_address(place: Namespace, inside: Netns) -> None:
    inside("ip address add fd01::2/64 dev eth0 nodad; ip address add fd01::3/64 dev eth0 nodad")
    ((_, nic),) = place.look().plugged
    ipv6_is_ready(inside)
    for name in ("fd01::2", "fd01::3"):
        with program(inside, socket.AF_INET6) as client:
            client.sendto(b"ping", (name, 53))
            asked = read_udp(nic.tap_fd, b"ping", IPV6)
            assert asked[:6].hex(":") == nic.mac, "nobody is asked for the VM's address"
            assert asked[22:38] == PEER_6
            assert asked[38:54] == socket.inet_pton(socket.AF_INET6, name)
            os.write(nic.tap_fd, answer_6(asked, b"pong"))
            assert client.recvfrom(100)[0] == b"pong"


@pytest.mark.parametrize("aim", ["127.0.0.1", "127.0.0.7"])
def test_the_namespaces_loopback_is_the_vms_first_address(
    place: Namespace, inside: Netns, aim: str
) -> None:
    """No kernel takes packets for its loopback from outside."""
    inside("ip address add 10.1.1.2/24 dev eth0")
    ((_, nic),) = place.look().plugged
    with program(inside) as client:
        client.connect((aim, 53))
        client.send(b"ping")
        asked = read_udp(nic.tap_fd, b"ping")
        assert asked[:6].hex(":") == nic.mac
        assert (asked[26:30], asked[30:34]) == (PEER, socket.inet_aton("10.1.1.2"))
        os.write(nic.tap_fd, answer(asked, b"pong"))
        assert client.recvfrom(100) == (b"pong", (aim, 53))


def test_so_is_its_ipv6_loopback(place: Namespace, inside: Netns) -> None:
    inside("ip address add fd01::2/64 dev eth0 nodad")
    ((_, nic),) = place.look().plugged
    ipv6_is_ready(inside)
    with program(inside, socket.AF_INET6) as client:
        client.connect(("::1", 53))
        client.send(b"ping")
        asked = read_udp(nic.tap_fd, b"ping", IPV6)
        assert asked[22:38] == PEER_6
        assert asked[38:54] == socket.inet_pton(socket.AF_INET6, "fd01::2")
        os.write(nic.tap_fd, answer_6(asked, b"pong"))
        assert client.recvfrom(100)[0] == b"pong"


def test_one_rule_is_enough(place: Namespace, inside: Netns, outside: Netns) -> None:
    before = inside("ip -6 rule").splitlines()
    netns.connect(inside, "eth1", outside, "far1")
    inside("ip address add fd01::2/64 dev eth0 nodad; ip address add fd02::2/64 dev eth1 nodad")
    place.look()
    place.look()
    assert inside("ip -6 rule").splitlines() == ["0:\tfrom all iif lo lookup 83", *before]


def test_taps_without_ipv6(place: Namespace, inside: Netns) -> None:
    """IPv4 does not suffer."""
    inside("ip address add 10.1.1.2/24 dev eth0; ip address add fd01::2/64 dev eth0 nodad")
    inside("echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6")
    ((_, nic),) = place.look().plugged
    with program(inside) as client:
        client.sendto(b"ping", ("127.0.0.1", 53))
        read_udp(nic.tap_fd, b"ping")
    assert [route.destination for route in place.network.routes] == [PEER]


def test_the_loopback_follows_the_address(place: Namespace, inside: Netns) -> None:
    inside("ip address add 10.1.1.2/24 dev eth0")
    ((_, nic),) = place.look().plugged
    inside("ip address replace 10.1.2.2/24 dev eth0; ip address del 10.1.1.2/24 dev eth0")
    place.look()
    with program(inside) as client:
        client.sendto(b"ping", ("127.0.0.1", 53))
        assert read_udp(nic.tap_fd, b"ping")[30:34] == socket.inet_aton("10.1.2.2")


@pytest.mark.parametrize(
    ("aim", "network"), [("127.0.0.1", "10.1.{}.2/24"), ("::1", "fd0{}::2/64")]
)
def test_the_loopback_follows_the_first_interface_to_and_fro(
    place: Namespace, inside: Netns, outside: Netns, aim: str, network: str
) -> None:
    family, kind = (socket.AF_INET6, IPV6) if ":" in aim else (socket.AF_INET, IPV4)
    netns.connect(inside, "eth1", outside, "far1")
    for number in (0, 1):
        inside(f"ip address add {network.format(number + 1)} dev eth{number} nodad")
    taps = [nic.tap_fd for _, nic in place.look().plugged]
    if family == socket.AF_INET6:
        ipv6_is_ready(inside)
    with program(inside, family) as client:
        for number, change in enumerate(("", "del", "add", "del", "add")):
            if change:
                inside(f"ip address {change} {network.format(1)} dev eth0 nodad")
                place.look()
            text = f"ping {number}".encode()
            client.sendto(text, (aim, 53))
            address = network.format(2 if change == "del" else 1).partition("/")[0]
            asked = read_udp(taps[change == "del"], text, kind)
            assert socket.inet_pton(family, address) in asked[26:54]


def test_the_vm_does_not_reach_the_namespaces_loopback(place: Namespace, inside: Netns) -> None:
    """What it sends there, to the tap's own hardware address, is nobody's."""
    inside("ip address add 10.1.1.2/24 dev eth0; ip address add fd01::2/64 dev eth0 nodad")
    ((_, nic),) = place.look().plugged
    with program(inside) as client, program(inside) as service:
        service.bind(("0.0.0.0", 5353))
        client.sendto(b"ping", ("10.1.1.2", 5353))
        asked = read_udp(nic.tap_fd, b"ping")
        to_peer = answer(asked, b"to the peer")
        port = struct.pack("!H", 5353)
        to_peer = to_peer[:46] + port + to_peer[48:]
        os.write(nic.tap_fd, to_peer)
        assert service.recv(100) == b"to the peer", "this one address it does reach"
        to_loopback = answer(asked, b"to the loopback", destination=socket.inet_aton("127.0.0.1"))
        os.write(nic.tap_fd, to_loopback[:46] + port + to_loopback[48:])
        service.settimeout(0.5)
        with pytest.raises(TimeoutError):
            service.recv(100)


def test_the_vm_is_told_the_way_back(place: Namespace, inside: Netns) -> None:
    inside("ip address add 10.1.1.2/24 dev eth0")
    place.look()
    mac = inside("cat /sys/class/net/sealrun0/address").strip()
    assert place.network.routes == (
        Route(interface="eth0", destination=PEER, prefix=32, scope=253),
    )
    assert place.network.neighbours == (
        Neighbour(interface="eth0", ip=PEER, mac=bytes.fromhex(mac.replace(":", ""))),
    )


def test_everything_else_that_the_vm_sends_leaves_by_the_interface(
    place: Namespace, inside: Netns, outside: Netns
) -> None:
    """Also what it sends to an address beside the one that is let pass."""
    inside("ip address add 10.1.1.2/24 dev eth0")
    outside("ip address add 169.254.83.77/24 dev far")
    ((_, nic),) = place.look().plugged
    mac = bytes.fromhex(outside("cat /sys/class/net/far/address").strip().replace(":", ""))
    with program(inside) as client, program(outside) as far:
        far.bind(("169.254.83.77", 0))
        client.bind(("", far.getsockname()[1]))
        client.sendto(b"ping", ("10.1.1.2", 53))
        asked = read_udp(nic.tap_fd, b"ping")
        sent = answer(asked, b"for another", destination=ANOTHER)
        os.write(nic.tap_fd, VNET_HEADER + mac + sent[len(VNET_HEADER) + 6 :])
        assert far.recv(100) == b"for another"


def test_an_address_that_comes_later(place: Namespace, inside: Netns) -> None:
    inside("ip address add 10.1.1.2/24 dev eth0")
    ((_, nic),) = place.look().plugged
    inside("ip address add 10.1.2.2/24 dev eth0")
    place.look()
    place.look()
    with program(inside) as client:
        client.sendto(b"later", ("10.1.2.2", 53))
        read_udp(nic.tap_fd, b"later")


def test_the_addresses_are_the_namespaces_own_again(
    inside: Netns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "is_rootless", lambda: True)
    inside("ip address add 10.1.1.2/24 dev eth0")
    inside("ip address add fd01::2/64 dev eth0 nodad")
    state = "; ".join(
        ["ip address show eth0"]
        + [f"ip -{n} route show table local; ip -{n} rule; ip -{n} route" for n in (4, 6)]
    )
    before = inside(state)
    place = Namespace(os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC))
    place.look()
    assert inside(state) != before
    place.handed_over()  # nobody else has the tap: it is gone
    place.close()
    assert inside(state) == before
    with program(inside) as client:
        client.connect(("10.1.1.2", 53))
        client.send(b"x")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


def test_roots_own_engine_has_no_need_of_it(inside: Netns) -> None:
    inside("ip address add 10.1.1.2/24 dev eth0")
    one = Namespace(os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC))
    try:
        one.look()
        assert one.network.routes == ()
        assert "sealrun" not in inside("ip route show table local")
    finally:
        one.close()
