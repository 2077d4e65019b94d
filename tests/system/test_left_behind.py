"""Whoever of the processes dies, and whenever: an honest status, and nothing left on the host."""

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
from fixtures import oci, traces
from fixtures import podman as podmans
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

KILLED = 137
VICTIMS = {
    "shim": "/runtime/bin/sealrun-shim",
    "vmm": "qemu-system-x86_64 -name guest=",  # not one that is asked what it is
    "stand-in": "sealrun-stand-in",
}


def the_one(container: str, victim: str, seconds: float = 60) -> int:
    """The pid of the container's shim, VMM or stand-in, as soon as it is there."""
    deadline = time.monotonic() + seconds
    # One that was forked has its parent's name until it is the program that it will be.
    while len(pids := traces.processes(container, VICTIMS[victim])) != 1:
        assert time.monotonic() < deadline, f"{container} has not one {victim}: {pids}"
        time.sleep(0.05)
    return pids[0]


def delete(container: str) -> None:
    """Ask for what an engine did not ask for."""
    subprocess.run(["sealrun", "delete", "--force", container], check=True, timeout=60)
    assert not (podmans.STATE_ROOT / container).exists()


@pytest.mark.parametrize("victim", sorted(VICTIMS))
def test_a_process_of_a_running_container_is_killed(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations, victim: str
) -> None:
    container = podman.start(["/bin/sleep", "1000"], busybox_annotations)
    os.kill(the_one(container, victim), signal.SIGKILL)
    assert podman("wait", container, seconds=60).stdout == f"{KILLED}\n".encode()
    assert podman.inspect(container, "{{.State.Status}}") == "exited"
    traces.wait_until_gone(container, podmans.STATE_ROOT)
    assert podman("rm", container).status == 0


@pytest.mark.parametrize("victim", ["shim", "vmm", "stand-in"])
def test_a_process_is_killed_while_the_vm_boots(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations, victim: str
) -> None:
    container = podman.create(["/bin/true"], busybox_annotations)
    ended: list[podmans.Ended] = []
    starter = threading.Thread(target=lambda: ended.append(podman("start", container)))
    starter.start()
    os.kill(the_one(container, victim), signal.SIGKILL)
    starter.join(120)
    assert ended, "podman start does not end"
    assert ended[0].status == 125 or ended[0].status == 126, ended[0].stderr
    assert "sealrun" in ended[0].error
    traces.wait_until_gone(container, podmans.STATE_ROOT)


def test_conmon_is_killed(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """Podman then takes it for running whatever happens, so that `prune` passes over it, and never asks for
    a delete (runc and crun keep their cgroups in this case): what costs anything is gone all the same, and the
    state directory is there for whoever asks."""
    label = f"sealrun-test={os.getpid()}"
    container = podman.start(["/bin/sleep", "1000"], busybox_annotations, "--label", label)
    os.kill(int(podman.inspect(container, "{{.State.ConmonPid}}")), signal.SIGKILL)
    stand_in = Path("/proc", podman.inspect(container, "{{.State.Pid}}"))
    subprocess.run(["sealrun", "kill", container, "KILL"], check=True, timeout=60)
    deadline = time.monotonic() + 60
    while stand_in.exists():  # until somebody has reaped it, Podman would send it a signal
        assert time.monotonic() < deadline, "the stand-in is still there"
        time.sleep(0.1)
    assert podman("container", "prune", "--force", "--filter", f"label={label}").status == 0
    assert podman.inspect(container, "{{.State.Status}}") == "running"
    assert podman("rm", "--force", "--time", "0", container).status == 0
    traces.wait_until_gone(container)
    delete(container)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["booting", "running"])
def test_sealrun_run_is_interrupted(
    tmp_path: Path,
    busybox_annotations: workloads.Annotations,
    number: signal.Signals,
    moment: str,
) -> None:
    """Without an engine: during the boot everything is undone, later the signal is the program's."""
    rootfs = oci.busybox_tree(tmp_path / "rootfs")
    script = f"trap 'exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.1; done"
    bundle = oci.bundle(tmp_path / "bundle", rootfs, script, busybox_annotations)
    root, name = tmp_path / "root", f"interrupted-{moment}-{number.name}"
    process = subprocess.Popen(
        ["sealrun", "--root", str(root), "run", "--bundle", str(bundle), name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    if moment == "booting":
        the_one(name, "vmm")
    else:
        assert process.stdout.readline() == b"ready\n"
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if moment == "running":
        assert process.returncode == 9, errors
    else:
        assert process.returncode != 0
        assert len(errors.decode().strip().splitlines()) == 1, errors
    traces.wait_until_gone(name, root)
    assert not root.exists() or list(root.iterdir()) == []


def test_the_engine_is_killed_during_create(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    """podman, conmon and `sealrun create` die while the VM boots: the shim undoes everything alone,
    since Podman, which has not noted a start, does not ask for it."""
    container = podman.create(["/bin/sleep", "1000"], busybox_annotations)
    engine = subprocess.Popen(
        ["podman", "--runtime", "sealrun", "start", container],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    the_one(container, "vmm")
    engine.kill()
    engine.wait()
    for name in ("conmon", "bin/sealrun "):
        for pid in traces.processes(container, name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 60
    while left := traces.processes(container, ""):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)
    assert podman("rm", "--force", "--time", "0", container).status == 0
    traces.wait_until_gone(container)
    delete(container)
