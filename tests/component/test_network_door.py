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
from fixtures.netns import Netns
from sealrun_protocol.network import Neighbour, Route
from sealrun_runtime import namespaces
from sealrun_runtime.network import namespace
from sealrun_runtime.shim.wires import Namespace

pytestmark = pytest.mark.root

VNET_HEADER = bytes(10)
IPV4, UDP = b"\x08\x00", 17
PEER = socket.inet_aton("169.254.83.1")
ANOTHER = socket.inet_aton("169.254.83.77")
SECONDS = 10.0


@pytest.fixture
def place(inside: Netns, monkeypatch: pytest.MonkeyPatch) -> Iterator[Namespace]:
    """A sandbox's hold on the namespace, which takes this test's root for one of a user namespace."""
    monkeypatch.setattr(namespaces, "is_rootless", lambda: True)
    one = Namespace(os.open(inside.path, os.O_RDONLY | os.O_CLOEXEC))
    yield one
    one.close()


def program(where: Netns, kind: socket.SocketKind = socket.SOCK_DGRAM) -> socket.socket:
    """A socket of a program in the namespace."""
    descriptor = os.open(where.path, os.O_RDONLY | os.O_CLOEXEC)
    made = namespace.inside(descriptor, lambda: socket.socket(socket.AF_INET, kind))
    os.close(descriptor)
    made.settimeout(SECONDS)
    return made


def read_udp(tap: int, text: bytes) -> bytes:
    """The IPv4 frame with this text; a kernel's own are passed over."""
    deadline = time.monotonic() + SECONDS
    while (left := deadline - time.monotonic()) > 0:
        if select.select([tap], [], [], left)[0]:
            found = os.read(tap, 65536)[len(VNET_HEADER) :]
            if found[12:14] == IPV4 and text in found:
                return found
    raise AssertionError(f"{text!r} did not arrive")


def answer(to: bytes, text: bytes, *, destination: bytes | None = None) -> bytes:
    """The frame that a UDP service sends back. destination: an IP address instead of the sender's."""
    ip, udp = to[14:34], to[34:42]
    source, target = ip[16:20], destination or ip[12:16]
    length = 8 + len(text)
    back = struct.pack("!HHHH", *struct.unpack("!HH", udp[:4])[::-1], length, 0)
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + length, 1, 0, 64, UDP, 0, source, target)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + header[12:]
    return VNET_HEADER + to[6:12] + to[:6] + IPV4 + header + back + text


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


def test_the_addresses_are_the_namespaces_own_again(place: Namespace, inside: Netns) -> None:
    inside("ip address add 10.1.1.2/24 dev eth0")
    before = inside("ip route show table local; ip rule; ip address show eth0")
    place.look()
    place.handed_over()  # nobody else has the tap: it is gone
    assert inside("ip route show table local; ip rule; ip address show eth0") == before
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
