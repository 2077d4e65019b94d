"""The runtime-spec's life cycle, driven through the command line; runc runs the same cases.

Differences that are on purpose stand in `DIFFERENCES`, each with its reason.
"""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import oci

pytestmark = [pytest.mark.vm, pytest.mark.root]

DIFFERENCES = {
    "delete of an unknown id": "containerd deletes twice and Podman without a look: sealrun says 0, "
    "runc says 1",
}


@pytest.fixture(params=["runc", "sealrun"])
def runtime(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[oci.Runtime]:
    binary = shutil.which(request.param)
    assert binary, f"{request.param} is not installed: run tests/run"
    annotations: dict[str, str] = {}
    if request.param == "sealrun":
        annotations = request.getfixturevalue("busybox_annotations")
    runtime = oci.Runtime(request.param, binary, tmp_path / "root", annotations)
    yield runtime
    runtime.clean()


def wait_for_output(path: Path, text: bytes, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while text not in path.read_bytes():
        assert time.monotonic() < deadline, path.read_bytes()
        time.sleep(0.05)


def test_a_whole_life(runtime: oci.Runtime, make) -> None:
    script = "trap 'echo ended; exit 0' TERM; echo started; while :; do sleep 0.1; done"
    bundle = make(script)
    assert runtime.state("c1") is None
    pid_file = bundle / "pid"
    created = runtime.create(bundle, "c1", "--pid-file", str(pid_file))
    assert created.ok, created.stderr

    state = runtime.state("c1")
    assert state is not None
    assert (state["id"], state["status"]) == ("c1", "created")
    assert Path(state["bundle"]).samefile(bundle)
    assert state["ociVersion"].startswith("1.")
    assert state["pid"] == int(pid_file.read_text()) > 0
    assert oci.alive(state["pid"])
    for key, value in runtime.annotations.items():
        assert state["annotations"][key] == value
    assert (bundle / "stdout").read_bytes() == b"", "nothing of the program ran before start"

    refused = runtime.create(make("true", "other"), "c1")
    assert not refused.ok
    assert "exist" in refused.stderr
    assert not runtime("delete", "no-such-container-but-fine", options=()).stdout

    assert runtime("start", "c1").ok
    assert runtime.wait_for("c1", "running")["pid"] == state["pid"]
    second = runtime("start", "c1")
    assert not second.ok and second.stderr.strip(), "a running container cannot be started"
    denied = runtime("delete", "c1")
    assert not denied.ok and denied.stderr.strip(), "a running container is not deleted unforced"

    wait_for_output(bundle / "stdout", b"started\n")
    assert runtime("kill", "c1", "TERM").ok
    runtime.wait_for("c1", "stopped")
    assert (bundle / "stdout").read_bytes() == b"started\nended\n"
    third = runtime("start", "c1")
    assert not third.ok and third.stderr.strip(), "a stopped container cannot be started again"
    dead = runtime("kill", "c1", "TERM")
    assert not dead.ok and "not running" in dead.stderr
    assert runtime("delete", "c1").ok
    assert runtime.state("c1") is None


def test_an_unknown_container(runtime: oci.Runtime) -> None:
    for verb in (("state", "ghost"), ("start", "ghost"), ("kill", "ghost", "TERM")):
        outcome = runtime(*verb)
        assert outcome.status == 1, verb
        assert "does not exist" in outcome.stderr, verb
    assert runtime("delete", "--force", "ghost").ok
    expected = 0 if runtime.name == "sealrun" else 1  # DIFFERENCES
    assert runtime("delete", "ghost").status == expected


def test_kill_ends_a_program_by_name_and_number(runtime: oci.Runtime, make) -> None:
    trap = "trap 'echo got-term; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    bundle = make(trap)
    assert runtime.create(bundle, "c1").ok
    assert runtime("start", "c1").ok
    deadline = 60
    runtime.wait_for("c1", "running", deadline)
    while b"ready" not in (bundle / "stdout").read_bytes():
        assert runtime.state("c1")["status"] == "running"
    for harmless in ("28", "SIGWINCH", "CONT", "18"):
        assert runtime("kill", "c1", harmless).ok, harmless
    unknown = runtime("kill", "c1", "SIGLUNCH")
    assert not unknown.ok and "LUNCH" in unknown.stderr
    assert runtime.state("c1")["status"] == "running"
    assert runtime("kill", "c1", "15").ok
    runtime.wait_for("c1", "stopped")
    assert (bundle / "stdout").read_bytes().endswith(b"got-term\n")


def test_delete_force_of_a_created_and_of_a_running_container(runtime: oci.Runtime, make) -> None:
    bundle = make("sleep 1000")
    assert runtime.create(bundle, "c1").ok
    created = runtime.state("c1")
    assert runtime("delete", "--force", "c1").ok
    assert runtime.state("c1") is None
    assert not oci.alive(created["pid"])

    assert runtime.create(bundle, "c1").ok, "the id is free again"
    assert runtime("start", "c1").ok
    running = runtime.wait_for("c1", "running")
    assert runtime("delete", "--force", "c1").ok
    assert runtime.state("c1") is None
    assert not oci.alive(running["pid"])
    assert list(runtime.root.iterdir()) == []


def test_run_passes_stdio_and_the_exit_code(runtime: oci.Runtime, make) -> None:
    script = 'cat; echo to-stderr >&2; pwd; echo "$GREETING"; exit 42'
    bundle = make(script, cwd="/tmp", env=["PATH=/bin", "GREETING=hello"])
    runtime.started.append("c1")
    outcome = runtime("run", "--bundle", str(bundle), "c1", stdin=b"\x00\xff binary \n")
    assert outcome.stdout == b"\x00\xff binary \n/tmp\nhello\n"
    assert "to-stderr" in outcome.stderr
    assert outcome.status == 42
    assert runtime.state("c1") is None


def test_death_by_signal_is_128_plus_n(runtime: oci.Runtime, make) -> None:
    runtime.started.append("c1")
    # Signal 9 from inside needs a child: the first process of a pid namespace is immune to itself.
    outcome = runtime("run", "--bundle", str(make("sh -c 'kill -9 $$'; exit $?")), "c1")
    assert outcome.status == 137


COUNTING = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done"


def test_programs_are_executed_in_a_running_container(runtime: oci.Runtime, make) -> None:
    early = runtime("exec", "c1", "/bin/true")
    assert not early.ok and "does not exist" in early.stderr
    output = runtime.run(make("trap 'exit 7' TERM; echo ready; while :; do sleep 0.1; done"))
    wait_for_output(output, b"ready\n")
    script = 'cat; echo to-stderr >&2; pwd; echo "$GREETING"; exit 42'
    options = ("--cwd", "/bin", "--env", "GREETING=hello")
    done = runtime("exec", *options, "c1", "/bin/sh", "-c", script, stdin=b"\x00\xff binary\n")
    assert (done.status, done.stdout) == (42, b"\x00\xff binary\n/bin\nhello\n")
    assert "to-stderr" in done.stderr
    assert runtime("exec", "c1", "/bin/sh", "-c", "kill -9 $$").status == 137
    missing = runtime("exec", "c1", "no-such-program")
    assert not missing.ok and "no-such-program" in missing.stderr
    # The first process ends the container, and its end may be faster than the shell's.
    ended = runtime("exec", "c1", "/bin/sh", "-c", "kill -TERM 1")
    assert ended.status in (0, 137), "in its pid namespace"
    runtime.wait_for("c1", "stopped")
    late = runtime("exec", "c1", "/bin/true")
    assert not late.ok and late.stderr.strip()


def test_a_paused_container_stands_still(runtime: oci.Runtime, make) -> None:
    output = runtime.run(make(COUNTING))
    wait_for_output(output, b"3\n")
    assert runtime("pause", "c1").ok
    assert runtime.state("c1")["status"] == "paused"
    again = runtime("pause", "c1")
    assert not again.ok and again.stderr.strip()
    before, deadline = b"", time.monotonic() + 60
    while (now := output.read_bytes()) != before:  # what was on its way
        assert time.monotonic() < deadline, "it goes on"
        before = now
        time.sleep(1)
    assert runtime("resume", "c1").ok
    assert runtime.state("c1")["status"] == "running"
    again = runtime("resume", "c1")
    assert not again.ok and again.stderr.strip()
    wait_for_output(output, b"\n%d\n" % (before.count(b"\n") + 3))
    assert runtime("pause", "c1").ok
    assert runtime("kill", "c1", "KILL").ok
    runtime.wait_for("c1", "stopped")
    assert runtime("delete", "c1").ok


def test_limits_are_changed_while_it_runs(runtime: oci.Runtime, make) -> None:
    output = runtime.run(make("echo ready; while :; do sleep 0.1; done"))
    wait_for_output(output, b"ready\n")
    forks = 'for i in 1 2 3 4 5 6 7 8; do sleep 0.5 & done; wait; echo "all"'
    assert b"all" in runtime("exec", "c1", "/bin/sh", "-c", forks).stdout
    changed = runtime("update", "--pids-limit", "5", "c1")
    assert changed.ok is runtime.limits, changed.stderr
    if runtime.limits:
        done = runtime("exec", "c1", "/bin/sh", "-c", forks)
        assert "fork" in done.stderr, done
    nonsense = runtime("update", "--resources", str(output), "c1")
    assert not nonsense.ok and nonsense.stderr.strip()
    assert runtime.state("c1")["status"] == "running"
    assert runtime("delete", "--force", "c1").ok
    gone = runtime("update", "--pids-limit", "5", "c1")
    assert not gone.ok and "does not exist" in gone.stderr


def test_a_missing_program_is_named(runtime: oci.Runtime, make) -> None:
    outcome = runtime.create(make(["no-such-program", "x"]), "c1")
    assert outcome.status == 1
    assert "no-such-program" in outcome.stderr
    assert "executable file not found in $PATH" in outcome.stderr or (
        "not found in $PATH: No such file or directory" in outcome.stderr
    )
    assert runtime.state("c1") is None
    assert not any(runtime.root.iterdir()) if runtime.root.exists() else True


def test_a_program_that_is_not_executable_is_named(runtime: oci.Runtime, make) -> None:
    outcome = runtime.create(make(["/not-executable"]), "c1")
    assert outcome.status == 1
    assert "permission denied" in outcome.stderr.lower()
    assert "/not-executable" in outcome.stderr
    assert runtime.state("c1") is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"ociVersion": 1}', '{"ociVersion":"1.0.2","process":{"args":"sh"}}'],
)
def test_a_malformed_config_is_an_error_before_anything_starts(
    runtime: oci.Runtime, make, text: str
) -> None:
    bundle = make("true")
    (bundle / "config.json").write_text(text)
    outcome = runtime.create(bundle, "c1")
    assert outcome.status == 1
    assert outcome.stderr.strip()
    assert runtime.state("c1") is None


@pytest.mark.parametrize("container", ["", ".", "..", "a/b", "a b", "ä"])
def test_a_bad_id_is_refused(runtime: oci.Runtime, make, container: str) -> None:
    outcome = runtime.create(make("true"), container)
    runtime.started.clear()
    assert outcome.status != 0
    assert outcome.stderr.strip()


def test_a_missing_bundle_is_named(runtime: oci.Runtime, tmp_path: Path) -> None:
    outcome = runtime("create", "--bundle", str(tmp_path / "nowhere"), "c1")
    assert outcome.status == 1
    assert "nowhere" in outcome.stderr or "no such file" in outcome.stderr.lower()


def test_list_and_features(runtime: oci.Runtime, make) -> None:
    assert runtime("list", "--quiet").stdout == b""
    assert runtime.create(make("sleep 1000"), "c1").ok
    listed = json.loads(runtime("list", "--format", "json").stdout)
    assert [(entry["id"], entry["status"]) for entry in listed] == [("c1", "created")]
    table = runtime("list").stdout.decode()
    assert table.splitlines()[0].split()[:3] == ["ID", "PID", "STATUS"]
    assert "c1" in table
    assert runtime("list", "-q").stdout == b"c1\n"
    features = json.loads(runtime("features").stdout)
    assert features["ociVersionMin"] and features["ociVersionMax"]
