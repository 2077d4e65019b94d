"""Nothing outlives a container, and nothing else is harmed."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from sealrun_runtime import leftovers, store
from sealrun_runtime.errors import HostError


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[store.Directory]:
    directory = store.make_container(str(tmp_path), "c1")
    yield directory
    directory.close()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "1000"])
    yield process
    process.kill()
    process.wait()


def test_start_times_tell_processes_apart() -> None:
    own = leftovers.start_time(os.getpid())
    assert own > 0
    assert leftovers.start_time(os.getpid()) == own
    assert leftovers.start_time(0x3FFFFFFF) == 0


def test_a_name_that_looks_like_the_rest_of_stat_does_not_confuse(tmp_path: Path) -> None:
    program = tmp_path / "x) R 1 2 3"
    program.symlink_to("/bin/sleep")
    process = subprocess.Popen([str(program), "1000"])
    try:
        assert leftovers.start_time(process.pid) >= leftovers.start_time(os.getpid())
    finally:
        process.kill()
        process.wait()


def test_recorded_processes_are_killed(
    directory: store.Directory, sleeper: "subprocess.Popen[bytes]"
) -> None:
    leftovers.record(directory, "vmm", sleeper.pid)
    leftovers.remove(directory, patience=0)
    assert sleeper.wait(timeout=5) == -9
    assert not os.path.exists(directory.path)


def test_a_shim_gets_the_time_to_end_by_itself(directory: store.Directory) -> None:
    shim = subprocess.Popen(["sh", "-c", "sleep 0.3; exit 7"])
    leftovers.record(directory, "shim", shim.pid)
    leftovers.remove(directory, patience=20)
    assert shim.wait(timeout=5) == 7


def test_a_reused_id_is_not_killed(
    directory: store.Directory, sleeper: "subprocess.Popen[bytes]"
) -> None:
    started = leftovers.start_time(sleeper.pid)
    directory.append("processes", f"vmm {sleeper.pid} {started - 1}")
    directory.append("processes", f"shim {sleeper.pid} 0")
    directory.append("processes", f"stand-in {sleeper.pid}")  # cut short by a crash
    directory.append("processes", "shim 1073741823 5")
    leftovers.remove(directory, patience=0)
    assert sleeper.poll() is None


def test_cgroups_go_deepest_first_and_missing_ones_do_not_matter(
    directory: store.Directory, tmp_path: Path
) -> None:
    outer, inner = tmp_path / "cg/outer", tmp_path / "cg/outer/inner"
    inner.mkdir(parents=True)
    for path in (outer, inner, tmp_path / "cg/missing"):
        directory.append("cgroups", str(path))
    leftovers.remove(directory, patience=0)
    assert not outer.exists()


def test_what_cannot_be_removed_keeps_the_directory_for_another_try(
    directory: store.Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "CGROUP_SECONDS", 0.1)
    busy = tmp_path / "cg/busy"
    busy.parent.mkdir()
    busy.touch()
    directory.append("cgroups", str(tmp_path / "cg"))
    with pytest.raises(HostError, match="cannot remove cgroup"):
        leftovers.remove(directory, patience=0)
    busy.unlink()
    leftovers.remove(directory, patience=0)
    assert not os.path.exists(directory.path)


def test_a_parent_that_other_containers_are_in_stays(
    directory: store.Directory, tmp_path: Path
) -> None:
    """Podman puts all its containers below one cgroup; who made it is not who leaves it last."""
    ours, others = tmp_path / "parent/ours", tmp_path / "parent/others"
    for path in (ours, others):
        path.mkdir(parents=True)
    for path in (ours.parent, ours):
        directory.append("cgroups", str(path))
    leftovers.remove(directory, patience=0)
    assert not ours.exists()
    assert others.exists()
    assert not os.path.exists(directory.path)
