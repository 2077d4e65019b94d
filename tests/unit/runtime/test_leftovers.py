"""Nothing outlives a container, and nothing else is harmed."""

import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
    directory.append("processes", f"vmm {sleeper.pid} {leftovers.start_time(sleeper.pid)}")
    leftovers.remove(directory, patience=0)
    assert sleeper.wait(timeout=5) == -9
    assert not os.path.exists(directory.path)


def test_a_shim_gets_the_time_to_end_by_itself(directory: store.Directory) -> None:
    shim = subprocess.Popen(["sh", "-c", "sleep 0.3; exit 7"])
    directory.append("processes", f"shim {shim.pid} {leftovers.start_time(shim.pid)}")
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


def test_of_deletes_that_meet_the_one_that_removed_the_hooks_runs_them(
    directory: store.Directory,
) -> None:
    """Also where the other one removes the directory."""
    directory.write("poststop.json", b"[]")
    other = store.open_container(directory.path.removesuffix("/c1"), "c1")
    assert directory.clear()
    assert not leftovers.remove(other, patience=0)
    assert not os.path.exists(directory.path)
    other.close()


def test_a_delete_that_dies_on_its_way_leaves_hooks_and_state_to_the_next(
    directory: store.Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write("poststop.json", b"[]")
    directory.write("state.json", b"{}")
    for name in ("processes", "shim.json", "zzz"):
        directory.append(name, "")
    with monkeypatch.context() as patched:
        patched.setattr(store.posix, "unlink", _dying(3))
        with pytest.raises(KeyboardInterrupt):
            leftovers.remove(directory, patience=0)
    assert sorted(os.listdir(directory.path)) == ["poststop.json", "state.json"]
    assert leftovers.remove(directory, patience=0)


def _dying(calls: int) -> Callable[..., None]:
    """unlink(2), until it was called so often."""
    unlink, counter = os.unlink, itertools.count(1)

    def dying(*arguments: Any, **options: Any) -> None:
        unlink(*arguments, **options)
        if next(counter) == calls:
            raise KeyboardInterrupt

    return dying


def test_a_process_that_enlists_itself_meanwhile_is_found(
    directory: store.Directory,
    sleeper: "subprocess.Popen[bytes]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was forked by a `create` that has died, and comes in when all others have been looked at."""
    clear = store.Directory.clear

    def late(self: store.Directory) -> bool:
        monkeypatch.undo()
        hooks = clear(self)
        self.append("processes", f"shim {sleeper.pid} {leftovers.start_time(sleeper.pid)}")
        return hooks

    monkeypatch.setattr(store.Directory, "clear", late)
    leftovers.remove(directory, patience=0)
    assert sleeper.wait(timeout=5) == -9
    assert not os.path.exists(directory.path)


def test_a_process_enlists_itself_under_the_hosts_pid(directory: store.Directory) -> None:
    program = (
        "import os, sys\n"
        "from sealrun_runtime import leftovers, store\n"
        "leftovers.enlist(store.open_container(*sys.argv[1:]), 'stand-in')\n"
        "print(os.getpid())"
    )
    root = directory.path.removesuffix("/c1")
    done = subprocess.run(
        ["unshare", "--pid", "--fork", sys.executable, "-c", program, root, "c1"],
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PATH": os.defpath},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "1\n", done.stderr
    role, pid, started = directory.read("processes").split()
    assert role == b"stand-in"
    assert int(pid) > 1
    assert int(started) >= leftovers.start_time(os.getpid())


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


def test_a_process_that_is_gone_and_whose_session_is_not(directory: store.Directory) -> None:
    """Of its number an older kernel says EINVAL. The shim leads the session that its VMM is in."""
    leader = subprocess.Popen(
        ["sh", "-c", "sleep 1000 & read go; echo $!"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    directory.append("processes", f"shim {leader.pid} {leftovers.start_time(leader.pid)}")
    assert leader.stdin is not None
    assert leader.stdout is not None
    leader.stdin.write(b"go\n")
    leader.stdin.flush()
    member = int(leader.stdout.readline())
    leader.wait()
    try:
        leftovers.remove(directory, patience=0)
    finally:
        os.kill(member, 9)
    assert not os.path.exists(directory.path)
    leader.stdin.close()
    leader.stdout.close()


def test_processes_that_are_reaped_while_they_are_looked_at() -> None:
    """Whatever the kernel says of them at that moment (ENOENT, of one in a thousand ESRCH) is no error."""
    for _ in range(50):
        child = os.fork()
        if child == 0:
            os._exit(0)
        process = os.pidfd_open(child)
        reaper = threading.Thread(target=os.waitpid, args=(child, 0))
        reaper.start()
        while not leftovers._has_ended(process):
            pass
        reaper.join()
        assert leftovers._has_ended(process)
        os.close(process)


def test_a_process_that_cannot_be_looked_at_has_not_ended() -> None:
    """A kernel says so, too, of one that is reaped between two steps of its own: the next look tells."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            status = int(leftovers._has_ended(os.pidfd_open(1)))
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
