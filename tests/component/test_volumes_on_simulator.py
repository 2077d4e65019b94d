"""Volumes of the sandbox's own through the whole of sealrun but a VM, as engines ask for them, beside crun."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from component import test_sandbox_on_simulator as alone
from fixtures import netns, oci, pods
from sealrun_runtime import namespaces

pytestmark = pytest.mark.root

program, runtime = alone.program, alone.runtime  # fixtures

KUBELET = "kubelet/pods/0f-1/volumes/kubernetes.io~empty-dir"
SUBPATH = "kubelet/pods/0f-1/volume-subpaths/cache/part/0"
ANONYMOUS = f"storage/volumes/{'5' * 64}/_data"


def bind(source: Path, destination: str, *options: str) -> dict[str, Any]:
    options = ("rbind", *options)
    return {"destination": destination, "type": "bind", "source": str(source), "options": options}


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """What kubelet makes for a pod: an emptyDir with a group, one with medium: Memory, and a part of the first."""
    for name in ("cache", "memory"):
        path = tmp_path / KUBELET / name
        path.mkdir(parents=True)
        os.chown(path, 0, 2000)
        path.chmod(0o2777)
    memory = tmp_path / KUBELET / "memory"
    namespaces.mount("tmpfs", str(memory), "tmpfs", 0)
    os.chown(memory, 0, 2000)
    memory.chmod(0o2777)
    part = tmp_path / SUBPATH
    part.mkdir(parents=True)
    (tmp_path / KUBELET / "cache/a/part").mkdir(parents=True)
    namespaces.mount(str(tmp_path / KUBELET / "cache/a/part"), str(part), "", namespaces.MS_BIND)
    yield tmp_path / KUBELET
    namespaces.detach(str(part))
    namespaces.detach(str(memory))


def test_the_containers_of_a_pod_have_it_together_and_the_host_has_nothing(
    runtime: oci.Runtime, tmp_path: Path, place: Path
) -> None:
    with netns.empty() as network:
        pod = pods.Pod(runtime, pods.CRIO, tmp_path, tmp_path, network=network.path)
        pod.up()

        def say(name: str, script: str, cache: str = "/cache") -> str:
            mounts = [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                bind(place / "cache", cache),
                bind(place / "memory", "/memory", "nosuid"),
                bind(tmp_path / SUBPATH, "/part"),
            ]
            pod.run(name, f"exec 2>&1; {script}", mounts=mounts)
            runtime.wait_for(name, "stopped")
            assert runtime("delete", name).ok
            return pod.output(name)

        look = "busybox stat -c '%a %u %g' /cache /memory; "
        assert say("a", look + "echo x >/cache/x; echo y >/memory/y") == "2777 0 2000\n" * 2
        assert say("b", "cat /other/x /memory/y; echo b >>/other/x", "/other") == "x\ny\n"
        look = "busybox stat -c '%a %u %g' /part; echo z >/part/z; cat /cache/a/part/z"
        assert say("c", look) == "2777 0 2000\nz\n"
        assert say("a", "cat /cache/x; mount | busybox grep ' on /memory'").startswith(
            "x\nb\ntmpfs"
        )
        assert [top for top, _, files in os.walk(place) if files] == []
        assert runtime("delete", "--force", "pod").ok


SCRIPT = (
    "exec 2>&1; busybox stat -c '%a %u %g %F' /data; ls -a /data; echo x >/data/x; "
    "mkdir /data/sub; cat /data/x; ls /data; busybox stat -c '%a %u %g' /data/x"
)


def run(runtime: oci.Runtime, directory: Path, annotations: dict[str, str]) -> tuple[str, Path]:
    """What a container with an anonymous volume says, and where the volume is on the host."""
    volume = directory / ANONYMOUS
    volume.mkdir(parents=True, exist_ok=True)
    os.chown(volume, 7, 8)
    volume.chmod(0o3777)
    rootfs = oci.busybox_tree(directory / "rootfs")
    made = oci.bundle(directory / "bundle", rootfs, SCRIPT, runtime.annotations | annotations)
    config = oci.read(made)
    config["linux"]["resources"] = {}
    oci.edit(made, config | {"mounts": [*config["mounts"], bind(volume, "/data", "nodev")]})
    runtime.started.append("c1")
    options = ("--debug", "--log", f"{directory}/log")
    outcome = runtime("run", "--bundle", str(made), "c1", options=options)
    assert outcome.ok, outcome.stderr
    runtime("delete", "--force", "c1")
    return outcome.stdout.decode(), volume


def test_a_volume_without_a_name_is_what_it_is_under_crun(
    runtime: oci.Runtime, tmp_path: Path
) -> None:
    oracle = oci.oracle("crun", tmp_path)
    theirs, written = run(oracle, tmp_path / "theirs", {})
    ours, empty = run(runtime, tmp_path / "ours", {})
    assert ours == theirs
    assert sorted(os.listdir(written)) == ["sub", "x"]
    assert os.listdir(empty) == []


@pytest.mark.virtiofsd
def test_one_that_is_not_empty_is_shared_and_the_log_says_so(
    runtime: oci.Runtime, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / name / ANONYMOUS).mkdir(parents=True)
        (tmp_path / name / ANONYMOUS / "there").touch()
    said, volume = run(runtime, tmp_path / "one", {})
    assert said.splitlines()[3] == "there"
    assert sorted(os.listdir(volume)) == ["sub", "there", "x"]
    log = (tmp_path / "one/log").read_text()
    assert "/data is shared with the host: its directory there is not empty" in log
    said, volume = run(runtime, tmp_path / "two", {"io.sealrun.ephemeral-volumes": "/data"})
    assert "there" not in said
    assert os.listdir(volume) == ["there"], "nothing was written to it"
