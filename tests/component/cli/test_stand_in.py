"""What engines find where they look for the container."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.cli import World

pytestmark = pytest.mark.root


def test_the_stand_in_has_what_engines_look_at(world: World) -> None:
    pid = world.create()
    for kind in ("pid", "mnt", "ipc", "uts", "net"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}"), kind
    assert os.getsid(pid) == pid
    descriptors = [os.readlink(f"/proc/{pid}/fd/{one}") for one in os.listdir(f"/proc/{pid}/fd")]
    assert len(set(descriptors)) == 1  # the link, and the shell's copy of it
    assert descriptors[0].startswith("socket:")
    assert os.stat(f"/proc/{pid}/root/").st_ino == os.stat(world.tmp / "bundle/rootfs").st_ino
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    assert [line.split()[4] for line in mounts] == ["/", "/proc"]
    status = Path(f"/proc/{pid}/status").read_text()
    assert "NSpid:\t" in status
    assert status.partition("NSpid:\t")[2].split("\n")[0].split()[1] == "1"
    enter = ["nsenter", "--uts", "--target", str(pid), "hostname"]
    assert subprocess.run(enter, capture_output=True, text=True).stdout == "sealed\n"


def test_the_stand_in_is_small(world: World) -> None:
    pid = world.create()
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = [int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Private_")]
    assert sum(private) < 1024  # KiB; a forked Python has 11 000


def test_stray_signals_do_not_end_the_stand_in_but_kill_does(world: World) -> None:
    namespaces = [
        {"type": "mount"},
        {"type": "network"},
    ]  # as with --pid=host: no PID 1 that is immune by itself
    pid = world.create(linux={"namespaces": namespaces})
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1):
        os.kill(pid, number)
    time.sleep(0.1)
    assert world.state()["status"] == "created"
    os.kill(pid, signal.SIGKILL)
    world.wait_for("stopped")


def test_the_stand_in_joins_the_network_namespace_of_the_config(world: World) -> None:
    with subprocess.Popen(["unshare", "--net", "sleep", "1000"]) as other:
        try:
            path = f"/proc/{other.pid}/ns/net"
            while os.readlink(path) == os.readlink("/proc/self/ns/net"):
                time.sleep(0.01)
            pid = world.create(linux={"namespaces": [{"type": "network", "path": path}]})
            assert os.readlink(f"/proc/{pid}/ns/net") == os.readlink(path)
        finally:
            other.kill()


def test_a_root_that_does_not_exist_is_no_reason_to_fail(world: World) -> None:
    pid = world.create(root={"path": "/does/not/exist"})
    assert os.stat(f"/proc/{pid}/root/").st_ino == os.stat("/").st_ino


@pytest.mark.parametrize("kind", ["symlink", "file", "none"])
def test_a_hostile_root_does_not_lead_outside(world: World, kind: str) -> None:
    rootfs = world.tmp / "bundle/rootfs"
    rootfs.mkdir(parents=True)
    if kind == "symlink":
        (rootfs / "proc").symlink_to("/../../../../../../etc")
        (rootfs / "bin").symlink_to("/../../../../../../bin")
    elif kind == "file":
        (rootfs / "proc").write_text("x")
    pid = world.create()
    host = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    assert not [path for path in host if path == "/etc" or path.startswith(str(world.tmp))]
    assert host.count("/proc") == 1
    mounts = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    expected = ["/", "/proc"] if kind == "none" else ["/"]
    assert [line.split()[4] for line in mounts] == expected


def test_the_stand_in_descends_from_create(world: World) -> None:
    """conmon is a subreaper: it inherits the stand-in, and takes its exit status."""
    script = (
        "import ctypes, os, subprocess, sys\n"
        "ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)\n"
        "create, pid_file, start = eval(sys.argv[1])\n"
        "subprocess.run(create, check=True)\n"
        "pid = int(open(pid_file).read())\n"
        "subprocess.run(start, check=True)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    pid_file = str(world.tmp / "pid")
    create = world.command("create", "-b", world.bundle("exit=77"), "--pid-file", pid_file, "c1")
    plan = repr((create, pid_file, world.command("start", "c1")))
    done = subprocess.run(
        ["python3", "-c", script, plan], capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "out\n77\n", done.stderr


def test_stray_descriptors_are_inherited_by_nobody(world: World) -> None:
    reader, writer = os.pipe()
    high = 200
    os.dup2(writer, high)
    try:
        world("create", "-b", world.bundle(), "c1", pass_fds=(writer, high))
    finally:
        os.close(writer)
        os.close(high)
    with os.fdopen(reader, "rb") as stream:
        assert stream.read() == b""  # comes to an end: nobody holds the other side


def test_create_works_without_standard_descriptors(world: World) -> None:
    command = [
        "sh",
        "-c",
        'exec "$@" <&- >&- 2>&-',
        "sh",
        *world.command("create", "-b", world.bundle("exit=5"), "c1"),
    ]
    assert subprocess.run(command, timeout=60).returncode == 0
    assert world("start", "c1").returncode == 0
    world.wait_for("stopped")


def test_a_state_root_with_a_path_longer_than_a_socket_address(world: World) -> None:
    root = world.tmp / ("r" * 120) / ("s" * 120)
    bundle = world.bundle("exit=0")
    base = [str(world.program), "--root", str(root)]
    for arguments in (
        ["create", "-b", bundle, "c" * 64],
        ["start", "c" * 64],
        ["delete", "-f", "c" * 64],
    ):
        assert subprocess.run([*base, *arguments], timeout=60).returncode == 0
    assert os.listdir(root) == []


def test_a_relative_state_root(world: World) -> None:
    bundle = world.bundle()
    for arguments in (["create", "-b", bundle, "c1"], ["start", "c1"], ["delete", "-f", "c1"]):
        command = [str(world.program), "--root", "root", *arguments]
        assert subprocess.run(command, cwd=world.tmp, timeout=60).returncode == 0
    world.assert_nothing_left()
