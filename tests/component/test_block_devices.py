"""Block devices of the host in a container, with nothing simulated but the hypervisor: what is on a loop
device is what the container reads, and what it writes there is on the device.

In a real VM: tests/system/test_block_devices.py.
"""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from component import test_sandbox_on_simulator as alone
from component.test_pods import exit_code
from component.test_shares_on_simulator import INIT_DATA
from fixtures import loop, oci, pods, simulated
from fixtures.loop import Loop
from sealrun_protocol import init_data

pytestmark = pytest.mark.root

program, runtime = alone.program, alone.runtime  # fixtures
READ = "head -c 5 /dev/xvda"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Loop]:
    with loop.device(tmp_path / "disk", b"hello") as made:
        yield made


@pytest.fixture
def make(runtime: oci.Runtime, tmp_path: Path) -> Callable[..., Path]:
    """make(script, linux) -> a bundle."""

    def bundle(script: str, linux: dict[str, object], **annotations: str) -> Path:
        return simulated.bundle(
            tmp_path / "bundle", script, runtime.annotations | annotations, linux=linux
        )

    return bundle


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Callable[[], list[str]]]:
    """The calls about disks, and what for; for bundles with the annotation `test.simulator`."""
    path = tmp_path / "trace"

    def calls() -> list[str]:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            f"{name} {json.loads(body)['id']}"
            for _, name, body, _ in lines
            if name in ("vm.add-disk", "vm.add-pmem", "vm.remove-device")
        ]

    yield calls


def test_a_container_reads_and_writes_it(runtime: oci.Runtime, make, disk: Loop) -> None:
    script = f"{READ}; ls -ln /dev/xvda; echo HELLO | dd of=/dev/xvda conv=notrunc 2>/dev/null"
    device = disk.device("/dev/xvda", fileMode=0o640, uid=0, gid=8)
    output = runtime.run(make(script, {"devices": [device]}))
    assert exit_code(runtime, "c1") == "0"
    major, minor = disk.number
    words = output.read_text().split()
    assert words[0].removeprefix("hello") == "brw-r-----"
    assert words[2:6] == ["0", "8", f"{major},", str(minor)]
    assert loop.written(disk, 6) == b"HELLO\n"
    assert runtime("delete", "c1").ok


def test_two_nodes_of_one_device_are_one_disk(runtime: oci.Runtime, make, disk: Loop) -> None:
    devices = [disk.device("/dev/xvda"), disk.device("/data/deep/volume")]
    output = runtime.run(make(f"{READ}; head -c 5 /data/deep/volume", {"devices": devices}))
    assert exit_code(runtime, "c1") == "0"
    assert output.read_text() == "hellohello"


def test_a_pods_vm_gets_it_and_gives_it_back(
    runtime: oci.Runtime, disk: Loop, trace, tmp_path: Path
) -> None:
    """Plugged in for the first container that names it, out again with the last."""
    runtime.annotations["test.simulator"] = f"trace={tmp_path}/trace"
    pod = pods.Pod(runtime, pods.PODMAN, tmp_path, tmp_path)
    pod.up()
    pod.run("other", "sleep 1000")
    linux = {"devices": [disk.device("/dev/xvda")]}
    assert trace() == []
    for name in ("a", "b"):
        pod.run(name, f"{READ}; sleep 1000", linux=linux)
        alone.wait_until(lambda name=name: pod.output(name) == "hello")
    assert trace() == [f"vm.add-disk {disk.serial}"]
    assert runtime("delete", "--force", "a").ok
    assert trace() == [f"vm.add-disk {disk.serial}"]
    assert runtime("delete", "--force", "b").ok
    assert trace() == [f"vm.add-disk {disk.serial}", f"vm.remove-device {disk.serial}"]
    pod.run("c", READ, linux=linux)
    assert exit_code(runtime, "c") == "0"
    assert pod.output("c") == "hello"
    for name in ("c", "other", "pod"):
        assert runtime("delete", "--force", name).ok


def test_persistent_memory_is_of_the_boot_or_plugged_in(
    runtime: oci.Runtime, disk: Loop, trace, tmp_path: Path
) -> None:
    """The agent is told where it lies; a container that only reads it gets a disk."""
    runtime.annotations["test.simulator"] = f"trace={tmp_path}/trace"
    major, minor = disk.number
    reads = {"allow": True, "type": "b", "major": major, "minor": minor, "access": "r"}
    given = {"devices": [disk.device("/dev/xvda")]}
    with loop.said_to_be_persistent(disk, tmp_path):
        output = runtime.run(
            simulated.bundle(tmp_path / "alone", READ, runtime.annotations, linux=given)
        )
        assert exit_code(runtime, "c1") == "0"
        assert output.read_text() == "hello"
        assert runtime("delete", "c1").ok
        lines = map(json.loads, (tmp_path / "trace").read_text().splitlines())
        (born,) = (json.loads(body) for _, name, body, _ in lines if name == "vm.create")
        assert [one["id"] for one in born["pmem"]] == [disk.serial]
        assert "disks" not in born or disk.serial not in str(born["disks"])

        pod = pods.Pod(runtime, pods.PODMAN, tmp_path, tmp_path)
        pod.up()
        pod.run("other", "sleep 1000")
        pod.run("a", f"{READ}; sleep 1000", linux=given)
        alone.wait_until(lambda: pod.output("a") == "hello")
        assert runtime("delete", "--force", "a").ok
        rules = {"resources": {"devices": [{"allow": False, "access": "rwm"}, reads]}}
        pod.run("b", READ, linux=given | rules)
        assert exit_code(runtime, "b") == "0"
        assert runtime("delete", "b").ok
    assert trace() == [
        *(f"vm.add-pmem {disk.serial}", f"vm.remove-device {disk.serial}"),
        *(f"vm.add-disk {disk.serial}", f"vm.remove-device {disk.serial}"),
    ]
    for name in ("other", "pod"):
        assert runtime("delete", "--force", name).ok


def test_a_container_that_fails_leaves_no_disk(
    runtime: oci.Runtime, disk: Loop, trace, tmp_path: Path
) -> None:
    runtime.annotations["test.simulator"] = f"trace={tmp_path}/trace"
    pod = pods.Pod(runtime, pods.PODMAN, tmp_path, tmp_path)
    pod.up()
    pod.run("other", "sleep 1000")
    assert not pod.create("a", ["/no/such"], linux={"devices": [disk.device("/dev/xvda")]}).ok
    assert trace() == [f"vm.add-disk {disk.serial}", f"vm.remove-device {disk.serial}"]
    for name in ("other", "pod"):
        assert runtime("delete", "--force", name).ok


def test_a_vmm_that_refuses_it_and_a_vm_that_goes_on(
    runtime: oci.Runtime, disk: Loop, tmp_path: Path
) -> None:
    runtime.annotations["test.simulator"] = "refuse=vm.add-disk"
    pod = pods.Pod(runtime, pods.PODMAN, tmp_path, tmp_path)
    pod.up()
    pod.run("other", "sleep 1000")
    linux = {"devices": [disk.device("/dev/xvda")]}
    refused = pod.create("a", READ, linux=linux)
    major, minor = disk.number
    assert (
        f"cannot plug the block device {major}:{minor} into the running VM: cloud-hypervisor refused "
        "vm.add-disk: " in refused.stderr
    )
    state = runtime.state("other")
    assert state is not None and state["status"] == "running"
    for name in ("other", "pod"):
        assert runtime("delete", "--force", name).ok


# --- what is refused before a VM exists ----------------------------------------------------------


def test_a_device_that_is_not_there(runtime: oci.Runtime, make) -> None:
    missing = {"path": "/dev/xvda", "type": "b", "major": 4000, "minor": 1}
    refused = runtime.create(make(READ, {"devices": [missing]}), "c1")
    assert "$.linux.devices[0]: cannot find the block device 4000:1 of this host" in refused.stderr
    assert not runtime.root.exists() or not os.listdir(runtime.root)


def test_a_device_without_a_medium(runtime: oci.Runtime, make) -> None:
    empty = next(
        path for path in Path("/sys/block").glob("loop*") if (path / "size").read_text() == "0\n"
    )
    major, minor = map(int, (empty / "dev").read_text().split(":"))
    device = {"path": "/dev/xvda", "type": "b", "major": major, "minor": minor}
    refused = runtime.create(make(READ, {"devices": [device]}), "c1")
    assert f"the block device {major}:{minor} ({empty.name}) holds no medium" in refused.stderr


@pytest.mark.parametrize(
    ("places", "allowed"), [([], False), (["/dev/xvd"], False), (["/dev"], True)]
)
def test_the_tenant_decides(
    runtime: oci.Runtime, make, disk: Loop, places: list[str], allowed: bool
) -> None:
    ours = f"[host]\ninsecure_block_devices = {places}\n[container]\ninsecure_any_process = true"
    document = init_data.encode_annotation(INIT_DATA.format(ours).encode())
    annotations = {"io.sealrun.init-data": document}
    created = runtime.create(
        make(READ, {"devices": [disk.device("/dev/xvda")]}, **annotations), "c1"
    )
    assert created.ok is allowed, created.stderr
    if not allowed:
        assert "does not allow a block device of the host at /dev/xvda" in created.stderr
        assert "name the place in [host] insecure_block_devices" in created.stderr
