"""Every verb in its turn, and what it says about itself."""

import base64
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fixtures.cli import SECONDS, World

pytestmark = pytest.mark.root


def test_a_whole_life(world: World) -> None:
    pid = world.create()
    assert world.state() == {
        "ociVersion": "1.0.2",
        "id": "c1",
        "status": "created",
        "pid": pid,
        "bundle": str(world.tmp / "bundle"),
        "annotations": {"io.sealrun.image": "r.test/a:1", "test.shim": ""},
    }
    assert world("start", "c1").returncode == 0
    assert world.state()["status"] == "running"
    for harmless in ("0", "28", "SIGCONT"):
        assert world("kill", "c1", harmless).returncode == 0
    assert world.state()["status"] == "running"
    assert world("kill", "c1", "KILL").returncode == 0
    world.wait_for("stopped")
    assert world.state()["pid"] == 0
    done = world("delete", "c1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    world.assert_nothing_left()


def test_create_says_nothing_and_logs_nothing(world: World) -> None:
    done = world("create", "--bundle", world.bundle(), "c1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert world.log.read_text() == ""


def test_debug_logs_the_phases(world: World) -> None:
    world("--debug", "create", "--bundle", world.bundle(), "c1")
    lines = [json.loads(line) for line in world.log.read_text().splitlines()]
    assert [(line["level"], line["msg"]) for line in lines] == [
        ("info", "boot: starting the virtual machine"),
        ("info", "pull: layer 1 of 1 [31m"),
    ]


def test_a_terminal_sees_the_phases(world: World) -> None:
    master, slave = os.openpty()
    try:
        subprocess.run(
            world.command("create", "-b", world.bundle(), "c1"), stderr=slave, timeout=60
        )
        shown = os.read(master, 4096).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert "sealrun: boot: starting the virtual machine" in shown
    assert "\x1b" not in shown


def test_run_passes_output_and_exit_code_and_leaves_nothing(world: World) -> None:
    done = world("run", "--bundle", world.bundle("exit=42"), "c1")
    assert (done.returncode, done.stdout, done.stderr) == (42, "out\n", "")
    world.assert_nothing_left()


def test_run_detached_leaves_a_running_container(world: World) -> None:
    assert world("run", "--detach", "--bundle", world.bundle(), "c1").returncode == 0
    assert world.state()["status"] == "running"


def test_run_forwards_signals(world: World) -> None:
    with subprocess.Popen(world.command("run", "-b", world.bundle(), "c1")) as process:
        deadline = time.monotonic() + SECONDS
        while not (world.root / "c1/state.json").exists() or world.state()["status"] != "running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 128 + 15
    world.assert_nothing_left()


def test_list(world: World) -> None:
    assert world("list").stdout.split() == ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"]
    pid = world.create()
    assert world("list", "-q").stdout == "c1\n"
    row = world("list").stdout.splitlines()[1].split()
    assert row[:3] == ["c1", str(pid), "created"]
    (entry,) = json.loads(world("list", "--format=json").stdout)
    assert (entry["id"], entry["status"], entry["owner"]) == ("c1", "created", "root")


def test_version_and_help_and_features(world: World) -> None:
    for option in ("--version", "-v"):
        first, second = world(option).stdout.splitlines()
        assert first.startswith("sealrun version ")
        assert second.startswith("spec: 1.")
    assert "create [--bundle DIR]" in world("--help").stdout
    assert world("kill", "--help").stdout == "usage: sealrun kill [--all] ID [SIGNAL]\n"
    features = json.loads(world("features").stdout)
    assert features["ociVersionMin"] == "1.0.0"
    assert features["linux"]["cgroup"]["v2"] is True


def test_global_options_of_runc_are_taken(world: World) -> None:
    options = ["--systemd-cgroup", "--cgroup-manager=cgroupfs", "--rootless", "auto", "--criu", "x"]
    assert world(*options, "--debug", "list").returncode == 0


def test_init_data(world: World) -> None:
    good = world.tmp / "good.toml"
    good.write_text('version = "0.1.0"\nalgorithm = "sha256"\n[data]\n')
    done = world("init-data", str(good))
    assert done.returncode == 0, done.stderr
    annotations = {"io.sealrun.init-data": done.stdout.strip()}
    world.create(annotations=annotations)
    handed = json.loads((world.root / "c1/shim.json").read_text())
    assert base64.b64decode(handed["init_data"]) == good.read_bytes()
    bad = world.tmp / "bad.toml"
    bad.write_text("version = 1")
    assert world("init-data", str(bad)).stderr.startswith(f"sealrun: cannot use {bad}: ")
    bundle = world.bundle(annotations={"io.sealrun.init-data": "!"})
    done = world("create", "-b", bundle, "c2")
    assert done.stderr.startswith("sealrun: cannot read annotation io.sealrun.init-data: ")


@pytest.mark.parametrize("empty", ["", " \n"])
@pytest.mark.parametrize(
    "name", ["io.sealrun.init-data", "io.katacontainers.config.hypervisor.cc_init_data"]
)
def test_init_data_that_a_shell_left_empty_is_not_none_at_all(
    world: World, name: str, empty: str
) -> None:
    """As `--annotation io.sealrun.init-data="$(sealrun init-data FILE)"` does where FILE has an error."""
    done = world("create", "-b", world.bundle(annotations={name: empty}), "c1")
    assert done.returncode == 1
    assert done.stderr.startswith(f"sealrun: annotation {name} is empty; look at what ")
    world.assert_nothing_left()


def test_what_the_shim_is_handed(world: World) -> None:
    bundle = world.bundle(annotations={"io.sealrun.memory": "2048"})
    world("--debug", "create", "-b", bundle, "c1")
    directory = world.root / "c1"
    handed = json.loads((directory / "shim.json").read_text())
    assert handed["config"]["vm"]["memory"] == 2048
    assert handed["container"]["rootfs"] == f"{bundle}/rootfs"
    assert (handed["image"], handed["debug"]) == ("r.test/a:1", True)
    assert handed["guest_image"] == str(world.program.parent.parent / "share/sealrun/guest")
    assert (directory / "oci.json").read_bytes() == Path(bundle, "config.json").read_bytes()
    assert oct(directory.stat().st_mode & 0o777) == "0o700"
