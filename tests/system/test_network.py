"""Podman's networks, by netavark and aardvark-dns, in real VMs; runc runs the same cases.

All of it happens in a network namespace of the test's own, which is "the host" here: bridges, firewall
rules and published ports of the machine are not touched. Differences to runc that are on purpose stand in
docs/networks.md.
"""

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import netns, traces
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import workload as workloads
from sealrun_runtime import namespaces

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

ONE, TWO, APART = "sealrun-test-one", "sealrun-test-two", "sealrun-test-apart"
LAN = "sealrun-test-lan"
NETWORKS = {
    ONE: ("--ipv6", "--subnet", "10.147.1.0/24", "--subnet", "fd00:147:1::/64"),
    TWO: ("--subnet", "10.147.2.0/24", "--opt", "mtu=1400"),
    APART: ("--subnet", "10.147.3.0/24", "--internal"),
}
MINE = {
    ONE: "ip=10.147.1.77,ip6=fd00:147:1::77,mac=02:00:00:00:01:77",
    TWO: "ip=10.147.2.77,mac=02:00:00:00:02:77",
}
ORACLE = "localhost/sealrun-test-network:latest"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
WAIT = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
SERVE = "busybox mkdir /www; echo served >/www/index.html; exec busybox httpd -f -p 80 -h /www"


@pytest.fixture(scope="module", autouse=True)
def host() -> Iterator[None]:
    """A network namespace with a loopback, which this process is in as long as the module runs."""
    before = os.open("/proc/self/ns/net", os.O_RDONLY)
    namespaces.unshare(namespaces.CLONE["network"])
    try:
        netns.run("ip", "link", "set", "lo", "up")
        yield
    finally:
        namespaces.setns(before, namespaces.CLONE["network"])
        os.close(before)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A registry of this "host"."""
    with registries.serve(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def annotations(
    tmp_path_factory: pytest.TempPathFactory, registry: registries.Registry
) -> workloads.Annotations:
    directory = tmp_path_factory.mktemp("workload")
    published = workloads.publish(directory, registry, registries.key_pair(directory))
    return workloads.open_annotations(published.plain, registry.address)


@pytest.fixture(scope="module")
def networks(host: None) -> Iterator[None]:
    for name, options in NETWORKS.items():
        netns.run("podman", "network", "create", *options, name)
    yield
    for name in NETWORKS:
        netns.run("podman", "network", "rm", "--force", name)
    left = netns.run("ip", "-o", "link").splitlines()
    assert len(left) == 1, f"only the loopback was there before: {left}"


@pytest.fixture(scope="module")
def oracle_image() -> Iterator[None]:
    command = ["podman", "import", "--quiet", "-", ORACLE]
    subprocess.run(command, input=workloads.busybox_tar(), check=True, timeout=60)
    yield
    podmans.remove_image(ORACLE)


@pytest.fixture
def podman(tmp_path: Path, stub_image: None, networks: None) -> Iterator[podmans.Podman]:
    driver = podmans.Podman(tmp_path)
    yield driver
    driver.clean()
    assert netns.run("ip", "netns", "list") == "", "no network namespace is left"


# Sorted and without the host's name, since Podman 4 goes through a container's networks in no order at
# all. Left out: what the kernel numbers by itself, link-local addresses, and how a device is called below.
LOOK = r"""
alias awk="busybox awk" sort="busybox sort" grep="busybox grep" sed="busybox sed" ip="busybox ip"
ip -o link | awk '{sub("@.*", "", $2); sub(":$", "", $2); print $2, $5}' | sort
ip -o link | grep -o 'link/ether [0-9a-f:]*' | sort
ip -o address | grep -v 'scope link' | sed 's/^[0-9]*: //; s/ valid_lft.*//' | sort
ip route | sort
ip -6 route | grep -v '^fe80\|^multicast' | sort
cd /proc/sys/net
for name in ipv[46]/conf/eth[01]/*; do
    case $name in
    */rp_filter | */arp_notify | */autoconf | */accept_dad | */accept_ra | */disable_ipv6)
        echo $name $(cat $name) ;;
    esac
done
echo $(cat ipv4/ping_group_range ipv4/ip_unprivileged_port_start)
cat /etc/resolv.conf | sort
grep -v host.containers.internal /etc/hosts | sed "s/$(hostname).*//" | sort
"""


def test_addresses_routes_and_names_are_those_that_runc_has(
    podman: podmans.Podman, annotations: workloads.Annotations, oracle_image: None
) -> None:
    options = (
        *("--network", f"{ONE}:interface_name=eth0,{MINE[ONE]}"),
        *("--network", f"{TWO}:interface_name=eth1,{MINE[TWO]}"),
        *("--add-host", "elsewhere:192.0.2.7", "--dns-search", "example.test", *LIMITS),
        *("--sysctl", "net.ipv4.ip_unprivileged_port_start=80"),
    )
    said = {}
    for runtime, image in (("runc", ORACLE), ("sealrun", podmans.STUB)):
        driver = podmans.Podman(podman.directory, runtime)
        podman.cidfiles = driver.cidfiles = []
        given = annotations if runtime == "sealrun" else {}
        ended = driver.run(["/bin/sh", "-c", LOOK], given, *options, image=image)
        assert ended.status == 0, ended.stderr
        said[runtime] = ended.stdout.decode()
    assert "10.147.1.77/24" in said["runc"]
    assert said["sealrun"] == said["runc"]


def _fetch(podman: podmans.Podman, client: str, url: str, seconds: int = 10) -> str:
    """What a container gets from a URL; empty where it gets nothing."""
    # Its own option for it makes this statically linked one crash where it looks up a name.
    command = ("busybox", "timeout", str(seconds), "busybox", "wget", "-q", "-O", "-", url)
    ended = podman("exec", client, *command)
    print(f"{url}: {ended}")
    return ended.stdout.decode().strip()


def _wait_for(podman: podmans.Podman, client: str, script: str, text: str) -> None:
    deadline = time.monotonic() + 60
    while text not in (said := podman("exec", client, "sh", "-c", script).stdout.decode()):
        assert time.monotonic() < deadline, f"{text} is not in: {said}"
        time.sleep(0.5)


def _ask(address: tuple[str, int]) -> bytes:
    """What a web server answers to this host."""
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def test_containers_meet_as_their_networks_say(
    podman: podmans.Podman, annotations: workloads.Annotations
) -> None:
    """Names, ports, IPv6, isolation, and a running container that gets another network."""
    options = ("--network", f"{ONE}:alias=www", "--publish", "127.0.0.1:8147:80")
    web = podman.start(["sh", "-c", SERVE], annotations, "--name", "sealrun-test-web", *options)
    apart = podman.start(["sh", "-c", SERVE], annotations, "--network", APART)
    client = podman.start(["sh", "-c", SERVE], annotations, "--network", ONE)
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.GlobalIPv6Address}}{{end}}"
    four, six = podman.inspect(web, template).split()
    for name in ("sealrun-test-web", "www", four, f"[{six}]"):
        assert _fetch(podman, client, f"http://{name}/") == "served", name
    assert b"served" in _ask(("127.0.0.1", 8147))
    assert b"served" in _ask((four, 80))

    unreachable = podman.inspect(apart, template).strip()
    assert b"served" in _ask((unreachable, 80)), "it serves its own network"
    assert _fetch(podman, client, f"http://{unreachable}/", 3) == ""
    assert _fetch(podman, apart, f"http://{four}/", 3) == ""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        for name in ("127.0.0.1", "10.147.1.1", "host.containers.internal"):
            assert _fetch(podman, client, f"http://{name}:{port}/", 3) == ""
        with pytest.raises(BlockingIOError):
            listener.accept()

    assert podman("network", "connect", TWO, client).status == 0
    look = "busybox ip link show eth1; busybox ip route; busybox ip address show eth1"
    _wait_for(podman, client, look, "10.147.2.")
    said = podman("exec", client, "sh", "-c", look).stdout.decode()
    assert "mtu 1400" in said
    assert "default via 10.147.2.1 dev eth1" in said
    assert b"served" in _ask((re.findall(r"inet (10\.147\.2\.[0-9]+)/24", said)[0], 80))
    _wait_for(podman, client, "cat /etc/resolv.conf", "nameserver 10.147.2.1")
    _wait_for(podman, client, "cat /etc/hosts", "10.147.2.")
    assert podman("network", "disconnect", TWO, client).status == 0
    _wait_for(podman, client, "busybox ip link show eth1 2>&1", "can't find device")
    look = "case $(cat /etc/resolv.conf) in *10.147.2.*) ;; *) echo gone ;; esac"
    _wait_for(podman, client, look, "gone")
    assert _fetch(podman, client, "http://www/") == "served", "the first network is untouched"


def test_a_guest_that_lies_about_itself_is_a_container_that_does(
    podman: podmans.Podman, annotations: workloads.Annotations, oracle_image: None
) -> None:
    """Another's IP address, told to everybody by ARP, and another's MAC address: a bridge without rules of
    its own believes both, of a VM no more than of a container of runc's with the same rights."""
    rights = ("--network", ONE, "--cap-add", "NET_RAW,NET_ADMIN", *LIMITS)
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{.MacAddress}}{{end}}"
    told = {}
    for runtime, image in (("runc", ORACLE), ("sealrun", podmans.STUB)):
        oracle = podmans.Podman(podman.directory, "runc")
        driver = podmans.Podman(podman.directory, runtime)
        oracle.cidfiles = driver.cidfiles = podman.cidfiles
        victim = oracle.start(["sh", "-c", SERVE], {}, "--network", ONE, *LIMITS, image=ORACLE)
        given = annotations if runtime == "sealrun" else {}
        liar = driver.start(["sh", "-c", WAIT], given, *rights, image=image)
        ip, mac = driver.inspect(victim, template).split()
        own = driver.inspect(liar, template).split()[1]
        assert b"served" in _ask((ip, 80))
        script = f"busybox ip address add {ip}/32 dev eth0; busybox arping -U -c 3 -s {ip} {ip}; echo done"
        _wait_for(driver, liar, script, "done")
        believed = netns.run("ip", "neighbour", "show", ip).split()
        told[runtime] = [believed[believed.index("lladdr") + 1] == own]
        script = f"busybox ip link set eth0 address {mac} && busybox arping -c 1 -I eth0 10.147.1.1; echo done"
        _wait_for(driver, liar, script, "done")
        ports = [line for line in netns.run("bridge", "fdb").splitlines() if line.startswith(mac)]
        told[runtime].append(len(ports))
        for one in (liar, victim):
            driver("rm", "--force", "--time", "0", one)
    assert told["sealrun"] == told["runc"]
    assert told["runc"][0], "the lie was told"


def test_a_container_on_the_lan(
    podman: podmans.Podman, annotations: workloads.Annotations, oracle_image: None
) -> None:
    """An interface on top of one of the host's: its neighbours on the wire reach it, as under runc."""
    said = {}
    with netns.empty() as lan:
        netns.run(*f"ip link add parent type veth peer name far netns {lan.name}".split())
        netns.run(*"ip link set parent up".split())
        lan("ip link set far up; ip address add 10.147.4.1/24 dev far")
        options = ("--driver", "macvlan", "--opt", "parent=parent", "--subnet", "10.147.4.0/24")
        netns.run("podman", "network", "create", *options, LAN)
        try:
            for runtime, image in (("runc", ORACLE), ("sealrun", podmans.STUB)):
                driver = podmans.Podman(podman.directory, runtime)
                podman.cidfiles = driver.cidfiles
                given = annotations if runtime == "sealrun" else {}
                network = ("--network", f"{LAN}:ip=10.147.4.77", *LIMITS)
                container = driver.start(["sh", "-c", SERVE], given, *network, image=image)
                told = driver("exec", container, "sh", "-c", "busybox ip route; busybox id")
                assert told.status == 0, told.stderr
                said[runtime] = told.stdout
                # The address has another owner now, and netavark announces none of a macvlan's.
                lan("ip neighbour flush all")
                ask = "busybox wget -q -O - http://10.147.4.77/"
                assert lan(f"for n in 1 2 3 4 5; do {ask} && exit; sleep 2; done") == "served\n"
                driver("rm", "--force", "--time", "0", container)
        finally:
            podman.clean()
            netns.run("podman", "network", "rm", "--force", LAN)
            netns.run(*"ip link delete parent".split())
    assert said["sealrun"] == said["runc"]


@pytest.mark.parametrize("victim", ["vmm", "shim"])
def test_nothing_is_left_in_the_namespace_after_a_kill(
    podman: podmans.Podman, annotations: workloads.Annotations, victim: str
) -> None:
    """A namespace that somebody else made, and keeps."""
    with netns.pair() as (inside, _):
        inside("ip address add 10.147.9.2/24 dev eth0")
        options = ("--network", f"ns:{inside.path}")
        container = podman.start(["sh", "-c", WAIT], annotations, *options)
        assert inside.redirected("eth0")
        name = "sealrun-shim" if victim == "shim" else "qemu-system"
        (pid,) = traces.processes(container, name)
        os.kill(pid, signal.SIGKILL)
        assert podman("wait", container).stdout.decode().strip() == "137"
        podman("rm", "--force", "--time", "0", container)
        traces.wait_until_gone(container, podmans.STATE_ROOT)
        assert inside.links == {"lo", "eth0"}
        assert not inside.redirected("eth0")


def test_the_hosts_network_is_refused(
    podman: podmans.Podman, annotations: workloads.Annotations
) -> None:
    ended = podman.run(["true"], annotations, "--network", "host")
    assert ended.status == 126
    words = "a VM cannot have the host's own network; give the container a network of its own"
    assert words in ended.error


def test_the_network_of_a_container_that_is_no_vm_is_refused(
    podman: podmans.Podman, annotations: workloads.Annotations, oracle_image: None
) -> None:
    """Its own stack has the interface; a VM would take the packets away."""
    runc = podmans.Podman(podman.directory, "runc")
    podman.cidfiles = runc.cidfiles
    other = runc.start(["sh", "-c", SERVE], {}, "--network", ONE, *LIMITS, image=ORACLE)
    ended = podman.run(["true"], annotations, "--network", f"container:{other}")
    assert ended.status == 126
    assert "cannot share the network of another container or process" in ended.error
    assert "put both into one pod" in ended.error
    template = "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"
    assert b"served" in _ask((runc.inspect(other, template), 80))
