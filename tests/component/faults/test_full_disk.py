"""The state root's file system is full, or fills up: an honest error, and nothing that stays."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from component.faults.conftest import Host, wait_until
from fixtures import oci
from fixtures.remains import Remains

pytestmark = pytest.mark.root

PAGE = 4096
FULL = "no space left on device"


class Disk:
    """A small file system, which a file of the test's fills."""

    def __init__(self, mount: Path) -> None:
        self.mount = mount
        self._filler = mount / "filler"

    def fill(self, spare_pages: int = 0) -> None:
        """Leave so many pages."""
        self.empty()
        with self._filler.open("wb", buffering=0) as file:
            free = os.statvfs(self.mount).f_bavail - spare_pages
            for _ in range(free):
                file.write(bytes(PAGE))
        assert os.statvfs(self.mount).f_bavail == spare_pages

    def empty(self) -> None:
        """Leave all of it."""
        self._filler.unlink(missing_ok=True)


@pytest.fixture
def disk(host: Host, tmp_path: Path) -> Iterator[Disk]:
    """What the state root of `host` lies on."""
    mount = tmp_path / "disk"
    mount.mkdir()
    options = "size=512k,nr_inodes=64,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "disk", str(mount)], check=True)
    root = mount / "root"
    root.mkdir()
    host.runtime = oci.Runtime("sealrun", host.runtime.binary, root)
    host.remains = Remains(root, host.id, network=host.network)
    try:
        with host.remains:
            yield Disk(mount)
            host.runtime("delete", "--force", host.id)
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_create_with_ever_more_space(host: Host, disk: Disk) -> None:
    """Until it has enough; what it could not have is undone."""
    bundle = host.bundle()
    refused = 0
    for spare in range(64):
        disk.fill(spare)
        creation = host.begin(bundle)
        if creation.wait() == 0:
            break
        refused += 1
        said = creation.said()
        assert len(said.splitlines()) == 1, said
        assert FULL in said.lower() or "cannot be noted" in said, said
        assert host.remains.all(guests=False) == [], said
        host.remains.wait_until_none()
    assert refused > 4
    host.force_away()


def test_create_with_ever_more_files(host: Host, disk: Disk) -> None:
    """A file system can be out of inodes, too."""
    bundle = host.bundle()
    refused = 0
    for spare in range(64):
        places = [disk.mount / f"inode-{number}" for number in range(64)]
        for place in places:
            place.unlink(missing_ok=True)
        for place in places[: os.statvfs(disk.mount).f_ffree - spare]:
            place.touch()
        assert os.statvfs(disk.mount).f_ffree == spare
        creation = host.begin(bundle)
        if creation.wait() == 0:
            break
        refused += 1
        assert len(creation.said().splitlines()) == 1, creation.said()
        assert FULL in creation.said().lower(), creation.said()
        assert host.remains.all(guests=False) == []
        host.remains.wait_until_none()
    assert refused > 4
    host.force_away()


def test_it_fills_up_before_the_start(host: Host, disk: Disk) -> None:
    """A program whose state cannot be written is not left running behind the caller's back."""
    host.create()
    disk.fill()
    started = host.runtime("start", host.id)
    assert started.status == 1
    assert FULL in started.stderr.lower(), started.stderr
    assert len(started.stderr.splitlines()) == 1
    wait_until(lambda: host.remains.processes() == [], f"{host.remains.processes()}")
    host.runtime.wait_for(host.id, "stopped")
    host.force_away()


@pytest.mark.parametrize("ending", ["exit", "kill", "vmm", "shim", "delete"])
def test_it_fills_up_while_the_program_runs(host: Host, disk: Disk, ending: str) -> None:
    """However it ends then, it ends: the exit code is the stand-in's to tell."""
    host.create(host.bundle("trap 'exit 42' TERM; touch /ready; while :; do sleep 0.1; done"))
    host.start()
    wait_until(
        lambda: host.runtime("exec", host.id, "test", "-e", "/ready").ok, "it heeds no signal yet"
    )
    disk.fill()
    if ending == "exit":
        assert host.runtime("kill", host.id, "TERM").ok
    elif ending == "kill":
        assert host.runtime("kill", host.id, "KILL").ok
    elif ending in ("vmm", "shim"):
        host.sandbox.kill(ending, signal.SIGKILL)
    if ending != "delete":
        state = host.runtime.wait_for(host.id, "stopped")
        assert state["pid"] == 0
        wait_until(lambda: host.remains.processes() == [], f"{host.remains.processes()}")
    host.force_away()


def test_it_is_full_while_others_are_asked(host: Host, disk: Disk) -> None:
    """Nothing but a change of the state needs space."""
    host.create()
    host.start()
    disk.fill()
    executed = host.runtime("exec", host.id, "echo", "hello")
    assert (executed.status, executed.stdout) == (0, b"hello\n"), executed.stderr
    assert host.runtime("ps", host.id).ok
    assert host.runtime("kill", host.id, "0").ok
    paused = host.runtime("pause", host.id)
    assert FULL in paused.stderr.lower(), paused.stderr
    assert host.runtime.state(host.id)["status"] == "running"
    disk.empty()
    assert host.runtime("exec", host.id, "true").ok, "it was not left paused"
    host.force_away()
