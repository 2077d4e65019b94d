"""Many sandboxes, one after the other and at once; many containers in one; much through one of them.
Nothing may grow, and nothing may be kept in memory."""

import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from component.faults.conftest import Host, wait_until
from fixtures import oci, pods, simulated
from simulators import namespaces

pytestmark = pytest.mark.root

LIVES = 200
LANES = 4
AT_ONCE = 16
COMINGS = 24  # of containers into one pod
WARM_UP = 8  # until caches are filled
GROWN_KIB = 3 * 1024  # that a process may have more after COMINGS containers: 0.2 MiB for each
GIBIBYTE = 1 << 30
FLOW_KIB = (
    96 * 1024
)  # that shim and agent may have at most while a GiB flows; idle ones have 35 MiB
ANNOTATIONS = {"io.sealrun.image": simulated.IMAGE, "test.simulator": "unjudged"}


def figures(host: Host) -> dict[str, int]:
    """What 200 sandboxes could leave a little of. Tests beside this one have some of it, too."""
    host.remains.processes()  # reaps
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return {
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(host.remains.processes()),
        "files": len(host.remains.files()),  # and control groups
        "mounts": len([line for line in mounts if str(host.tmp) in line]),
    }


def live(host: Host, lane: int, count: int) -> None:
    """`count` containers, one after the other, each with a whole life."""
    runtime = oci.Runtime("sealrun", host.runtime.binary, host.runtime.root)
    container = f"{host.id}-{lane}"
    linux = {"cgroupsPath": f"/{host.id}-{lane}"}
    directory = host.tmp / f"lane-{lane}-{count}"
    bundle = simulated.bundle(directory, "sleep 1000", ANNOTATIONS, linux=linux)
    for _ in range(count):
        created = runtime.create(bundle, container)
        assert created.ok, created.stderr
        for verb in (("start",), ("delete", "--force")):
            done = runtime(*verb, container)
            assert (done.status, done.stderr) == (0, ""), done


def test_two_hundred_lives(host: Host) -> None:
    with ThreadPoolExecutor(LANES) as lanes:
        list(lanes.map(live, [host] * LANES, range(LANES), [1] * LANES))
        host.remains.wait_until_none()
        before = figures(host)
        list(lanes.map(live, [host] * LANES, range(LANES), [LIVES // LANES] * LANES))
    host.remains.wait_until_none()
    assert figures(host) == before
    assert before["processes"] == before["files"] == before["mounts"] == 0


def test_sixteen_at_once(host: Host) -> None:
    names = [f"{host.id}-{number}" for number in range(AT_ONCE)]

    def begin(name: str) -> None:
        bundle = simulated.bundle(host.tmp / name, "sleep 1000", ANNOTATIONS)
        created = host.runtime.create(bundle, name)
        assert created.ok, created.stderr
        started = host.runtime("start", name)
        assert started.ok, started.stderr

    with ThreadPoolExecutor(AT_ONCE) as callers:
        list(callers.map(begin, names))
        states = [host.runtime.state(name) for name in names]
        assert [state and state["status"] for state in states] == ["running"] * AT_ONCE
        deleted = callers.map(lambda name: host.runtime("delete", "--force", name), names)
        assert [(done.status, done.stderr) for done in deleted] == [(0, "")] * AT_ONCE
    host.remains.wait_until_none()


# --- what stays while containers come and go ------------------------------------------------------


class Staying:
    """Shim and agent of a sandbox, and what there is in its VM."""

    def __init__(self, directory: Path) -> None:
        sandbox = simulated.Sandbox(directory)
        self._directory = directory
        self.pids = {role: sandbox.pid(role) for role in ("shim", "agent")}

    def counts(self) -> dict[str, int]:
        """Of descriptors, threads, mounts, files and control groups."""
        found = {"state": len(os.listdir(self._directory))}
        for role, pid in self.pids.items():
            found[f"{role} descriptors"] = len(os.listdir(f"/proc/{pid}/fd"))
            found[f"{role} threads"] = len(os.listdir(f"/proc/{pid}/task"))
        agent = Path(f"/proc/{self.pids['agent']}")
        found["mounts"] = len((agent / "mountinfo").read_text().splitlines())
        files = [name for _, _, names in os.walk(agent / "root/run/sealrun") for name in names]
        found["files"] = len(files)
        own = (agent / "cgroup").read_text().rpartition("0::")[2].strip()
        group = (namespaces.cgroups() / own.lstrip("/")).parent
        found["groups"] = sum(1 for _ in os.walk(group))
        return found

    def memory(self) -> dict[str, int]:
        """KiB that are resident, by role."""
        return {role: resident_kib(pid) for role, pid in self.pids.items()}


@pytest.fixture
def pod(host: Host) -> Iterator[pods.Pod]:
    """One with a container that stays."""
    runtime = oci.Runtime("sealrun", host.runtime.binary, host.runtime.root, ANNOTATIONS)
    made = pods.Pod(runtime, pods.PODMAN, host.tmp, host.tmp)
    made.up()
    made.run("stays", "sleep 1000")
    yield made
    runtime.clean()


def come_and_go(pod: pods.Pod, number: int) -> None:
    """One container in the pod: a word of output, an exec in it and in its neighbour, and its end."""
    name = f"c{number}"
    pod.run(name, "echo up; sleep 1000")
    for container in (name, "stays"):
        done = pod.runtime("exec", container, "echo", "in")
        assert (done.status, done.stdout) == (0, b"in\n"), done.stderr
    deleted = pod.runtime("delete", "--force", name)
    assert (deleted.status, deleted.stderr) == (0, "")


def test_what_stays_does_not_grow(host: Host, pod: pods.Pod) -> None:
    (place,) = pod.places()
    staying = Staying(host.runtime.root / place)
    for number in range(WARM_UP):
        come_and_go(pod, number)
    before, memory = staying.counts(), staying.memory()
    for number in range(WARM_UP, COMINGS):
        come_and_go(pod, number)
    # Something that was about to go, in `before`, is no more than one or two: less than a leak of each.
    wait_until(
        lambda: all(count <= before[name] for name, count in staying.counts().items()),
        f"{staying.counts()} after {before}",
    )
    grown = {role: size - memory[role] for role, size in staying.memory().items()}
    assert all(kib < GROWN_KIB for kib in grown.values()), grown


# --- much output ----------------------------------------------------------------------------------


def test_a_gibibyte_of_output_arrives_whole_and_is_nowhere_kept(host: Host) -> None:
    """The reader takes its time in the beginning: what nobody reads waits in the container."""
    bundle = host.bundle(f"head -c {GIBIBYTE} /dev/zero")
    command = [host.runtime.binary, "--root", str(host.runtime.root), "run"]
    command += ["--bundle", str(bundle), host.id]
    null = subprocess.DEVNULL
    peaks = dict.fromkeys(("shim", "agent"), 0)
    with subprocess.Popen(command, stdin=null, stdout=subprocess.PIPE, stderr=null) as process:
        assert process.stdout is not None
        received = len(os.read(process.stdout.fileno(), 1))
        pids = {role: host.sandbox.pid(role) for role in peaks}
        over = threading.Event()

        def watch() -> None:
            while not over.wait(0.05):
                for role, pid in pids.items():
                    peaks[role] = max(peaks[role], resident_kib(pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        time.sleep(1)
        while part := os.read(process.stdout.fileno(), 1 << 20):
            received += len(part)
        over.set()
        watcher.join()
        assert process.wait(60) == 0
    assert received == GIBIBYTE
    assert all(0 < peak < FLOW_KIB for peak in peaks.values()), peaks
    host.remains.wait_until_none()


def resident_kib(pid: int) -> int:
    """0 where the process has ended."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0
