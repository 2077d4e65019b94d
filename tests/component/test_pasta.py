"""pasta(1), which rootless Podman 5 has for its network, in front of a VM: the real one, from Debian's
package passt. In place of the VM is the real agent in a network namespace, at a tap of its own, and
between the two taps somebody who carries frames. Whatever pasta does with connections from the host's
loopback (older ones hand them to the namespace's, newer ones to the interface's address), they have to
arrive in the VM. That Podman comes to the same was seen by hand: docs/networks.md."""

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest
from fixtures import netns
from fixtures.agent import agent
from fixtures.netns import Netns
from sealrun_protocol import messages
from sealrun_runtime import namespaces
from sealrun_runtime.network import namespace, tap
from sealrun_runtime.network.netlink import Netlink
from sealrun_runtime.shim.wires import Namespace

pytestmark = pytest.mark.root

PORT = 8080
SECONDS = 30.0
TRIES = 6
FRAME = 70_000  # larger than pasta's MTU

Result = TypeVar("Result")


@contextmanager
def pasta(outer: Netns, container: Netns, directory: Path) -> Iterator[None]:
    """One that is ready: as Podman runs it, but for its user."""
    record = directory / "pasta.pid"
    options = f"--config-net --no-map-gw --quiet --runas 0 --pid {record} --netns {container.path}"
    outer(f"pasta {options} --tcp-ports {PORT} --udp-ports none --tcp-ns none --udp-ns none")
    try:
        yield
    finally:
        os.kill(int(record.read_text()), 15)


def at(path: str, work: Callable[[], Result]) -> Result:
    """What it returns in the network namespace with this path."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespace.inside(descriptor, work)
    finally:
        os.close(descriptor)


@contextmanager
def carried(one: int, other: int) -> Iterator[None]:
    """What is sent into either tap comes out at the other."""
    end, stop = os.pipe()

    def carry() -> None:
        while end not in (ready := select.select([one, other, end], [], [])[0]):
            for source in ready:
                try:
                    os.write(other if source == one else one, os.read(source, FRAME))
                except OSError:  # a tap that is not up yet, or has no room: frames get lost
                    continue

    thread = threading.Thread(target=carry)
    thread.start()
    try:
        yield
    finally:
        os.close(stop)
        thread.join()
        os.close(end)


@contextmanager
def server(path: str, name: str) -> Iterator[None]:
    """In the network namespace with this path; says to each who connects who it is, and whom it sees."""
    with at(path, listen) as listening:

        def serve() -> None:
            while True:
                try:
                    connection, peer = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(f"{name} sees {peer[0]}".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def listen() -> socket.socket:
    return socket.create_server(("::", PORT), family=socket.AF_INET6, dualstack_ipv6=True)


def ask(path: str, address: str) -> str:
    """What a server says to a client in the network namespace with this path. Debian 12's pasta loses an
    answer now and then on a busy machine, so it is asked again."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            if said := ask_once(path, address):
                return said
    return ask_once(path, address)


def ask_once(path: str, address: str) -> str:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    client = at(path, lambda: socket.socket(family))
    with client:
        client.settimeout(SECONDS / TRIES)
        client.connect((address, PORT))
        return client.recv(100).decode()


@pytest.fixture
def outer() -> Iterator[tuple[Netns, Netns]]:
    """The host's namespace, as pasta sees it, and that of its neighbour on the network."""
    with netns.pair("ext0") as (inside, outside):
        for where, name, last in ((inside, "ext0", 2), (outside, "far", 1)):
            where(
                f"ip address add 192.0.2.{last}/24 dev {name};"
                f" ip address add 2001:db8::{last}/64 dev {name} nodad"
            )
        inside("ip route add default via 192.0.2.1; ip route add default via 2001:db8::1")
        yield inside, outside


def open_tap(mtu: int) -> int:
    with Netlink() as netlink:
        return tap.open_tap(netlink, mtu).descriptor


@contextmanager
def machine(container: Netns, directory: Path) -> Iterator[str]:
    """What stands for a VM that has the container's network; the path of its namespace."""
    place = Namespace(os.open(container.path, os.O_RDONLY | os.O_CLOEXEC))
    with closing(place), agent(directory) as vm:
        vm.configure()
        inside = f"/proc/{vm.agent_pid}/ns/net"
        ((_, nic),) = place.look().plugged
        device = at(inside, lambda: open_tap(nic.mtu))
        try:
            enter = ("nsenter", f"--net={inside}")
            netns.run(*enter, "ip", "link", "set", "lo", "up")
            netns.run(*enter, "ip", "link", "set", "sealrun0", "address", nic.mac)
            with carried(nic.tap_fd, device):
                answer = vm.answer(vm.ask(messages.ConfigureNetwork, network=place.network))
                assert isinstance(answer, messages.Done), answer
                yield inside
        finally:
            os.close(device)


def test_published_ports(
    outer: tuple[Netns, Netns], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the host's loopback; and out. Not from another machine: Debian 12's pasta stalls there where an
    answer takes a moment, which a VM's does; newer ones do not."""
    monkeypatch.setattr(namespaces, "is_rootless", lambda: True)
    host, neighbour = outer
    with (
        netns.empty() as container,
        pasta(host, container, tmp_path),
        machine(container, tmp_path) as vm,
        server(vm, "the VM"),
        server(neighbour.path, "the neighbour"),
    ):
        settle(vm)
        assert ask(host.path, "127.0.0.1") == "the VM sees ::ffff:169.254.83.1"
        assert ask(host.path, "::1") == "the VM sees fd5e:a152:9c0d:83::1"
        assert ask(vm, "192.0.2.1") == "the neighbour sees ::ffff:192.0.2.2"
        assert ask(vm, "2001:db8::1") == "the neighbour sees 2001:db8::2"


def settle(path: str) -> None:
    """Until the VM's own service is there for itself, at an address that has been found to be alone."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            ask_once(path, "2001:db8::2")
            return
        except OSError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
