"""Pods as a kubelet asks for them, through CRI: real containerd with its runc shim, and real CRI-O with its
conmon, where there is one. Networks are made by real CNI plugins. Only sealrun's hypervisor is simulated; runc
is the oracle.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import cri, cri_engines, oci, simulated
from fixtures.cri_engines import Engine
from simulators import simulated_guest

pytestmark = [pytest.mark.root, pytest.mark.containerd, pytest.mark.cni]

ANNOTATIONS = {"io.sealrun.image": simulated.IMAGE}
SERVICE = "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done"
SHELL = ("/bin/sh", "-c")


@pytest.fixture(scope="module", params=cri_engines.NAMES)
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    if missing := cri_engines.missing(request.param):
        pytest.skip(missing)
    program = simulated.install(tmp_path_factory.mktemp("prefix"))
    with tempfile.TemporaryDirectory(prefix="cri-") as name:
        with cri_engines.serve(request.param, Path(name), str(program)) as engine:
            yield engine


@pytest.fixture(params=["runc", "sealrun"])
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(engine: Engine, runtime: str) -> Iterator[Callable[..., cri.Pod]]:
    """make(**linux): a pod that does not exist yet. Nothing of it may be left."""
    client = engine.connect()
    yield lambda annotations=ANNOTATIONS, **linux: engine.pod(client, runtime, annotations, **linux)
    engine.clean(simulated_guest.remove_cgroups)
    client.close()


@pytest.fixture
def pod(make: Callable[..., cri.Pod]) -> cri.Pod:
    pod = make()
    pod.up()
    return pod


def shim(pod: cri.Pod) -> int:
    """The pid of sealrun's own, which names the pod in its command line."""
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if str(simulated.SHIM) in command and f"pod:{pod.id}:" in command:
                return int(pid)
    raise LookupError("no shim")


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_pod(pod: cri.Pod) -> None:
    (listed,) = (one for one in pod.cri("ListPodSandbox").items if one.id == pod.id)
    assert listed.state == cri.READY
    web = pod.run("web", *SHELL, SERVICE)
    web.expect("up\n")
    job = pod.run("job", *SHELL, "echo out; echo err >&2; hostname; exit 9")
    assert job.wait_for(cri.EXITED).exit_code == 9
    wait_until(lambda: len(job.lines()) == 3)
    assert sorted(job.lines()) == [("stderr", "err"), ("stdout", "out"), ("stdout", "pod")]
    assert web.run(*SHELL, "pwd; echo no >&2; exit 6") == (6, "/\n", "no\n")
    assert web.stream(*SHELL, "read line; echo $line; exit 4", stdin=b"streamed\n") == (
        *(4, "streamed\n"),
        "",
    )
    web.stop()
    assert web.wait_for(cri.EXITED).exit_code == 3
    web.expect("asked\n")
    job.remove()
    web.remove()
    assert pod.status.state == cri.READY
    pod.stop()
    assert pod.status.state == cri.NOT_READY


def test_a_member_is_restarted_beside_another(pod: cri.Pod) -> None:
    other = pod.run("other", *SHELL, SERVICE)
    first = pod.run("job", *SHELL, "exit 1")
    assert first.wait_for(cri.EXITED).exit_code == 1
    first.remove()
    second = pod.run("job", *SHELL, "echo again; exit 0")
    assert second.wait_for(cri.EXITED).exit_code == 0
    second.expect("again\n")
    assert other.status.state == cri.RUNNING


def test_attach(pod: cri.Pod) -> None:
    script = "while read line; do echo heard $line; done"
    container = pod.run("a", *SHELL, script, stdin=True)
    with container.attached() as connection:
        cri.say(connection, b"one\n")
        cri.said(connection, "heard one")
    with container.attached() as connection:
        cri.say(connection, b"two\n")
        cri.said(connection, "heard two")
    container.expect("heard one\nheard two\n")


def test_a_terminal(pod: cri.Pod) -> None:
    container = pod.run("a", *SHELL, "[ -t 0 ] && [ -t 1 ] && echo a terminal; exit 2", tty=True)
    assert container.wait_for(cri.EXITED).exit_code == 2
    container.expect("a terminal")
    other = pod.run("b", *SHELL, SERVICE)
    # Without stdin containerd loses what is said there, whatever the runtime.
    script = "read line; [ -t 1 ] && echo a terminal for $line; exit 5"
    code, said, _ = other.stream(*SHELL, script, stdin=b"you\n", tty=True)
    assert code == 5
    assert "a terminal for you\r\n" in said


def test_the_pod_s_network(make: Callable[..., cri.Pod], engine: Engine, runtime: str) -> None:
    pod = make(sysctls={"net.ipv4.ip_unprivileged_port_start": "81"})
    pod.up()
    address = pod.status.network.ip
    server = pod.run("web", *SHELL, "while :; do echo answer | busybox nc -l -p 80; done")
    client = pod.run("client", *SHELL, SERVICE)
    wait_until(lambda: answer(address) == b"answer\n")
    assert server.status.state == cri.RUNNING
    ask = "until busybox nc 127.0.0.1 80 </dev/null; do sleep 0.1; done"
    assert client.run(*SHELL, ask)[:2] == (0, "answer\n")
    wait_until(lambda: forwarded(engine, address) == b"answer\n")
    place = "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    # Without an infra container nobody tells the runtime: CRI-O sets it in the namespace that it makes.
    lost = engine.name == "crio-without-infra" and runtime == "sealrun"
    assert client.run("/bin/cat", place)[1] == ("1024\n" if lost else "81\n")


def answer(address: str) -> bytes:
    with contextlib.suppress(OSError):
        with socket.create_connection((address, 80), timeout=1) as connection:
            return connection.recv(64)
    return b""


def forwarded(engine: Engine, address: str) -> bytes:
    """What the pod's localhost answers on the host, to which engines connect for `kubectl port-forward`."""
    places = (*Path("/run/netns").glob("*"), *(engine.directory / "ns/netns").glob("*"))
    for place in places:
        inside = ["nsenter", f"--net={place}"]
        shown = subprocess.run([*inside, "ip", "-4", "addr"], capture_output=True, text=True)
        if f" {address}/" in shown.stdout:
            ask = [*inside, "busybox", "nc", "-w", "2", "127.0.0.1", "80"]
            return subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True).stdout
    raise LookupError("no namespace")


def test_processes_of_a_pod_that_shares_them(make: Callable[..., cri.Pod]) -> None:
    options = {**cri.OWN_PROCESSES, "pid": cri.POD}
    pod = make(security_context={"namespace_options": options})
    pod.up()
    pod.run("a", *SHELL, "exec sleep 4711")
    other = pod.run("b", *SHELL, SERVICE)
    wait_until(lambda: "sleep 4711" in other.run("/bin/busybox", "ps")[1])


def test_a_volume_and_the_environment(pod: cri.Pod, tmp_path: Path) -> None:
    """Without init-data the guest takes what the host shares."""
    (tmp_path / "token").write_text("secret\n")
    mounts = [{"container_path": "/volume", "host_path": str(tmp_path), "readonly": True}]
    envs = [{"key": "NAME", "value": "a value"}]
    script = "cat /volume/token; echo $NAME; pwd"
    job = pod.run("a", *SHELL, script, mounts=mounts, envs=envs, working_dir="/bin")
    assert job.wait_for(cri.EXITED).exit_code == 0
    job.expect("secret\na value\n/bin\n")


def test_statistics_and_new_limits(pod: cri.Pod, runtime: str) -> None:
    container = pod.run("a", *SHELL, SERVICE)
    container.expect("up\n")
    (stats,) = pod.cri("ListContainerStats", filter={"id": container.id}).stats
    assert stats.attributes.id == container.id
    if runtime == "runc" or simulated_guest.has_limits():
        wanted = {"cpu_period": 100_000, "cpu_quota": 50_000, "cpu_shares": 512}
        pod.cri("UpdateContainerResources", container_id=container.id, linux=wanted)
    assert container.status.state == cri.RUNNING
    if runtime == "sealrun":
        # The kubelet counts what is in the pod's own group.
        for pid in (shim(pod), *vmms(shim(pod))):
            groups = Path(f"/proc/{pid}/cgroup").read_text()
            assert pod.sandbox["linux"]["cgroup_parent"] in groups


def test_a_program_that_is_missing(pod: cri.Pod) -> None:
    with pytest.raises(cri.Refused, match=r"(?i)no such file or directory"):
        pod.run("a", "/no/such/program")
    good = pod.run("b", *SHELL, SERVICE)
    good.expect("up\n")
    code_or_error = rf"(?i)no such file|exit code|{re.escape('not found')}"
    with contextlib.suppress(cri.Refused):
        code, out, err = good.run("/no/such/program")
        assert code != 0 and re.search(code_or_error, out + err), (code, out, err)


def test_a_probe_that_takes_too_long(pod: cri.Pod) -> None:
    """The engine kills what it sees of it on the host; the program has to end, too."""
    container = pod.run("a", *SHELL, SERVICE)
    container.expect("up\n")
    with contextlib.suppress(cri.Refused):
        code, _, _ = container.run("/bin/sleep", "4712", seconds=2)
        assert code != 0
    wait_until(lambda: "sleep 4712" not in container.run("/bin/busybox", "ps")[1])
    assert container.status.state == cri.RUNNING


@pytest.mark.parametrize("order", ["members first", "the pod first", "the pod alone"])
def test_removal_in_any_order(pod: cri.Pod, order: str) -> None:
    members = [pod.run(name, *SHELL, SERVICE) for name in ("a", "b")]
    for member in members:
        member.expect("up\n")
    if order == "members first":
        for member in members:
            member.stop()
            member.remove()
    if order != "the pod alone":
        pod.stop()
    if order == "the pod first":
        for member in reversed(members):
            assert member.status.state == cri.EXITED
            member.remove()
    pod.remove()  # the fixture looks for what is left


# --- sealrun's own ends --------------------------------------------------------------------------


@pytest.mark.parametrize("runtime", ["sealrun"], indirect=True)
@pytest.mark.parametrize("victim", ["shim", "vmm"])
def test_the_sandbox_dies(pod: cri.Pod, engine: Engine, victim: str) -> None:
    members = [pod.run(name, *SHELL, SERVICE) for name in ("a", "b")]
    for member in members:
        member.expect("up\n")
    for pid in [shim(pod)] if victim == "shim" else vmms(shim(pod)):
        os.kill(pid, signal.SIGKILL)
    for member in members:
        assert member.wait_for(cri.EXITED).exit_code == 137
    if engine.name != "crio-without-infra":
        wait_until(lambda: pod.status.state == cri.NOT_READY)


def test_containerd_s_shim_dies(pod: cri.Pod, engine: Engine) -> None:
    """As with runc, everything of the pod ends with it, and the engine cleans up."""
    if not engine.is_containerd:
        pytest.skip("CRI-O has a conmon for each container instead")
    members = [pod.run(name, *SHELL, SERVICE) for name in ("a", "b")]
    for member in members:
        member.expect("up\n")
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            if command[0].endswith("containerd-shim-runc-v2") and pod.id in command:
                os.kill(int(pid), signal.SIGKILL)
    for member in members:
        assert member.wait_for(cri.EXITED).exit_code != 0
    wait_until(lambda: pod.status.state == cri.NOT_READY)


def vmms(parent: int) -> list[int]:
    """The simulated hypervisor below a shim."""
    found = []
    for pid in oci.descendants(parent):
        with contextlib.suppress(OSError):
            if b"cloud_hypervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    assert found
    return found


@pytest.mark.parametrize("runtime", ["sealrun"], indirect=True)
def test_the_guest_refuses_an_image(make: Callable[..., cri.Pod]) -> None:
    pod = make({"io.sealrun.image": "registry.test/test/fail:1"})
    pod.up()
    with pytest.raises(cri.Refused, match="not what it says"):
        pod.run("a", *SHELL, SERVICE)
