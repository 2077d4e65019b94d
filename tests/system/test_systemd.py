"""Control groups on a host with systemd and version 2: scopes and slices, of root and of a user, what is in
them, what they are limited to, and that none is left. runc is the oracle.

Where this host has no systemd, one test boots a machine that QEMU emulates with this host's own files and
runs this file there. The VMs are simulated: nothing else is.
"""

import grp
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import oci, rootless, scopes, simulated, traces
from fixtures import podman as podmans
from fixtures.scopes import Systemd, limits, pids
from fixtures.systemd_machine import SystemdMachine
from sealrun_runtime.host_limits import MEMORY_OVERHEAD, TASKS_OVERHEAD
from simulators import simulated_guest

ROOT = Path(__file__).parents[2]
CACHE = "/var/cache/sealrun/guest-image"  # install.sh filled it
OUTER_SECONDS = 600
MIB = 1 << 20
VM_MEMORY = 512 * MIB
ELSEWHERE = "no systemd with control groups of version 2 here: they run in a machine with it"
HAS_SYSTEMD = Path("/run/systemd/system").is_dir() and (scopes.MOUNT / "cgroup.procs").exists()
ANNOTATIONS = {"io.sealrun.image": simulated.IMAGE}
LIMITED = (
    *("--memory", "64m", "--cpus", "0.5", "--cpu-shares", "512", "--pids-limit", "55"),
    *("--cpuset-cpus", "0", "--annotation", "org.systemd.property.TimeoutStopSec=7"),
)
RESOURCES = {
    "memory": {"limit": 64 * MIB},
    "cpu": {"quota": 50_000, "period": 100_000, "shares": 512, "cpus": "0"},
    "pids": {"limit": 55},
}
"""The same."""
SAME = (
    "Slice", "Delegate", "DefaultDependencies", "MemoryAccounting", "CPUAccounting", "IOAccounting",
    "TasksAccounting", "Transient", "CPUWeight", "AllowedCPUs", "TimeoutStopUSec",
)  # fmt: skip
"""Of a scope: as runc has it."""

pytestmark = [pytest.mark.podman, pytest.mark.root]


@pytest.fixture(autouse=True)
def place(request: pytest.FixtureRequest) -> None:
    """Most of these tests need systemd, and one is for hosts without."""
    outer = request.function is test_in_a_machine_with_systemd
    if outer and HAS_SYSTEMD:
        pytest.skip("this host has systemd: the tests run on it")
    if not outer and not HAS_SYSTEMD:
        pytest.skip(
            "no systemd with control groups of version 2 here: they run in a machine with it"
        )


def test_in_a_machine_with_systemd(tmp_path: Path) -> None:
    options = "-v -p no:cacheprovider --color=no --basetemp=/run/pytest --durations=0"
    command = f"{sys.executable} -I -m pytest {options} {__file__}"
    machine = SystemdMachine(tmp_path, CACHE)
    console = machine.run(command, ROOT, os.environ["PATH"], OUTER_SECONDS)
    assert "status: 0" in console.splitlines()
    assert " passed" in console


# --- with systemd --------------------------------------------------------------------------------

systemd = Systemd()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = f"[vm]\nmemory = {VM_MEMORY // MIB}\n"
    return simulated.install(tmp_path_factory.mktemp("prefix"), 60, settings)


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oci.busybox_tree(tmp_path_factory.mktemp("rootfs"))


@pytest.fixture
def runtime(program: Path, tmp_path: Path) -> Iterator[oci.Runtime]:
    runtime = oci.Runtime("sealrun", str(program), tmp_path / "root", dict(ANNOTATIONS))
    yield runtime
    deleted = runtime("delete", "--force", "c1")
    assert deleted.ok, deleted.stderr
    assert os.listdir(runtime.root) == []


@pytest.fixture
def podman(program: Path, tmp_path: Path) -> Iterator[podmans.Podman]:
    driver = podmans.Podman(tmp_path, str(program), state_root=Path("/run/sealrun"))
    yield driver
    clean(driver, systemd)


def clean(driver: podmans.Podman, manager: Systemd) -> None:
    """Remove all containers; nothing is left of them."""
    for container in driver.ids():
        driver("rm", "--force", "--ignore", "--time", "0", container)
    for group in sorted(scopes.groups(simulated_guest.GROUP), reverse=True):  # a VM's own
        for path in sorted(group.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        group.rmdir()
    for container in driver.ids():
        traces.wait_until_gone(container, driver.state_root)
    scopes.wait(lambda: not manager.units("libpod-"), "a scope is left")
    scopes.wait(lambda: not scopes.groups("libpod-"), "a control group is left")


def run(driver: podmans.Podman, rootfs: Path, *options: str, script: str = "sleep 1000") -> str:
    """The container's id."""
    words = driver.arguments(
        "run", ["/bin/sh", "-c", script], ANNOTATIONS, ["--detach", *options], str(rootfs)
    )
    words.insert(words.index(str(rootfs)), "--rootfs")
    ended = driver(*words)
    assert ended.status == 0, ended.stderr
    return ended.stdout.decode().strip()


def sandbox(container: str, state_root: Path = Path("/run/sealrun")) -> simulated.Sandbox:
    return simulated.Sandbox(state_root / container)


def everybody(container: str, state_root: Path = Path("/run/sealrun")) -> set[int]:
    """The processes that are the container's on the host."""
    here = sandbox(container, state_root)
    return {here.pid(role) for role in ("shim", "vmm", "stand-in")}


def test_a_scope_is_as_runcs(podman: podmans.Podman, rootfs: Path, tmp_path: Path) -> None:
    """What is limited to more is what the VM costs itself."""
    oracle = oci.oracle("runc", tmp_path)
    made = bundle(tmp_path, rootfs, "machine.slice:runc:c1", resources=RESOURCES)
    assert create(oracle, made, "--systemd-cgroup").ok
    expected = systemd.properties("runc-c1.scope")
    oracle.clean()
    container = run(podman, rootfs, *LIMITED)
    scope = f"libpod-{container}.scope"
    found = systemd.properties(scope)
    assert {name: found[name] for name in SAME} == {name: expected[name] for name in SAME}
    assert found["TimeoutStopUSec"] == "7s"
    memory = int(expected["MemoryMax"]) + VM_MEMORY + MEMORY_OVERHEAD
    assert int(found["MemoryMax"]) == memory
    assert int(found["TasksMax"]) == int(expected["TasksMax"]) + TASKS_OVERHEAD

    directory = systemd.directory(scope)
    assert limits(directory) == {
        "memory.max": str(memory),
        "cpu.max": "150000 100000",
        "cpu.weight": "20",
        "pids.max": str(55 + TASKS_OVERHEAD),
        "cpuset.cpus": "0",
    }
    assert everybody(container) <= pids(directory)
    stats = podman("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", container)
    assert stats.status == 0, stats.stderr
    assert not stats.stdout.startswith(b"0B"), stats.stdout
    assert str(sandbox(container).pid("vmm")) in systemd("status", scope)

    script = "cat /proc/self/cgroup >/dev/null; sleep 1000"
    assert podman("exec", "--detach", container, "/bin/sh", "-c", script).status == 0
    scopes.wait(lambda: len(pids(directory)) > len(everybody(container)), "no stand-in of the exec")
    updated = podman("update", "--memory", "128m", "--cpus", "1", container)
    assert updated.status == 0, updated.stderr
    assert limits(directory)["memory.max"] == str(memory + 64 * MIB)
    assert limits(directory)["cpu.max"] == "200000 100000"
    assert systemd.properties(scope)["MemoryMax"] == str(memory + 64 * MIB)

    first = everybody(container)
    assert podman("restart", "--time", "0", container).status == 0
    assert everybody(container).isdisjoint(first)
    assert everybody(container) <= pids(systemd.directory(scope))


def test_a_pods_vm_is_in_the_infra_containers_scope(podman: podmans.Podman, rootfs: Path) -> None:
    made = podman("pod", "create", "--network", "none", "--share", "ipc,net,uts", "--name", "pod1")
    assert made.status == 0, made.stderr
    pod = made.stdout.decode().strip()
    try:
        member = run(podman, rootfs, "--pod", "pod1")
        infra = (
            podman("pod", "inspect", "--format", "{{.InfraContainerID}}", "pod1")
            .stdout.decode()
            .strip()
        )
        (place,) = Path("/run/sealrun").glob("pod:*")
        vm = simulated.Sandbox(place)
        scope = systemd.directory(f"libpod-{infra}.scope")
        assert (
            systemd.properties(f"libpod-{infra}.scope")["Slice"]
            == f"machine-libpod_pod_{pod}.slice"
        )
        (inside,) = (path for path in scope.iterdir() if path.is_dir())
        assert {vm.pid("shim"), vm.pid("vmm")} <= pids(inside)
        assert sandbox(infra).pid("stand-in") in pids(scope)
        assert sandbox(member).pid("stand-in") in pids(systemd.directory(f"libpod-{member}.scope"))
    finally:
        podman("pod", "rm", "--force", "--time", "0", "pod1")
    scopes.wait(lambda: not systemd.units(pod), "a slice is left")


# --- the command line alone ----------------------------------------------------------------------


def bundle(directory: Path, rootfs: Path, path: str, **linux: object) -> Path:
    annotations = ANNOTATIONS | {"org.systemd.property.TimeoutStopSec": "7"}
    made = oci.bundle(directory / "bundle", rootfs, "sleep 1000", annotations)
    own = oci.read(made)["linux"] | {"resources": {}}
    return oci.edit(made, {"linux": own | {"cgroupsPath": path} | linux})


def create(runtime: oci.Runtime, made: Path, *options: str) -> oci.Outcome:
    runtime.started.append("c1")
    words = [
        runtime.binary,
        "--root",
        str(runtime.root),
        *options,
        "create",
        "--bundle",
        str(made),
        "c1",
    ]
    with open(made / "log", "w+") as log:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=120, check=False
        )
        return oci.Outcome(done.returncode, b"", (made / "log").read_text())


@pytest.mark.parametrize("role", ["shim", "scope"])
def test_whatever_is_killed_the_scope_goes(
    runtime: oci.Runtime, tmp_path: Path, rootfs: Path, role: str
) -> None:
    made = bundle(tmp_path, rootfs, "sealruntest-a.slice:kill:c1")
    created = create(runtime, made, "--systemd-cgroup")
    assert created.ok, created.stderr
    assert systemd.units("kill-c1") == ["kill-c1.scope"]
    here = simulated.Sandbox(runtime.root / "c1")
    if role == "scope":
        _freeze("kill-c1.scope")
        done = runtime("exec", "c1", "/bin/sh", "-c", "exit 7")
        assert done.status == 7, done.stderr
        systemd("stop", "kill-c1.scope")
    else:
        here.kill(role, signal.SIGKILL)
    runtime.wait_for("c1", "stopped")
    assert runtime("delete", "--force", "c1").ok
    assert not scopes.groups("kill-c1")
    scopes.wait(lambda: not systemd.units("kill-c1"), "a scope is left")


def _freeze(scope: str) -> None:
    """For a while."""
    systemd("freeze", scope)
    assert (systemd.directory(scope) / "cgroup.freeze").read_text().strip() == "1"
    time.sleep(3)
    systemd("thaw", scope)


def test_directories_by_hand(runtime: oci.Runtime, tmp_path: Path, rootfs: Path) -> None:
    created = create(
        runtime, bundle(tmp_path, rootfs, "/sealruntest/byhand-c1", resources=RESOURCES)
    )
    assert created.ok, created.stderr
    directory = scopes.MOUNT / "sealruntest/byhand-c1"
    found = limits(directory)
    assert found["memory.max"] == str(64 * MIB + VM_MEMORY + MEMORY_OVERHEAD)
    assert found["cpu.max"] == "150000 100000"
    assert found["pids.max"] == str(55 + TASKS_OVERHEAD)
    assert (found["cpu.weight"], found["cpuset.cpus"]) == ("20", "0")
    assert everybody("c1", runtime.root) <= pids(directory)
    assert not systemd.units("byhand")
    updated = runtime("update", "--memory", "128m", "c1")
    assert updated.ok, updated.stderr
    assert limits(directory)["memory.max"] == str(128 * MIB + VM_MEMORY + MEMORY_OVERHEAD)
    assert runtime("delete", "--force", "c1").ok
    assert not directory.parent.exists()


def test_a_scope_of_somebody_else_is_not_taken(
    runtime: oci.Runtime, tmp_path: Path, rootfs: Path
) -> None:
    command = ["systemd-run", "--scope", "--quiet", "--unit=taken-c1", "sleep", "1000"]
    with subprocess.Popen(command) as other:
        try:
            scopes.wait(lambda: systemd.units("taken-c1"), "it does not start")
            created = create(runtime, bundle(tmp_path, rootfs, ":taken:c1"), "--systemd-cgroup")
            assert not created.ok
            assert "there is a unit taken-c1.scope" in created.stderr
            assert os.listdir(runtime.root) == []
            assert other.pid in pids(systemd.directory("taken-c1.scope"))
            assert other.poll() is None
        finally:
            other.kill()


# --- a user --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def user() -> Iterator[rootless.User]:
    if not HAS_SYSTEMD:  # this comes before `place`
        pytest.skip(ELSEWHERE)
    with rootless.user(login=True) as user:
        yield user


def test_a_users_scope(user: rootless.User, program: Path) -> None:
    """Made by the user's own systemd, from within Podman's user namespace."""
    for parent in list(program.parents)[:-2]:  # pytest's own directories
        parent.chmod(parent.stat().st_mode | 0o055)
    manager = Systemd(user.prefix)
    cids, rootfs = user.home / "cids", oci.busybox_tree(user.home / "rootfs")
    cids.mkdir()
    for path in (cids, rootfs, *rootfs.rglob("*")):
        os.chown(path, user.uid, user.uid, follow_symlinks=False)
    driver = podmans.Podman(
        cids,
        str(program),
        ["--storage-driver", "vfs"],
        prefix=user.prefix,
        state_root=user.state_root,
    )
    try:
        words = ("--memory", "64m", "--pids-limit", "55", "--cpus", "0.5")
        container = run(driver, rootfs, *words)
        scope = f"libpod-{container}.scope"
        directory = manager.directory(scope)
        assert f"user@{user.uid}.service" in str(directory)
        found = limits(directory)
        assert found["memory.max"] == str(64 * MIB + VM_MEMORY + MEMORY_OVERHEAD)
        assert found["pids.max"] == str(55 + TASKS_OVERHEAD)
        assert found["cpu.max"] == "150000 100000"
        assert everybody(container, user.state_root) <= pids(directory)
    finally:
        clean(driver, manager)
    assert list(user.state_root.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/kvm"), reason="there is no /dev/kvm here")
def test_a_users_kvm_is_by_group(user: rootless.User) -> None:
    """As Debian and Fedora hand it out, and from within Podman's user namespace."""
    code = "from sealrun_vmm import kvm; print(kvm.obstacle())"
    path = f"PYTHONPATH={ROOT}/vmm:{ROOT}/guest-agent"
    command = [*user.prefix, path, "unshare", "--map-root-user", sys.executable, "-c", code]

    def obstacle() -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    about = os.stat("/dev/kvm")
    try:
        os.chown("/dev/kvm", 0, grp.getgrnam("kvm").gr_gid)
        os.chmod("/dev/kvm", 0o660)
        assert obstacle() == "/dev/kvm: Permission denied"
        subprocess.run(["usermod", "--append", "--groups", "kvm", rootless.NAME], check=True)
        assert obstacle() == "None"
    finally:
        os.chown("/dev/kvm", about.st_uid, about.st_gid)
        os.chmod("/dev/kvm", about.st_mode & 0o777)
