"""Volumes that engines make as empty directories of the host, in real VMs: what is in them is in the guest."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import layers, netns, oci, pods
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

VOLUMES = Path("/var/lib/containers/storage/volumes")
MARKER = "what-a-container-wrote-into-a-volume"
BIND = {"type": "bind", "options": ["rbind", "rprivate", "rw"]}
SCRIPT = (
    "stat -c '%n %a %u %g %F' /data /data/file /data/sub/link /empty /anonymous; cat /data/file; "
    f"echo {MARKER} >/data/new; cp /data/new /empty/new; ls /data /empty /anonymous; "
    "mount | grep -c -e ' on /data ' -e ' on /empty ' -e ' on /anonymous '; "
    "echo replaced >/data/file && cat /data/file; stat -c '%a %u %g' /data/new"
)


def image(directory: Path, registry: registries.Registry) -> str:
    """One that declares volumes, with something and with nothing in them; its name."""
    tar = layers.tar(
        [
            *(layers.symlink(f"bin/{name}", "busybox") for name in ("cp", "grep")),
            layers.directory("data", mode=0o2755, uid=7, gid=8),
            layers.file("data/file", b"the image's\n", mode=0o640, uid=7, gid=8),
            layers.directory("data/sub", mode=0o711),
            layers.symlink("data/sub/link", "../file"),
            layers.directory("empty", mode=0o1777),
        ]
    )
    process = {"Cmd": ["/bin/sh", "-c", SCRIPT], "Volumes": {"/data": {}, "/empty": {}}}
    layers.write_layout(directory, [workloads.busybox_tar(), tar], process=process)
    registries.push(directory, registry, "test/volumes:1")
    return f"{registry.address}/test/volumes:1"


def volumes() -> set[str]:
    """Podman keeps a device's node beside them."""
    return {one.name for one in VOLUMES.iterdir() if one.is_dir()} if VOLUMES.exists() else set()


def test_podman_s_volumes_without_a_name_are_as_under_crun_and_not_on_the_host(
    podman: podmans.Podman, registry: registries.Registry, tmp_path: Path
) -> None:
    name = image(tmp_path / "layout", registry)
    before = volumes()
    # A host may not let crun raise what it has.
    limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
    options = ("-v", "/anonymous", *limits)
    try:
        subprocess.run(
            ["podman", "pull", "--quiet", "--tls-verify=false", name], check=True, timeout=60
        )
        crun = podmans.Podman(tmp_path, oci.oracle("crun", tmp_path).binary)
        theirs = crun(*crun.arguments("run", [], {}, ("--rm", *options), name))
        assert theirs.status == 0, theirs.stderr
    finally:
        podmans.remove_image(name)
    stub = ["sealrun", "image", "stub", "--tls-verify=false", name]
    subprocess.run(stub, check=True, capture_output=True, timeout=60)
    try:
        annotations = workloads.open_annotations(name, registry.address)
        script = f"{SCRIPT}; sync; sleep 1000"
        container = podman.start(["/bin/sh", "-c", script], annotations, *options, image=name)
        made = volumes() - before
        assert len(made) == 3
        deadline = time.monotonic() + podmans.RUN_SECONDS
        while (ours := podman("logs", container).stdout).count(b"\n") < theirs.stdout.count(b"\n"):
            assert time.monotonic() < deadline, ours
            time.sleep(0.2)
        assert ours == theirs.stdout
        assert [os.listdir(VOLUMES / one / "_data") for one in made] == [[], [], []]
        log = (podmans.STATE_ROOT / container / "shim.log").read_text()
        assert "the guest sees of the host" not in log
        assert podman("rm", "--force", "--volumes", "--time", "0", container).status == 0
    finally:
        podmans.remove_image(name)
    assert volumes() == before


@pytest.fixture
def runtime(tmp_path: Path, busybox_annotations: workloads.Annotations) -> Iterator[oci.Runtime]:
    binary = shutil.which("sealrun")
    assert binary, "sealrun is not installed: run tests/run"
    runtime = oci.Runtime("sealrun", binary, tmp_path / "state", busybox_annotations)
    yield runtime
    runtime.clean()


def test_an_emptydir_is_on_the_pod_s_disk_and_one_of_memory_in_its_memory(
    runtime: oci.Runtime, tmp_path: Path
) -> None:
    """As CRI-O asks for it."""
    place = tmp_path / "pods/0f-1/volumes/kubernetes.io~empty-dir"
    for name in ("disk", "memory"):
        (place / name).mkdir(parents=True)
        (place / name).chmod(0o2777)
        os.chown(place / name, 0, 2000)
    part = tmp_path / "pods/0f-1/volume-subpaths/disk/a/0"
    for directory in (place / "disk/a/part", part):
        directory.mkdir(parents=True)
    subprocess.run(["mount", "--bind", place / "disk/a/part", part], check=True)
    options = ("-t", "tmpfs", "-o", "size=3m,mode=2777,gid=2000")
    subprocess.run(["mount", *options, "x", place / "memory"], check=True)
    try:
        with netns.empty() as network:
            pod = pods.Pod(runtime, pods.CRIO, tmp_path, tmp_path, network=network.path)
            pod.up()

            def say(name: str, script: str) -> str:
                mounts = [
                    {"destination": "/proc", "type": "proc", "source": "proc"},
                    {"destination": "/disk", "source": f"{place}/disk", **BIND},
                    {"destination": "/memory", "source": f"{place}/memory", **BIND},
                    {"destination": "/part", "source": str(part), **BIND},
                ]
                pod.run(name, script, mounts=mounts)
                runtime.wait_for(name, "stopped")
                return pod.output(name)

            said = say("a", "stat -c '%n %a %u %g' /disk /memory; df -k /disk /memory")
            lines = said.splitlines()
            assert lines[:2] == ["/disk 2777 0 2000", "/memory 2777 0 2000"]
            disk, memory = (line.split() for line in lines[3:])
            assert disk[0].startswith("/dev/")
            assert int(disk[1]) > 8 << 20, "of 10 GiB"
            assert memory[:2] == ["tmpfs", "3072"]
            assert say("b", f"echo {MARKER} >/part/x; echo {MARKER} >/memory/y; sync") == ""
            assert runtime("delete", "a").ok
            assert runtime("delete", "b").ok
            assert (
                say("a", "cat /disk/a/part/x /memory/y; stat -c %g /part/x")
                == f"{MARKER}\n" * 2 + "2000\n"
            )
            assert [top for top, _, files in os.walk(place) if files] == []
            assert runtime("delete", "--force", "pod").ok
    finally:
        subprocess.run(["umount", place / "memory", part], check=True)
    assert subprocess.run(["grep", "-rqs", MARKER, tmp_path / "state"]).returncode == 1
