"""What only a container in a VM has: a VM that grows with its limits, and that can die or hang.

Every VMM gets these cases: QEMU here, a simulated Cloud Hypervisor in
tests/component/test_sandbox_on_simulator.py, the real one in test_cloud_hypervisor.py.
"""

import contextlib
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import oci
from system.test_lifecycle import COUNTING, wait_for_output

pytestmark = [pytest.mark.vm, pytest.mark.root]

SILENCE = 6
SETTINGS = (
    f"[vm]\ncpus = 1\nmemory = 512\nmax_cpus = 2\nmax_memory = 1280\nsilence_timeout = {SILENCE}\n"
)
FROZEN = 2.5  # seconds: more than the clocks may differ by, less than would count as hung
BUSY = 30.0  # what a bound may be exceeded by on a loaded machine


@pytest.fixture
def runtime(
    operator_settings: Callable[[str], None], busybox_annotations: dict[str, str], tmp_path: Path
) -> Iterator[oci.Runtime]:
    operator_settings(SETTINGS)
    binary = shutil.which("sealrun")
    assert binary, "sealrun is not installed: run tests/run"
    runtime = oci.Runtime("sealrun", binary, tmp_path / "root", dict(busybox_annotations))
    yield runtime
    runtime.clean()


def vmm(runtime: oci.Runtime) -> int:
    """The pid of the VMM."""
    lines = (runtime.root / "c1/processes").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("vmm "))


def wait_for_its_clock(output: Path, behind: float) -> None:
    """Until a line is less than `behind` seconds older than the moment that it is seen in; it has whole seconds."""
    deadline = time.monotonic() + BUSY
    seen = output.stat().st_size
    while time.monotonic() < deadline:
        lines = output.read_bytes()[seen:].split()
        if lines and time.time() - int(lines[-1]) < behind:
            return
        seen += sum(len(line) + 1 for line in lines)
        time.sleep(0.05)
    raise AssertionError(f"after {BUSY} s the guest's clock still is {behind} s behind")


def ended(runtime: oci.Runtime, seconds: float = 60) -> str:
    """Why the sandbox ended; nothing of it runs any more, and it can be deleted."""
    pid = runtime.state("c1")["pid"]
    state = runtime.wait_for("c1", "stopped", seconds)
    assert state["annotations"]["io.sealrun.exit-code"] == "137"
    deadline = time.monotonic() + BUSY
    while oci.alive(pid) or oci.alive(vmm(runtime)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert runtime("delete", "c1").ok
    assert list(runtime.root.iterdir()) == []
    reason: str = state["annotations"]["io.sealrun.exit-reason"]
    return reason


def test_the_vm_grows_and_shrinks_with_the_limits(runtime: oci.Runtime, make) -> None:
    if not runtime.limits:
        pytest.skip("containers' cgroups cannot have limits here")
    runtime.run(make("sleep 1000"))

    def inside(script: str) -> str:
        done = runtime("exec", "c1", "/bin/sh", "-c", script)
        assert done.ok, done.stderr
        return done.stdout.decode()

    def size() -> tuple[int, int]:
        """CPUs, and MiB."""
        found = re.search(r"MemTotal:\s+([0-9]+) kB", inside("cat /proc/meminfo"))
        assert found is not None
        return inside("cat /proc/cpuinfo").count("processor\t"), int(found[1]) >> 10

    cpus, before = size()
    assert (cpus, before < 512) == (1, True)
    grown = runtime("update", "--memory", "600m", "--cpu-quota", "150000", "c1")
    assert grown.ok, grown.stderr
    cpus, after = size()
    assert cpus == 2
    assert 600 <= after - before <= 640, "whole steps of 128 MiB"
    assert inside("cat /sys/fs/cgroup/memory.max") == f"{600 << 20}\n"
    for options, text in (
        (("--memory", "2g"), "cannot give the container 2048 MiB of memory: its VM can have 1280"),
        (("--cpu-quota", "300000"), "cannot give the container 3 CPUs: its VM can have 2"),
    ):
        refused = runtime("update", *options, "c1")
        assert (refused.status, text in refused.stderr) == (1, True), refused
    assert size() == (cpus, after)
    assert runtime("update", "--memory", "64m", "c1").ok
    deadline = time.monotonic() + 60
    while (now := size()[1]) > before + 256:
        assert time.monotonic() < deadline, (before, after, now)
        time.sleep(0.5)


def test_a_vm_is_as_large_as_its_container_is_allowed(runtime: oci.Runtime, make) -> None:
    if not runtime.limits:
        pytest.skip("containers' cgroups cannot have limits here")
    bundle = make("cat /proc/meminfo; grep -c ^processor /proc/cpuinfo; sleep 1000")
    limits = {"memory": {"limit": 300 << 20}, "cpu": {"quota": 120_000, "period": 100_000}}
    linux = oci.read(bundle)["linux"]
    oci.edit(bundle, {"linux": linux | {"resources": linux.get("resources", {}) | limits}})
    output = runtime.run(bundle)
    wait_for_output(output, b"\n2\n")
    found = re.search(rb"MemTotal:\s+([0-9]+) kB", output.read_bytes())
    assert found is not None
    assert 812 - 200 < int(found[1]) >> 10 < 812


def test_the_vmm_is_killed(runtime: oci.Runtime, make) -> None:
    runtime.run(make("sleep 1000"))
    os.kill(vmm(runtime), signal.SIGKILL)
    assert "ended with signal 9" in ended(runtime)


def test_a_paused_container_whose_vmm_is_killed(runtime: oci.Runtime, make) -> None:
    wait_for_output(runtime.run(make(COUNTING)), b"2\n")
    assert runtime("pause", "c1").ok
    os.kill(vmm(runtime), signal.SIGKILL)
    assert "ended with signal 9" in ended(runtime)


def test_a_vm_that_was_frozen_catches_up_and_one_that_hangs_is_ended(
    runtime: oci.Runtime, make
) -> None:
    output = runtime.run(make("while :; do date +%s; sleep 1; done"))
    wait_for_output(output, b"\n")
    pid = vmm(runtime)
    os.kill(pid, signal.SIGSTOP)
    time.sleep(FROZEN)
    os.kill(pid, signal.SIGCONT)
    wait_for_its_clock(output, FROZEN)
    time.sleep(SILENCE + 1)
    assert runtime.state("c1")["status"] == "running", "one that answers is not"
    began = time.monotonic()
    for pid in (vmm(runtime), *oci.descendants(vmm(runtime))):
        with contextlib.suppress(ProcessLookupError):  # a program of the script's that has ended
            os.kill(pid, signal.SIGSTOP)
    assert ended(runtime) == f"the VM hangs: it did not answer for {SILENCE} s"
    # It may have been asked a moment before.
    assert SILENCE - 1 <= time.monotonic() - began < 2 * SILENCE + BUSY


def test_a_vm_that_hangs_does_not_hold_up_a_delete(runtime: oci.Runtime, make) -> None:
    runtime.run(make("sleep 1000"))
    pid = vmm(runtime)
    os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    assert runtime("delete", "--force", "c1").ok
    assert time.monotonic() - began < BUSY
    assert runtime.state("c1") is None
    assert not oci.alive(pid)
