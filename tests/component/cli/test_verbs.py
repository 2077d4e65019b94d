"""pause, resume, update, ps, events, spec."""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.cli import World

pytestmark = pytest.mark.root


def running(world: World, shim: str = "") -> int:
    pid = world.create(shim)
    assert world("start", "c1").returncode == 0
    return pid


def last_request(world: World) -> list[str]:
    line: list[str] = json.loads((world.root / "c1/requests").read_text().splitlines()[-1])
    return line


def ok(world: World, *arguments: str) -> str:
    done = world(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return str(done.stdout)


def failure(world: World, *arguments: str) -> str:
    done = world(*arguments)
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr.removeprefix("sealrun: ").rstrip()


def test_pause_and_resume(world: World) -> None:
    pid = running(world)
    assert ok(world, "pause", "c1") == ""
    assert (world.state()["status"], world.state()["pid"]) == ("paused", pid)
    assert ok(world, "list").splitlines()[1].split()[2] == "paused"
    assert failure(world, "pause", "c1") == "container not running"
    assert "not stopped: paused" in failure(world, "delete", "c1")
    assert failure(world, "start", "c1") == "start in state paused"
    ok(world, "resume", "c1")
    assert world.state()["status"] == "running"
    assert failure(world, "resume", "c1") == "container not paused"


def test_an_empty_signal_is_none(world: World) -> None:
    """As for runc: it is TERM."""
    running(world)
    ok(world, "kill", "c1", "")
    world.wait_for("stopped")


def test_a_paused_container_can_be_killed_and_deleted(world: World) -> None:
    running(world)
    ok(world, "pause", "c1")
    ok(world, "kill", "c1", "KILL")
    world.wait_for("stopped")
    for verb in ("pause", "update", "ps", "events"):
        assert failure(world, verb, "c1") == "container not running"
    assert failure(world, "resume", "c1") == "container not paused"
    ok(world, "delete", "c1")
    running(world)
    ok(world, "pause", "c1")
    ok(world, "delete", "--force", "c1")
    world.assert_nothing_left()


def test_a_paused_container_whose_shim_died_is_stopped(world: World) -> None:
    running(world)
    ok(world, "pause", "c1")
    os.kill(world.processes()["shim"], 9)
    world.wait_for("stopped")


def test_update_by_options(world: World) -> None:
    running(world)
    options = ["--memory", "512m", "--memory-swap=-1", "--memory-reservation", "1.5GiB"]
    options += ["--cpu-period", "100000", "--cpu-quota", "-1", "--cpu-share", "512"]
    options += ["--cpuset-cpus", "0-1", "--cpuset-mems", "0", "--pids-limit", "99"]
    options += ["--blkio-weight", "500", "--kernel-memory", "1g", "--kernel-memory-tcp", "1g"]
    ok(world, "update", *options, "c1")
    verb, container, resources = last_request(world)
    assert (verb, container) == ("update", "c1")
    assert json.loads(resources) == {
        "memory": {"limit": 512 << 20, "swap": -1, "reservation": 3 << 29},
        "cpu": {"period": 100000, "quota": -1, "shares": 512, "cpus": "0-1", "mems": "0"},
        "pids": {"limit": 99},
        "blockIO": {"weight": 500},
    }


@pytest.mark.parametrize("option", ["--resources=FILE", "-r FILE", "--resources -", "-r -"])
def test_update_by_file_or_stdin(world: World, option: str) -> None:
    running(world)
    content = '{"memory":{"limit":134217728,"swap":268435456},"cpu":{"quota":50000}, "rdma": null}'
    path = world.tmp / "resources.json"
    path.write_text(content)
    # As Podman and CRI-O call it: an option beside it does not count.
    arguments = [*option.replace("FILE", str(path)).split(), "--memory", "1g", "c1"]
    with open(path) as stdin:
        subprocess.run(world.command("update", *arguments), stdin=stdin, check=True, timeout=60)
    assert last_request(world)[2] == content


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--memory", "much"], "option --memory does not take much; see sealrun update --help"),
        (["--cpu-quota", "1.5"], "option --cpu-quota does not take 1.5; see sealrun update --help"),
        (["--blkio-weight", "2000"], "$.blockIO.weight: expected `int` <= 1000"),
        (["--cpuset-cpus", "a"], "$.cpu.cpus: it is not a list of numbers, such as 0-2,7"),
        (
            ["--cpu-rt-period", "1"],
            "option --cpu-rt-period is not supported: a guest has no such limit",
        ),
        (["--resources", "/nowhere"], "cannot read /nowhere: it does not exist"),
        (["--resources", "-"], "cannot read stdin: input data was truncated"),
        (["--resources", "FILE"], "$.cpu.realtimeRuntime: the guest has no real-time groups"),
    ],
)
def test_updates_that_are_refused(world: World, arguments: list[str], text: str) -> None:
    running(world)
    path = world.tmp / "resources"
    path.write_text('{"cpu": {"realtimeRuntime": 1}}')
    arguments = [one.replace("FILE", str(path)) for one in arguments]
    assert failure(world, "update", *arguments, "c1") == text


def test_what_has_no_effect_is_said_in_the_log(world: World) -> None:
    running(world)
    arguments = ["--memory", "1g", "--memory-swap", "2g", "--cpuset-cpus", "0", "c1"]
    ok(world, "--debug", "update", *arguments)
    process = world.tmp / "process.json"
    process.write_text('{"args": ["exit", "0"], "cwd": "/", "selinuxLabel": "x"}')
    done = world("--debug", "exec", "--process", str(process), "c1")
    assert done.returncode == 0
    words = [json.loads(line)["msg"] for line in world.log.read_text().splitlines()]
    assert words == [
        "$.cpu.cpus is left out: the numbers are the host's: on cgroup v2 it holds the VM to them",
        "$.memory.swap is left out: the guest has no swap",
        "$.selinuxLabel is left out: the guest has no SELinux",
    ]


def test_ps(world: World) -> None:
    pid = running(world)
    assert json.loads(ok(world, "ps", "--format", "json", "c1")) == [pid]
    table = ok(world, "ps", "c1")
    assert [line.split() for line in table.splitlines()] == [
        ["UID", "PID", "PPID", "CMD"],
        ["33", "7", "1", "sleep", "[31m", "9"],
    ]
    assert ok(world, "ps", "c1", "-o", "pid") == table  # what is for ps(1) is ignored
    process = world.tmp / "process.json"
    process.write_text('{"args": ["report"], "cwd": "/"}')
    pid_file = world.tmp / "exec-pid"
    ok(world, "exec", "-d", "-p", str(process), "--pid-file", str(pid_file), "c1")
    assert json.loads(ok(world, "ps", "-f", "json", "c1")) == [pid, int(pid_file.read_text())]


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_stats_once(world: World) -> None:
    running(world)
    data = {"pids": {"current": 1}, "memory": {"raw": {"oom_kill": 1}}}
    assert events(ok(world, "events", "--stats", "c1")) == [
        {"type": "stats", "id": "c1", "data": data}
    ]


@pytest.mark.parametrize("interval", ["50ms", "1h"])
def test_events_until_the_end(world: World, interval: str) -> None:
    running(world)
    command = world.command("events", "--interval", interval, "c1")
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        first = [process.stdout.readline() for _ in range(2)]
        if interval == "50ms":
            first += [process.stdout.readline() for _ in range(3)]
        started = time.monotonic()
        ok(world, "kill", "c1", "9")
        rest, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 30
    assert process.returncode == 0
    kinds = [one["type"] for one in events("".join(first) + rest)]
    assert kinds[:2] == ["stats", "oom"]
    assert set(kinds[2:]) <= {"stats"}  # the same kill is told once


def test_spec_writes_what_create_takes(world: World) -> None:
    ok(world, "spec", "--bundle", str(world.tmp))
    path = world.tmp / "config.json"
    first = json.loads(path.read_text())
    assert first["process"]["args"] == ["sh"]
    text = failure(world, "spec", "-b", str(world.tmp))
    assert text == f"{path} exists already; remove it first"
    path.unlink()
    ok(world, "spec", "--rootless", "--bundle", str(world.tmp))
    assert {"type": "user"} in json.loads(path.read_text())["linux"]["namespaces"]


def test_spec_writes_what_runc_writes(world: World) -> None:
    """But for the name of the host."""
    runc = Path("/usr/sbin/runc")
    if not runc.exists():
        pytest.skip("runc is not installed")
    for options in ([], ["--rootless"]):
        ours, theirs = world.tmp / "ours", world.tmp / "theirs"
        documents = []
        for directory, program in ((ours, str(world.program)), (theirs, str(runc))):
            directory.mkdir(exist_ok=True)
            command = [program, "spec", *options, "--bundle", str(directory)]
            subprocess.run(command, check=True, timeout=60)
            path = directory / "config.json"
            documents.append(json.loads(path.read_text()))
            path.unlink()
        for document in documents:
            del document["hostname"], document["ociVersion"]
        assert documents[0] == documents[1]
