"""What goes wrong on the way, or later: one line, and nothing left behind."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.cli import SECONDS, World
from sealrun_runtime import store

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("kind", "text", "remedy", "expected"),
    [
        ("key-denied", "decrypt: no", "ask", "decrypt: no; ask"),
        ("vmm-failed", "the VM ended", "look", "pull: the VM ended; look"),
        ("host-unfit", "no qemu", "", "pull: no qemu"),
        ("key-denied", "a\nb\x1b[2J", "", "a b [2J"),
        (
            "program-not-found",
            "executable file `x` not found in $PATH: No such file or directory",
            "check",
            "executable file `x` not found in $PATH: No such file or directory; check",
        ),
        (
            "program-not-executable",
            "open `x`: permission denied",
            "",
            "open `x`: permission denied",
        ),
        ("internal", "no such file or directory", "", "it does not exist"),
    ],
)
def test_a_refused_create_is_one_line_and_leaves_nothing(
    world: World, kind: str, text: str, remedy: str, expected: str
) -> None:
    annotations = {"test.text": text, "test.remedy": remedy}
    pid_file = world.tmp / "pid"
    bundle = world.bundle(f"helper refuse={kind}", annotations=annotations)
    done = world("create", "-b", bundle, "--pid-file", str(pid_file), "c1")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"sealrun: {expected}\n")
    assert world.error() == expected
    assert not pid_file.exists()
    world.assert_nothing_left()


def test_a_shim_that_dies_says_its_last_words(world: World) -> None:
    done = world("create", "-b", world.bundle("die"), "c1")
    assert done.returncode == 1
    assert "the shim ended without an answer: the simulated shim dies here" in done.stderr
    world.assert_nothing_left()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_create_that_is_called_off_leaves_nothing(world: World, number: signal.Signals) -> None:
    with subprocess.Popen(
        world.command("create", "-b", world.bundle("hang helper"), "c1")
    ) as process:
        deadline = time.monotonic() + SECONDS
        while "vmm" not in (world.processes() if (world.root / "c1/processes").exists() else {}):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        helper = world.processes()["vmm"]
        process.send_signal(number)
        assert process.wait(timeout=20) == 1
    assert world.error() == f"interrupted by {number.name}"
    world.assert_nothing_left()
    assert not os.path.exists(f"/proc/{helper}") or "Z" in Path(f"/proc/{helper}/stat").read_text()


def test_a_create_that_is_killed_leaves_what_delete_force_removes(world: World) -> None:
    with subprocess.Popen(world.command("create", "-b", world.bundle("hang"), "c1")) as process:
        deadline = time.monotonic() + SECONDS
        while "stand-in" not in (
            world.processes() if (world.root / "c1/processes").exists() else {}
        ):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    assert world("delete", "--force", "c1").returncode == 0
    world.assert_nothing_left()


def test_plain_delete_leaves_a_create_that_has_only_begun_alone(world: World) -> None:
    """And takes away what one that was killed has left: it is stopped, as for runc."""
    directory = world.root / "c1"
    directory.mkdir()
    state = '{"ociVersion":"1.0.2","id":"c1","status":"creating","pid":0,"bundle":"/b","annotations":{}}'
    (directory / "state.json").write_text(state)
    (directory / "oci.json").touch()
    at_work = store.open_container(str(world.root), "c1")
    at_work.hold()
    done = world("delete", "c1")
    assert done.returncode == 1
    assert "cannot delete container c1 that is not stopped: creating; use --force" in done.stderr
    assert world.state()["status"] == "creating"
    at_work.close()
    assert world.state()["status"] == "stopped"
    assert '"status": "stopped"' in world("list", "--format", "json").stdout
    assert "cannot exec in a stopped container" in world("exec", "c1", "true").stderr
    assert world("delete", "c1").returncode == 0
    world.assert_nothing_left()


def test_a_pid_file_that_cannot_be_written(world: World) -> None:
    done = world("create", "-b", world.bundle(), "--pid-file", "/nowhere/pid", "c1")
    assert "cannot write pid file /nowhere/pid: it does not exist" in done.stderr
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("place", "cause"),
    [("", "is a directory"), ("bundle/config.json/pid", "not a directory")],
)
def test_a_pid_file_that_cannot_be_one(world: World, place: str, cause: str) -> None:
    """It is known before there is a VM, whose boot and pull may take minutes."""
    path = world.tmp / place
    bundle = world.bundle("helper")
    before = sorted(os.listdir(world.tmp))
    for verb in ("create", "run"):
        done = world(verb, "-b", bundle, "--pid-file", str(path), "c1")
        assert done.stderr == f"sealrun: cannot write pid file {path}: {cause}\n"
        assert (done.returncode, world.error()) == (1, f"cannot write pid file {path}: {cause}")
        world.assert_nothing_left()
    assert set(os.listdir(world.tmp)) - {*before} <= {"log", "out", "err", "root"}


@pytest.mark.parametrize("verb", ["create", "run"])
def test_a_bundle_whose_configuration_is_a_pipe(world: World, verb: str) -> None:
    """runc waits for ever for somebody to write."""
    bundle = world.bundle()
    config = f"{bundle}/config.json"
    os.unlink(config)
    os.mkfifo(config)
    done = world(verb, "-b", bundle, "c1")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"sealrun: cannot read {config}: it is a pipe, not a file\n"
    assert os.listdir(world.root) == []


def test_a_namespace_that_is_a_pipe(world: World) -> None:
    os.mkfifo(world.tmp / "ns")
    namespaces = [{"type": "network", "path": f"{world.tmp}/ns"}]
    done = world("create", "-b", world.bundle(linux={"namespaces": namespaces}), "c1")
    assert done.returncode == 1
    assert "cannot start the stand-in: " in done.stderr
    world.assert_nothing_left()


def test_a_console_socket_that_is_none(world: World) -> None:
    os.mkfifo(world.tmp / "pipe")
    bundle = world.bundle(process={"args": ["sh"], "cwd": "/", "terminal": True})
    for path, cause in (
        (world.tmp / "pipe", "connection refused"),
        (world.tmp / "log", "connection refused"),
        (world.tmp / "missing", "it does not exist"),
        (world.tmp, "connection refused"),
    ):
        done = world("create", "-b", bundle, "--console-socket", str(path), "c1")
        assert done.stderr == f"sealrun: cannot send the terminal to {path}: {cause}\n"
        assert done.returncode == 1
        world.assert_nothing_left()


def test_a_namespace_path_that_is_none(world: World) -> None:
    namespaces = [{"type": "network", "path": "/nowhere"}]
    done = world("create", "-b", world.bundle(linux={"namespaces": namespaces}), "c1")
    assert "cannot open network namespace /nowhere: it does not exist" in done.stderr
    world.assert_nothing_left()
    namespaces = [{"type": "network", "path": "/etc/passwd"}]
    done = world("create", "-b", world.bundle(linux={"namespaces": namespaces}), "c1")
    assert "cannot start the stand-in: " in done.stderr
    world.assert_nothing_left()


def test_a_dead_shim_means_stopped(world: World) -> None:
    pid = world.create("helper")
    world("start", "c1")
    helper = world.processes()["vmm"]
    os.kill(world.processes()["shim"], signal.SIGKILL)
    world.wait_for("stopped")
    assert world.state()["pid"] == 0
    assert world("kill", "c1", "9").stderr == "sealrun: container not running\n"
    assert "cannot start a container that has stopped" in world("start", "c1").stderr
    deadline = time.monotonic() + SECONDS
    while os.path.exists(f"/proc/{pid}") and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "the stand-in outlives the shim"
        time.sleep(0.02)
    assert os.path.exists(f"/proc/{helper}/root")
    assert world("delete", "--force", "c1").returncode == 0
    world.assert_nothing_left()
    assert not os.path.exists(f"/proc/{helper}/root")


def test_delete_force_without_environment_and_stdio(world: World) -> None:
    """As conmon's exit command calls it."""
    world.create("helper")
    os.kill(world.processes()["shim"], signal.SIGKILL)
    null = subprocess.DEVNULL
    command = world.command("delete", "--force", "c1")
    done = subprocess.run(command, env={}, stdin=null, stdout=null, stderr=null, timeout=60)
    assert done.returncode == 0
    world.assert_nothing_left()


def test_delete_force_of_a_deaf_shim(world: World) -> None:
    """The socket of a directory whose shim listens and never answers."""
    world.create("deaf helper")
    shim = world.processes()["shim"]
    command = world.command("delete", "--force", "c1")
    environment = {"SEALRUN_TEST": "1"}
    with subprocess.Popen(command, env=environment) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=1)
        os.kill(shim, signal.SIGKILL)  # what the timeout of a minute does otherwise
        assert process.wait(timeout=20) == 0
    world.assert_nothing_left()


def test_a_socket_that_nobody_serves_is_no_living_shim(world: World) -> None:
    directory = world.root / "c1"
    directory.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stale:
        stale.bind(str(directory / "shim.sock"))
    state = (
        '{"ociVersion":"1.0.2","id":"c1","status":"running","pid":9,"bundle":"/b","annotations":{}}'
    )
    (directory / "state.json").write_text(state)
    assert world.state()["status"] == "stopped"
    assert world("delete", "c1").returncode == 0
