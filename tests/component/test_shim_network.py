"""The shim between a real network namespace and a guest that the test plays: what the VM is given, what
the guest is told, and what is left in the namespace. The VM's taps are kept open by a sleeping process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import netns
from fixtures.netns import Netns
from fixtures.shim import Shim, running, wait
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.messages import ConfigureNetwork
from sealrun_protocol.network import Network
from sealrun_runtime import leftovers, store
from sealrun_runtime.oci_config import Namespace
from simulators.guest import Guest

pytestmark = pytest.mark.root

MAC = "02:00:00:00:00:05"


@pytest.fixture
def ends() -> Iterator[tuple[Netns, Netns]]:
    with netns.pair() as both:
        both[0](
            f"ip link set eth0 down; ip link set eth0 address {MAC} up; ip address add 10.1.1.2/24 dev eth0"
        )
        yield both


@pytest.fixture
def shim(tmp_path: Path, inside: Netns) -> Iterator[Shim]:
    with running(tmp_path, namespaces=(Namespace(type="network", path=inside.path),)) as one:
        yield one


def describe(guest: Guest) -> Network:
    """Done to the next ConfigureNetwork; what it said."""
    message = guest.expect(ConfigureNetwork)
    guest.send(messages.Done(id=message.id))
    return message.network


def start(shim: Shim, guest: Guest) -> None:
    """From the boot to a running container."""
    request = shim.create()
    guest.boot()
    describe(guest)
    create = guest.expect(messages.CreateContainer)
    guest.send(messages.Done(id=create.id, image_digest="sha256:" + 64 * "a"))
    request.ok()
    starting = shim.start()
    guest.start()
    starting.ok()


def nics(shim: Shim) -> list[str]:
    """What the VM was given, one line each: those it was born with, +plugged in, -taken out."""
    path = shim.path / "nics"
    return path.read_text().splitlines() if path.exists() else []


def names(network: Network) -> list[str]:
    return [one.name for one in network.interfaces]


def test_a_vm_is_born_with_the_namespaces_interfaces(
    shim: Shim, guest: Guest, inside: Netns
) -> None:
    request = shim.create()
    guest.boot()
    (interface,) = describe(guest).interfaces
    assert (interface.name, interface.mac.hex(":"), interface.mtu) == ("eth0", MAC, 1500)
    assert interface.addresses[0].ip == bytes([10, 1, 1, 2])
    assert nics(shim) == [f"{MAC} 1500"]
    assert inside.links == {"lo", "eth0", "sealrun0"}
    guest.send(messages.Done(id=guest.expect(messages.CreateContainer).id))
    request.ok()
    assert shim.delete(force=True).ok() == ""
    shim.gone()
    assert inside.links == {"lo", "eth0"}
    assert not inside.redirected("eth0")


@pytest.mark.parametrize("end", ["vmm", "exit", "stand-in", "term"])
def test_nothing_stays_in_the_namespace(shim: Shim, guest: Guest, inside: Netns, end: str) -> None:
    start(shim, guest)
    if end == "vmm":
        os.kill(shim.vmm, 9)
    elif end == "exit":
        guest.exit("c1", 0)
    elif end == "term":
        shim.process.terminate()
    else:
        assert shim.stdio is not None
        shim.stdio.stand_in.kill()
    shim.gone()
    assert inside.links == {"lo", "eth0"}
    assert not inside.redirected("eth0")


def test_what_changed_until_the_start_is_there_when_the_program_runs(
    shim: Shim, guest: Guest, ends: tuple[Netns, Netns]
) -> None:
    inside, outside = ends
    request = shim.create()
    guest.boot()
    describe(guest)
    guest.send(messages.Done(id=guest.expect(messages.CreateContainer).id))
    request.ok()
    netns.connect(inside, "eth1", outside, "far1")
    inside("ip address add 10.2.0.2/24 dev eth1")
    starting = shim.start()
    network = describe(guest)
    assert names(network) == ["eth0", "eth1"]
    mac = network.interfaces[1].device.hex(":")
    assert nics(shim)[1:] == [f"+nic1 {mac} 1500"]
    guest.start()
    starting.ok()


def test_a_running_container_follows_its_networks(
    shim: Shim, guest: Guest, ends: tuple[Netns, Netns]
) -> None:
    """As `podman network connect` and `disconnect` change them."""
    inside, outside = ends
    start(shim, guest)
    netns.connect(inside, "eth1", outside, "far1")
    inside("ip address add 10.2.0.2/24 dev eth1; ip route add default via 10.2.0.1")
    network = describe(guest)
    while names(network) != ["eth0", "eth1"] or not network.routes:
        network = describe(guest)
    inside("ip link delete eth1")
    while names(network) != ["eth0"] or network.routes:
        network = describe(guest)
    wait(lambda: nics(shim)[-1] == "-nic1")
    assert guest.receive(0.5) is None, "nothing changed, nothing is said"
    inside("ip address add 10.1.1.9/24 dev eth0")
    assert len(describe(guest).interfaces[0].addresses) == 2
    assert len(nics(shim)) == 3


def test_what_a_killed_shim_leaves_is_undone_by_delete(
    shim: Shim, guest: Guest, inside: Netns
) -> None:
    start(shim, guest)
    shim.process.kill()
    shim.process.wait()
    wait(lambda: inside.links == {"lo", "eth0"})
    assert inside.redirected("eth0"), "nobody was left to undo it"
    leftovers.remove(shim.directory, patience=0)
    assert not inside.redirected("eth0")
    assert not shim.path.exists()


def test_delete_does_not_touch_what_another_sandbox_took_over(
    tmp_path: Path, shim: Shim, guest: Guest, inside: Netns
) -> None:
    start(shim, guest)
    shim.process.kill()
    shim.process.wait()
    wait(lambda: inside.links == {"lo", "eth0"})
    spaces = (Namespace(type="network", path=inside.path),)
    with running(tmp_path / "second", namespaces=spaces) as second, second.guest() as other:
        start(second, other)
        leftovers.remove(shim.directory, patience=0)
        assert inside.redirected("eth0")


def test_delete_finds_the_namespace_gone_or_another_one(tmp_path: Path, inside: Netns) -> None:
    directory = store.make_container(str(tmp_path), "c1")
    directory.write(store.NETWORK, b"2 4:1 /nowhere/at/all")
    leftovers.remove(directory, patience=0)
    directory = store.make_container(str(tmp_path), "c1")
    inside("tc qdisc add dev eth0 ingress")
    directory.write(store.NETWORK, f"2 4:1 {inside.path}".encode())
    leftovers.remove(directory, patience=0)
    assert inside.redirected("eth0")


def test_a_storm_of_changes_is_a_few_messages(shim: Shim, guest: Guest, inside: Netns) -> None:
    start(shim, guest)
    words = "for n in $(seq 10 60); do echo address add 10.1.1.$n/24 dev eth0; done"
    inside(f"{words} | ip -batch -")  # one process: it is a storm on a busy machine, too
    count = 0
    while len(describe(guest).interfaces[0].addresses) < 52:
        count += 1
    assert count < 15


def test_a_namespace_that_is_made_for_the_container(tmp_path: Path) -> None:
    """Engines fill it between create and start, as Buildah does. `inside` is the stand-in's own."""
    with (
        netns.empty() as inside,
        netns.empty() as outside,
        running(tmp_path, namespaces=(Namespace(type="network"),)) as shim,
        shim.guest() as guest,
    ):
        request = shim.create(inside=inside.path)
        guest.boot()
        create = guest.expect(messages.CreateContainer)
        guest.send(messages.Done(id=create.id))
        request.ok()
        assert nics(shim) == []
        netns.connect(inside, "eth0", outside, "far")
        starting = shim.start()
        (interface,) = describe(guest).interfaces
        assert nics(shim) == [f"+nic0 {interface.mac.hex(':')} 1500"]
        guest.start()
        starting.ok()
        netns.connect(inside, "eth1", outside, "far1")
        assert names(describe(guest)) == ["eth0", "eth1"]


def test_without_a_network_the_guest_hears_nothing_of_one(tmp_path: Path) -> None:
    with (
        netns.empty() as alone,
        running(tmp_path, namespaces=(Namespace(type="network"),)) as shim,
        shim.guest() as guest,
    ):
        request = shim.create(inside=alone.path)
        guest.boot()
        create = guest.receive()
        assert isinstance(create, messages.CreateContainer)
        guest.send(messages.Done(id=create.id))
        request.ok()
        starting = shim.start()
        start = guest.receive()
        assert isinstance(start, messages.StartContainer)
        guest.send(messages.Done(id=start.id))
        starting.ok()


def test_a_device_that_cannot_be_plugged_in_fails_the_start(
    shim: Shim, guest: Guest, ends: tuple[Netns, Netns]
) -> None:
    inside, outside = ends
    request = shim.create()
    guest.boot()
    describe(guest)
    guest.send(messages.Done(id=guest.expect(messages.CreateContainer).id))
    request.ok()
    netns.connect(inside, "eth1", outside, "far1", mtu=1234)
    error = shim.start().error()
    assert error.text == "cannot give the VM one more network device: nic1: it is too small"
    assert error.kind == "vmm-failed"
    assert not inside.redirected("eth1")
    assert shim.state()["status"] == "created"


def test_a_device_that_cannot_be_plugged_in_later_is_noted(
    shim: Shim, guest: Guest, ends: tuple[Netns, Netns]
) -> None:
    """Nobody asked the runtime, so nobody can be told; the container goes on."""
    inside, outside = ends
    start(shim, guest)
    netns.connect(inside, "eth1", outside, "far1", mtu=1234)
    text = "cannot follow a change of the network: cannot give the VM one more network device"
    wait(lambda: text in shim.log())
    assert not inside.redirected("eth1")
    assert shim.state()["status"] == "running"


def test_the_guests_refusal_ends_the_creation(shim: Shim, guest: Guest, inside: Netns) -> None:
    request = shim.create()
    guest.boot()
    message = guest.expect(ConfigureNetwork)
    failed = messages.Failed(
        id=message.id, phase=Phase.START, code=ErrorCode.NETWORK_FAILED, text="no such route"
    )
    guest.send(failed)
    error = request.error()
    assert error.text == "start: the guest could not set up its network: no such route"
    shim.gone()
    assert not inside.redirected("eth0")


def test_another_sandboxs_namespace_is_refused(tmp_path: Path, shim: Shim, inside: Netns) -> None:
    assert shim.vmm
    wait(lambda: "sealrun0" in inside.links)
    spaces = (Namespace(type="network", path=inside.path),)
    with running(tmp_path / "second", namespaces=spaces) as second:
        error = second.create().error()
        assert error.text == "the network namespace is another sandbox's already"
        assert "one pod" in error.remedy
        second.gone()
    assert inside.redirected("eth0")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/nowhere", "cannot open the network namespace /nowhere: No such file or directory"),
        (
            "/proc/1/ns/net",
            "a VM cannot share the network of another container or process (/proc/1/ns/net)",
        ),
        (
            "/proc/self/ns/net",
            "a VM cannot share the network of another container or process (/proc/self/ns/net)",
        ),
    ],
)
def test_namespaces_that_are_refused(tmp_path: Path, path: str, text: str) -> None:
    with running(tmp_path, namespaces=(Namespace(type="network", path=path),)) as shim:
        error = shim.create().error()
        assert error.text == text
        assert ("podman run --pod" in error.remedy) == path.startswith("/proc")
        shim.gone()


def test_the_hosts_own_network_is_refused_under_any_name(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.touch()
    netns.run("mount", "--bind", "/proc/self/ns/net", str(path))
    try:
        spaces = (Namespace(type="network", path=str(path)),)
        with running(tmp_path / "root", namespaces=spaces) as shim:
            error = shim.create().error()
            assert error.text == "a VM cannot have the host's own network"
            shim.gone()
    finally:
        netns.run("umount", str(path))


def test_a_namespace_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    spaces = (Namespace(type="network", path=str(path)),)
    with running(tmp_path / "root", namespaces=spaces) as shim:
        error = shim.create().error()
        assert error.text == "cannot enter the network namespace: Invalid argument"
        shim.gone()
