"""Podman's pods in real VMs: `pod create`, members with a shared network, ipc, uts and pid, `play kube`.

One pod lives through most of it: each life costs a VM. What members see, and what happens in other
orders, is the subject of component/test_pods.py.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import podman as podmans
from fixtures import traces
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

POD = "sealrun-test-pod"
FOREVER = "while :; do /bin/sleep 1; done"


@pytest.fixture
def pod(tmp_path: Path, stub_image: None) -> Iterator[podmans.Podman]:
    """Podman, and a pod that is removed with all that is in it."""
    driver = podmans.Podman(tmp_path)
    yield driver
    ids = driver("ps", "--all", "--quiet", "--no-trunc", "--filter", f"pod={POD}").stdout.split()
    driver("pod", "rm", "--force", "--time", "0", "--ignore", POD)
    for container in ids:
        traces.wait_until_gone(container.decode(), podmans.STATE_ROOT)
    assert not [path.name for path in podmans.STATE_ROOT.glob("pod:*")]


def member(
    podman: podmans.Podman, name: str, script: str, annotations: workloads.Annotations
) -> None:
    """A container of the pod that runs in the background."""
    options = ("--pod", POD, "--name", f"{POD}-{name}")
    podman.start(["/bin/sh", "-c", script], annotations, *options)


def wait_for_log(podman: podmans.Podman, name: str, text: str) -> str:
    deadline = time.monotonic() + 60
    while text not in (log := podman("logs", f"{POD}-{name}").stdout.decode()):
        assert time.monotonic() < deadline, log
        time.sleep(0.2)
    return log


def vmms() -> list[int]:
    """Of the pod's: one for each VM."""
    found = []
    for path in podmans.STATE_ROOT.glob("pod:*/processes"):
        found += [int(line.split()[1]) for line in path.read_text().splitlines() if "vmm" in line]
    return found


def sharing(workload: workloads.Workload) -> workloads.Annotations:
    """The plain image, whose tenant lets a pod share its pids."""
    text = (
        'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
        f"\"sealrun.toml\" = '''\n[image]\ninsecure_registries = ['{workload.registry.address}']\n"
        f"{workloads.ANY_PROCESS}share_pid = true\n'''\n"
    )
    return workloads.annotations(workload.plain, text.encode())


def test_a_pod_and_its_lives(pod: podmans.Podman, workload: workloads.Workload) -> None:
    busybox_annotations = sharing(workload)
    made = pod("pod", "create", "--name", POD, "--network", "none", "--share", "ipc,net,uts,pid")
    assert made.status == 0, made.stderr
    member(pod, "a", f"echo word >/dev/shm/w; hostname; {FOREVER}", busybox_annotations)
    wait_for_log(pod, "a", POD)
    member(pod, "b", f"cat /dev/shm/w; ps; echo end; {FOREVER}", busybox_annotations)
    seen = wait_for_log(pod, "b", "end")
    assert seen.startswith("word\n")
    assert "hostname" in seen, "the other's process is seen"
    assert len(vmms()) == 1
    listed = json.loads(pod("pod", "inspect", POD).stdout)
    assert listed["State"] == "Running"
    assert len(listed["Containers"]) == 3
    executed = pod("exec", f"{POD}-b", "/bin/sh", "-c", "cat /dev/shm/w; exit 6")
    assert (executed.status, executed.stdout) == (6, b"word\n")
    assert pod("pod", "pause", POD).status == 0
    assert pod("pod", "unpause", POD).status == 0
    assert pod("pod", "top", POD).status == 0
    assert pod("pod", "stats", "--no-stream", POD).status == 0
    assert pod("rm", "--force", "--time", "0", f"{POD}-a").status == 0
    assert pod("exec", f"{POD}-b", "/bin/true").status == 0, "the other goes on"
    restarted = pod("pod", "restart", POD)
    assert restarted.status == 0, restarted.stderr
    assert pod("exec", f"{POD}-b", "/bin/true").status == 0
    assert len(vmms()) == 1
    stopped = pod("pod", "stop", "--time", "1", POD)
    assert stopped.status == 0, stopped.stderr
    assert vmms() == []
    assert json.loads(pod("pod", "inspect", POD).stdout)["State"] == "Exited"


KUBE = f"""
apiVersion: v1
kind: Pod
metadata:
  name: {POD}
spec:
  restartPolicy: Never
  containers:
  - name: first
    image: IMAGE
    imagePullPolicy: Never
    command: [/bin/sh, -c, "echo first; {FOREVER}"]
  - name: second
    image: IMAGE
    imagePullPolicy: Never
    command: [/bin/sh, -c, "echo second; exit 9"]
"""


def test_play_kube(
    pod: podmans.Podman,
    workload: workloads.Workload,
    operator_settings: Callable[[str], None],
    tmp_path: Path,
) -> None:
    """The images are named by Podman's storage: it takes no annotation as long as an init-data."""
    operator_settings(f'[image]\ninsecure_registries = ["{workload.registry.address}"]\n')
    reference = f"{workload.registry.address}/test/plain:1"
    assert pod("pull", "--tls-verify=false", "--quiet", reference).status == 0
    file = tmp_path / "pod.yaml"
    file.write_text(KUBE.replace("IMAGE", reference))
    try:
        played = pod("play", "kube", "--network", "none", str(file))
        assert played.status == 0, played.stderr
        assert "first" in wait_for_log(pod, "first", "first")
        assert pod("wait", f"{POD}-second").stdout == b"9\n"
        assert len(vmms()) == 1
        assert pod("play", "kube", "--down", str(file)).status == 0
        assert vmms() == []
    finally:
        pod("pod", "rm", "--force", "--time", "0", "--ignore", POD)
        podmans.remove_image(reference)


@pytest.mark.virtiofsd
def test_buildah_run(tmp_path: Path) -> None:
    """A step of a build runs in a VM, on the root that is being built."""
    root = tmp_path / "root"
    for name in ("bin", "etc", "proc", "dev", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(workloads.BUSYBOX, root / "bin/busybox")
    (root / "bin/sh").symlink_to("busybox")
    (root / "bin/uname").symlink_to("busybox")
    (tmp_path / "Containerfile").write_text(
        "FROM scratch\nCOPY root/ /\nRUN uname -r >/kernel && exit 0\n"
    )
    tag = "localhost/sealrun-test-built"
    sealrun = shutil.which("sealrun")
    assert sealrun
    built = podmans.run(
        ["buildah", "--runtime", sealrun, "bud", "--network", "none", "--tag", tag, str(tmp_path)]
    )
    try:
        assert built.status == 0, built.stderr
    finally:
        podmans.remove_image(tag)


@pytest.mark.parametrize("victim", ["shim", "vmm"])
def test_a_pod_whose_process_is_killed(
    pod: podmans.Podman, busybox_annotations: workloads.Annotations, victim: str
) -> None:
    """Its containers are in the VM, and end with it; the pod can be removed, and nothing of it is left."""
    assert pod("pod", "create", "--name", POD, "--network", "none").status == 0
    for name in ("a", "b"):
        member(pod, name, f"echo {name}; {FOREVER}", busybox_annotations)
        wait_for_log(pod, name, f"{name}\n")
    (processes,) = podmans.STATE_ROOT.glob("pod:*/processes")
    (pid,) = (
        int(line.split()[1])
        for line in processes.read_text().splitlines()
        if line.split()[0] == victim
    )
    os.kill(pid, signal.SIGKILL)
    for name in ("a", "b"):
        ended = pod("wait", f"{POD}-{name}")
        assert ended.stdout.decode().strip() == "137", ended.stderr
