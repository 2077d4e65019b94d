"""Block devices of the host in containers of real VMs: what is on a loop device is what the container reads,
and what it writes there is on the device. Who allows what, and each failure, are cases of
tests/component/test_block_devices.py.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import loop, oci, pods
from fixtures import workload as workloads
from fixtures.loop import Loop
from system.test_lifecycle import wait_for_output

pytestmark = [pytest.mark.vm, pytest.mark.root]

EXEC = ("exec", "--cap", "CAP_MKNOD")
OPEN_ALL = """for disk in /sys/block/vd*; do
busybox mknod /tmp/node b $(busybox tr : ' ' <$disk/dev)
busybox head -c 1 /tmp/node >/tmp/read && echo $(cat $disk/serial)
busybox rm /tmp/node
done"""


def allowed(workload: workloads.Workload) -> workloads.Annotations:
    """An image of the guest's own, and a tenant who allows the devices."""
    host = '[host]\ninsecure_block_devices = ["/dev", "/mnt/deep"]'
    return workloads.open_annotations(workload.plain, workload.registry.address, host)


@pytest.fixture
def runtime(workload: workloads.Workload, tmp_path: Path) -> Iterator[oci.Runtime]:
    binary = shutil.which("sealrun")
    assert binary, "sealrun is not installed: run tests/run"
    runtime = oci.Runtime("sealrun", binary, tmp_path / "root", dict(allowed(workload)))
    yield runtime
    runtime.clean()


@pytest.fixture
def disks(tmp_path: Path) -> Iterator[tuple[Loop, Loop, Loop]]:
    """The first can be written to, the second by a rule not, and the third never."""
    with (
        loop.device(tmp_path / "first", b"first") as first,
        loop.device(tmp_path / "second", b"second") as second,
        loop.device(tmp_path / "third", b"third", "--read-only", mib=8) as third,
    ):
        yield first, second, third


@pytest.fixture
def memories(tmp_path: Path) -> Iterator[tuple[Loop, Loop]]:
    """Two that are said to be persistent memory, each with a file system and a file on it."""
    for name in ("born", "later"):
        (tmp_path / name).mkdir()
    with (
        loop.device(tmp_path / "born/disk", mib=16) as born,
        loop.device(tmp_path / "later/disk", mib=16) as later,
        loop.said_to_be_persistent(born, tmp_path / "born"),
        loop.said_to_be_persistent(later, tmp_path / "later"),
    ):
        for one in (born, later):
            format_for_direct_access(one.node)
        yield born, later


def format_for_direct_access(node: str) -> None:
    """ext4 with blocks of the size of a page."""
    mke2fs = ("mke2fs", "-q", "-t", "ext4", "-b", "4096", "-O", "^has_journal", node)
    subprocess.run(mke2fs, check=True)


def read_from(node: str, path: str) -> bytes:
    """A file of the file system on a device."""
    command = ["debugfs", "-R", f"cat {path}", node]
    return subprocess.run(command, capture_output=True, check=True).stdout


def linux(*given: tuple[Loop, str, str]) -> dict[str, object]:
    """Members of `linux` for devices at a path, with an access."""
    return {
        "devices": [one.device(path, fileMode=0o660, uid=0, gid=6) for one, path, _ in given],
        "resources": {
            "devices": [
                {"allow": False, "access": "rwm"},
                *(one.rule(access) for one, _, access in given),
            ]
        },
    }


def test_a_container_has_what_it_was_given(
    runtime: oci.Runtime, rootfs: Path, disks: tuple[Loop, Loop, Loop], tmp_path: Path
) -> None:
    first, second, third = disks
    bundle = oci.bundle(tmp_path / "b", rootfs, "sleep 1000", runtime.annotations)
    given = linux(
        (third, "/dev/xvdc", "rwm"), (first, "/dev/xvda", "rw"), (second, "/mnt/deep/xvdb", "r")
    )
    oci.edit(bundle, {"linux": oci.read(bundle)["linux"] | given})
    runtime.run(bundle)

    def shell(script: str) -> oci.Outcome:
        return runtime(*EXEC, "c1", "busybox", "sh", "-c", script)

    for path, content in (
        ("/dev/xvda", b"first"),
        ("/mnt/deep/xvdb", b"second"),
        ("/dev/xvdc", b"third"),
    ):
        assert shell(f"busybox head -c {len(content)} {path}").stdout == content
    sizes = shell("cat /sys/block/vd*/size").stdout.split()
    assert b"8192" in sizes and b"16384" in sizes
    about = shell("ls -ln /dev/xvda").stdout.split()
    assert about[0] == b"brw-rw----" and about[2:4] == [b"0", b"6"]
    assert about[4] != f"{first.number[0]},".encode(), "the number is the guest's"
    assert shell("echo FIRST | busybox dd of=/dev/xvda conv=notrunc,fsync").ok
    assert loop.written(first, 6) == b"FIRST\n"
    refused = shell("echo NO | busybox dd of=/mnt/deep/xvdb conv=notrunc")
    assert "Operation not permitted" in refused.stderr, "its cgroup"
    refused = shell("echo NO | busybox dd of=/dev/xvdc conv=notrunc,fsync")
    assert not refused.ok, "the disk"
    assert loop.written(third, 5) == b"third"
    opened = {serial.decode() for serial in shell(OPEN_ALL).stdout.split()}
    assert opened == {one.serial for one in disks}, "not the guest's own, whatever its number"
    assert runtime("delete", "--force", "c1").ok


def test_a_pods_vm_gets_it_while_it_runs(
    runtime: oci.Runtime, rootfs: Path, disks: tuple[Loop, Loop, Loop], tmp_path: Path
) -> None:
    first, second, _ = disks
    pod = pods.Pod(runtime, pods.PODMAN, tmp_path, rootfs)
    pod.up()
    pod.run("watch", "sleep 1000")

    def seen() -> bytes:
        return runtime("exec", "watch", "busybox", "sh", "-c", "cat /sys/block/vd*/serial").stdout

    assert b"block-" not in seen()
    pod.run("a", "busybox head -c 5 /dev/xvda; sleep 1000", linux=linux((first, "/dev/xvda", "r")))
    wait_for_output(pod.bundles["a"] / "stdout", b"first")
    assert first.serial.encode() in seen()
    refused = pod.create("b", "true", linux=linux((first, "/dev/xvda", "rw")))
    assert "the VM has the block device" in refused.stderr
    assert "already, and cannot write to it" in refused.stderr
    assert runtime("delete", "--force", "a").ok
    assert first.serial.encode() not in seen()
    script = "echo FIRST >/dev/xvda; busybox sync; busybox head -c 6 /dev/xvdb"
    both = linux((second, "/dev/xvdb", "rw"), (first, "/dev/xvda", "rw"))
    pod.run("c", script, linux=both)
    runtime.wait_for("c", "stopped")
    assert pod.output("c") == "second", pod.errors("c")
    assert loop.written(first, 6) == b"FIRST\n"
    assert b"block-" not in seen()
    for name in ("c", "watch", "pod"):
        assert runtime("delete", "--force", name).ok


MAP = """busybox mkdir -p /tmp/m
busybox mount -t ext4 -o dax=always /dev/xvda /tmp/m
echo written without a cache >/tmp/m/file
busybox grep /tmp/m /proc/mounts
busybox umount /tmp/m
cat /sys/block/pmem*/queue/dax"""


def test_persistent_memory_is_that_for_the_container_too(
    runtime: oci.Runtime, rootfs: Path, memories: tuple[Loop, Loop], tmp_path: Path
) -> None:
    """A file system with direct access, on what the VM was born with and on what was plugged in; each
    container has its own, whatever order they are in."""
    pod = pods.Pod(runtime, pods.PODMAN, tmp_path, rootfs)
    pod.up()
    mount = ("exec", "--cap", "CAP_SYS_ADMIN")
    for name, device in (("a", memories[0]), ("b", memories[1]), ("b", memories[1])):
        pod.run(name, "sleep 1000", linux=linux((device, "/dev/xvda", "rw")))
        mapped = runtime(*mount, name, "busybox", "sh", "-ec", MAP)
        assert mapped.ok, mapped.stderr
        assert b"dax=always" in mapped.stdout and mapped.stdout.endswith(b"1\n")
        assert read_from(device.node, "file") == b"written without a cache\n"
        if name == "b":  # on QEMU it stays in the VM, and is found there again
            assert runtime("delete", "--force", name).ok
    for name in ("a", "pod"):
        assert runtime("delete", "--force", name).ok
