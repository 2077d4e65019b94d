"""The scratch disk in a real VM: more than fits into its memory, and what the host can see and do.

The host's side of the disk is the file without a name that QEMU has open. What is read in the guest is
read with O_DIRECT: from the disk, not from the guest's memory.
"""

import errno
import functools
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import layers, oci
from fixtures import registry as registries
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.registry, pytest.mark.root]

MIB = 1 << 20
MEMORY_MIB = 256
BIG_MIB = 264
SCRATCH_MIB = 300
BLOCK = 4096
BLOCKS = 64
MARKER = b"a marker that the host must not find "
NAME = b"a-name-that-the-host-must-not-find"
WRITTEN = b"what-the-container-wrote-and-the-host-must-not-find"
SCRIPT = f"for n in $(seq 2000); do echo {WRITTEN.decode()} $n; done >/{NAME.decode()}; sleep 1000"
# Many that make files at once, in directories that the file system puts beside each other.
CROWD = (
    "mkdir /crowd; for n in $(seq 12); do (for m in $(seq 12); do mkdir -p /crowd/$n/$m; "
    "for f in $(seq 12); do echo $f >/crowd/$n/$m/$f; done; done) & done; wait; "
    "sync; cat /crowd/*/*/* | wc -l"
)
# For each number of a block of a file a line: its digest, or why it cannot be read.
READ = (
    "for n in {}; do dd if={} bs=4096 skip=$n count=1 iflag=direct 2>/tmp/said >/tmp/block "
    "&& sha256sum </tmp/block || head -1 /tmp/said; done"
)


@functools.cache
def big() -> bytes:
    """Compresses well, and no two blocks are alike."""
    lines = (b"%s%08d\n" % (MARKER, n) for n in range(BIG_MIB * MIB // (len(MARKER) + 9)))
    return b"".join(lines).ljust(BIG_MIB * MIB, b".")


@pytest.fixture(scope="module")
def annotations(
    tmp_path_factory: pytest.TempPathFactory, registry: registries.Registry
) -> workloads.Annotations:
    layout = tmp_path_factory.mktemp("big") / "layout"
    tar = layers.tar([layers.file("big", big())])
    layers.write_layout(layout, [workloads.busybox_tar(), tar], process={"Cmd": ["/bin/sh"]})
    digest = registries.push(layout, registry, "test/big:1")
    image = f"{registry.address}/test/big@{digest}"
    size = {"io.sealrun.memory": str(MEMORY_MIB), "io.sealrun.scratch": str(SCRATCH_MIB)}
    return workloads.open_annotations(image, registry.address) | size


@pytest.fixture(scope="module")
def runtime(
    tmp_path_factory: pytest.TempPathFactory, annotations: workloads.Annotations
) -> Iterator[oci.Runtime]:
    binary = shutil.which("sealrun")
    assert binary, "sealrun is not installed: run tests/run"
    runtime = oci.Runtime("sealrun", binary, tmp_path_factory.mktemp("state"), annotations)
    yield runtime
    runtime.clean()


@pytest.fixture(scope="module")
def disk(
    runtime: oci.Runtime, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[int]:
    """The host's file of a container that runs, open for reading and writing."""
    place = tmp_path_factory.mktemp("running")
    runtime.run(oci.bundle(place / "bundle", rootfs, SCRIPT, runtime.annotations))
    opened = os.open(host_file(runtime), os.O_RDWR)
    yield opened
    os.close(opened)


def host_file(runtime: oci.Runtime) -> str:
    lines = (runtime.root / "c1/processes").read_text().splitlines()
    pid = next(line.split()[1] for line in lines if line.startswith("vmm "))
    for path in Path(f"/proc/{pid}/fd").iterdir():
        if path.stat().st_size == SCRATCH_MIB * MIB and path.stat().st_nlink == 0:
            return str(path)
    raise AssertionError("QEMU has no such file open")


def inside(runtime: oci.Runtime, script: str) -> str:
    done = runtime("exec", "c1", "/bin/sh", "-c", script)
    assert done.ok, done.stderr
    return done.stdout.decode()


def block(data: bytes, at: int) -> bytes:
    return data[at : at + BLOCK]


def whole_file(disk: int) -> bytes:
    return os.pread(disk, SCRATCH_MIB * MIB, 0)


def written(disk: int) -> Iterator[tuple[int, bytes]]:
    """The parts of the host's file that have content: offset, bytes."""
    end = 0
    size = os.fstat(disk).st_size
    while end < size:
        try:
            start = os.lseek(disk, end, os.SEEK_DATA)
        except OSError:  # ENXIO: nothing follows
            return
        end = os.lseek(disk, start, os.SEEK_HOLE)
        yield start, os.pread(disk, end - start, start)


def test_an_image_that_is_larger_than_the_memory_runs(disk: int, runtime: oci.Runtime) -> None:
    places = [*range(0, BIG_MIB * MIB // BLOCK, 500)]
    read = READ.format(" ".join(map(str, places)), "/big")
    said = inside(runtime, f"sync; stat -c %s /big; head -1 /proc/meminfo; {read}").splitlines()
    assert int(said[0]) == BIG_MIB * MIB
    assert int(said[1].split()[1]) < MEMORY_MIB << 10
    expected = [block(big(), n * BLOCK) for n in places]
    assert said[2:] == [f"{hashlib.sha256(one).hexdigest()}  -" for one in expected]
    assert sum(len(data) for _, data in written(disk)) > BIG_MIB * MIB


def test_the_host_finds_nothing_in_it(disk: int, runtime: oci.Runtime) -> None:
    inside(runtime, "sync")
    content = b"".join(data for _, data in written(disk))
    for secret in (MARKER, NAME, WRITTEN, workloads.SECRET, b"busybox", b"lost+found"):
        assert secret not in content
    # Ciphertext does not compress, and this does to a tenth.
    blocks = {content[n : n + 64] for n in range(0, len(content), BLOCK)}
    assert len(blocks) > BIG_MIB * MIB // BLOCK


def test_whoever_makes_files_at_once_reads_no_block_that_was_never_written(
    disk: int, runtime: oci.Runtime
) -> None:
    """ext4 reads a block of its inode tables that is new where two of its inodes are taken at once."""
    assert inside(runtime, f"{CROWD}; rm -r /crowd").split() == [str(12**3)]
    assert inside(runtime, "dmesg | grep -c -e EXT4-fs -e AEAD; true") == "0\n"


def test_what_the_host_changes_is_an_error_and_never_other_bytes(
    disk: int, runtime: oci.Runtime
) -> None:
    write = f"dd if=/dev/urandom of=/victim bs={BLOCK} count={BLOCKS} conv=notrunc 2>&1; sync"
    inside(runtime, f"{write}; sync")
    before = whole_file(disk)
    inside(runtime, write)
    after = whole_file(disk)
    changed = {n for n in range(0, len(after), BLOCK) if block(before, n) != block(after, n)}
    # Its blocks are in groups of a chunk; tags, and what the file system writes of its own, are in smaller ones.
    first = next(n for n in sorted(changed) if changed.issuperset(range(n, n + 4 * BLOCK, BLOCK)))
    read = READ.format(" ".join(map(str, range(BLOCKS))), "/victim")
    whole = inside(runtime, read).splitlines()
    assert len(set(whole)) == BLOCKS
    flipped = bytes(byte ^ 1 for byte in block(after, first))
    os.pwrite(disk, flipped, first)
    one, two = first + 2 * BLOCK, first + 3 * BLOCK
    os.pwrite(disk, block(after, one), two)
    os.pwrite(disk, block(after, two), one)
    seen = inside(runtime, read).splitlines()
    assert len(seen) == BLOCKS
    differ = {now for now, then in zip(seen, whole, strict=True) if now != then}
    assert sum(now != then for now, then in zip(seen, whole, strict=True)) == 3, seen
    assert differ == {f"dd: /victim: {os.strerror(errno.EILSEQ)}"}  # dm-crypt's word for it


def test_a_full_disk_is_an_error_of_the_one_who_writes(disk: int, runtime: oci.Runtime) -> None:
    said = inside(runtime, "dd if=/dev/zero of=/fill bs=65536 2>&1 && echo fits; rm /fill")
    assert "No space left on device" in said
    assert "fits" not in said
    assert inside(runtime, "echo on >/on; cat /on") == "on\n"


def test_it_can_be_deleted_and_leaves_nothing(disk: int, runtime: oci.Runtime) -> None:
    assert runtime("delete", "--force", "c1").ok
    deadline = time.monotonic() + 30
    while users := holders(disk):
        assert time.monotonic() < deadline, users
        time.sleep(0.1)
    assert list(runtime.root.iterdir()) == []


def holders(disk: int) -> list[str]:
    """Other processes that have the file open."""
    wanted = os.fstat(disk)
    found = []
    for path in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            status = path.stat()
        except OSError:
            continue
        if os.path.samestat(status, wanted) and path.parts[2] != str(os.getpid()):
            found.append(str(path))
    return found


def test_a_host_without_space_is_an_error_and_never_silence(
    runtime: oci.Runtime,
    rootfs: Path,
    tmp_path: Path,
    busybox_annotations: workloads.Annotations,
    operator_settings: Callable[[str], None],
) -> None:
    """The disk is larger than what the host has for it."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", small], check=True)
    try:
        operator_settings(f'[vm]\nscratch_directory = "{small}"\nscratch = 96\n')
        script = "head -c 40000000 /dev/urandom >/fill; sync; echo said; sleep 1000"
        bundle = oci.bundle(tmp_path / "bundle", rootfs, script, busybox_annotations)
        runtime.run(bundle, "c3")
        state = runtime.wait_for("c3", "stopped", seconds=180)
        reason = state["annotations"]["io.sealrun.exit-reason"]
        assert "the scratch disk fails: what was written is lost" in reason
        assert runtime("delete", "--force", "c3").ok
    finally:
        subprocess.run(["umount", small], check=True)
    assert list(runtime.root.iterdir()) == []


def test_an_image_that_does_not_fit_is_refused_with_the_sizes(
    runtime: oci.Runtime, rootfs: Path, tmp_path: Path
) -> None:
    small = runtime.annotations | {"io.sealrun.scratch": "16"}
    created = runtime.create(oci.bundle(tmp_path / "bundle", rootfs, "true", small), "c2")
    assert not created.ok
    assert "sealrun: pull: " in created.stderr
    assert "needs more than" in created.stderr
    assert "MiB are free" in created.stderr or "files are free" in created.stderr
    assert "io.sealrun.scratch" in created.stderr
    assert runtime("delete", "--force", "c2").ok
    assert list(runtime.root.iterdir()) == []
