"""Podman's verbs on one container in a real VM, and on one of crun: what differs stands in docs/engines.md."""

import io
import shlex
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from fixtures import oci, traces
from fixtures.beside import Side
from fixtures.podman import STATE_ROOT

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

PROGRAM = (
    "trap 'echo bye; exit 3' TERM; trap 'echo usr1' USR1; echo started; while :; do sleep 0.1; done"
)
HEALTH = ("--health-cmd", "test ! -e /tmp/ill", "--health-interval", "disable")


@pytest.fixture(scope="module")
def container(side: Side) -> str:
    command = ["/bin/sh", "-c", PROGRAM]
    options = ("--memory", "200m", "--env", "OF=container", *HEALTH)
    started = side.start(command, *options)
    wait_for_log(side, started, "started")
    return started


def wait_for_log(side: Side, container: str, text: str, times: int = 1) -> None:
    deadline = time.monotonic() + 90
    while (said := side.podman("logs", container).stdout.decode()).count(text) < times:
        assert time.monotonic() < deadline, f"{text} is not in the log: {said}"
        time.sleep(0.2)


def sh(side: Side, container: str, script: str, *options: str) -> str:
    """What a script in the container says."""
    ended = side.podman("exec", *options, container, "/bin/sh", "-c", script)
    assert ended.status == 0, ended.stderr
    return ended.stdout.decode()


@pytest.mark.parametrize(
    ("words", "status", "text"),
    [
        ("{} /bin/sh -c 'exit 77'", 77, ""),
        ("{} /bin/sh -c 'kill -9 $$'", 137, ""),
        ("{} /no/such/program", 127, "not found in $PATH"),
        ("{} no-such-program", 127, "not found in $PATH"),
        ("{} /not-executable", 126, "ermission denied"),
        ("--user nobody-here {} id", 255, "unable to find user nobody-here"),
    ],
)
def test_how_an_exec_ends(side: Side, container: str, words: str, status: int, text: str) -> None:
    ended = side.podman("exec", *shlex.split(words.format(container)))
    assert ended.status == status, ended.stderr
    assert text in ended.stderr
    first = int(side.podman.inspect(container, "{{.State.Pid}}"))
    if side.sealed:
        assert oci.descendants(first) == [], "nobody is left to be reaped by the stand-in"


def test_what_an_executed_program_is_given(side: Side, container: str) -> None:
    options = ("--user", "5:6", "--workdir", "/tmp", "--env", "MINE=set")
    said = sh(side, container, "id; pwd; echo $MINE $OF", *options)
    assert said.splitlines() == ["uid=5 gid=6", "/tmp", "set container"]
    raised = sh(side, container, "busybox grep CapEff /proc/self/status", "--privileged")
    assert int(raised.split()[1], 16) & 1 << 21, "CAP_SYS_ADMIN"
    detached = side.podman("exec", "--detach", container, "/bin/sh", "-c", "echo x >/tmp/detached")
    assert detached.status == 0
    assert sh(side, container, "until [ -s /tmp/detached ]; do sleep 0.1; done; echo it") == "it\n"


def test_pause_and_unpause(side: Side, container: str) -> None:
    assert side.podman("pause", container).status == 0
    assert side.podman.inspect(container, "{{.State.Status}}") == "paused"
    refused = side.podman("exec", container, "true")
    assert (refused.status, "running containers" in refused.stderr) == (255, True)
    assert side.podman("unpause", container).status == 0
    assert sh(side, container, "echo on") == "on\n"


def test_top_stats_and_logs(side: Side, container: str) -> None:
    listed = side.podman("top", container, "-ef").stdout.decode()
    assert "trap 'echo bye" in listed, "with ps's own options it runs in the container"
    processes = side.podman("top", container, "pid").stdout.decode().split()[1:]
    assert processes[0] == "1"
    figures = side.podman("stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", container)
    used, _, limit, pids = figures.stdout.decode().split()
    assert limit == "209.7MB"
    assert used[0] in "123456789"
    assert int(pids) >= 1
    assert side.podman("logs", "--tail", "1", container).stdout


def test_health(side: Side, container: str) -> None:
    assert side.podman("healthcheck", "run", container).status == 0
    sh(side, container, "echo >/tmp/ill")
    assert side.podman("healthcheck", "run", container).status == 1
    sh(side, container, "busybox rm /tmp/ill")
    assert side.podman("healthcheck", "run", container).status == 0


def test_update(side: Side, container: str) -> None:
    """In a VM there is only version 2 of control groups."""
    ended = side.podman("update", "--memory", "150m", "--cpus", "0.5", container)
    assert ended.status == 0, ended.stderr
    group = Path("/sys/fs/cgroup")
    if side.sealed:
        limits = sh(side, container, f"cat {group}/memory.max {group}/cpu.max")
        assert limits.split() == [str(150 << 20), "50000", "100000"]


def test_copies(side: Side, container: str, tmp_path: Path) -> None:
    """Podman copies on the host: where the guest has pulled the image, the container's files are not
    there, and nothing that the container would not see may be written in their place."""
    file = tmp_path / "file"
    file.write_text("from the host")
    into = side.podman("cp", str(file), f"{container}:/copied")
    sh(side, container, "echo inside >/made")
    out = side.podman("cp", f"{container}:/made", "-")
    if side.sealed:
        assert (into.status, out.status) == (125, 125)
        assert '"/made" could not be found' in out.stderr
        return
    assert (into.status, out.status) == (0, 0)
    assert sh(side, container, "cat /copied") == "from the host"
    with tarfile.open(fileobj=io.BytesIO(out.stdout)) as archive:
        member = archive.extractfile("made")
        assert member is not None
        assert member.read() == b"inside\n"


def test_a_checkpoint_is_refused(side: Side, container: str) -> None:
    """By Podman already, which looks for CRIU, and then asks the runtime for `checkpoint --help`."""
    ended = side.podman("container", "checkpoint", container)
    assert ended.status == 125
    assert "checkpoint/restore" in ended.error
    assert side.podman.inspect(container, "{{.State.Status}}") == "running"
    if side.sealed:
        asked = subprocess.run(["sealrun", "checkpoint", "--help"], capture_output=True, text=True)
        assert (asked.returncode, asked.stdout) == (1, "")
        assert asked.stderr.startswith("sealrun: checkpoint is not supported: ")


def test_signals_restart_stop_and_start(side: Side, container: str) -> None:
    """The last one: the container has ended then."""
    assert side.podman("kill", "--signal", "USR1", container).status == 0
    wait_for_log(side, container, "usr1")
    unknown = side.podman("kill", "--signal", "BOGUS", container)
    assert (unknown.status, unknown.error) == (125, "Error: invalid signal: BOGUS")
    restarted = side.podman("restart", "--time", "60", container)
    assert restarted.status == 0, restarted.stderr
    wait_for_log(side, container, "started", times=2)
    assert sh(side, container, "[ ! -e /made ] || echo still there").strip() == (
        "" if side.sealed else "still there"
    )
    assert side.podman("stop", "--time", "60", container).status == 0
    assert side.podman.inspect(container, "{{.State.Status}} {{.State.ExitCode}}") == "exited 3"
    assert side.podman("wait", container).stdout == b"3\n"
    for words in (("kill", container), ("pause", container), ("exec", container, "true")):
        assert side.podman(*words).status in (125, 255), words


def test_an_init_of_the_host_s(side: Side) -> None:
    """--init mounts a program of the host's: the tenant has to allow that the host gives one."""
    ended = side.run(["/bin/sh", "-c", "echo $$; exit 4"], "--init", "--rm")
    if side.sealed:
        assert ended.status == 126
        assert "the init-data does not allow" in ended.error
        assert "/run/podman-init" in ended.error
    else:
        assert (ended.status, ended.stdout) == (4, b"2\n")


def test_init_attach_and_rm(side: Side) -> None:
    """Created by `init`, begun by `start --attach`, removed by --rm."""
    script = "echo begun; read line; echo got $line; exit 4"
    made = side.create(["/bin/sh", "-c", script], "--rm", "-i")
    assert side.podman("init", made).status == 0
    assert side.podman.inspect(made, "{{.State.Status}}") == "initialized"
    ended = side.podman("start", "--attach", "--interactive", made, stdin=b"line\n")
    assert (ended.status, ended.stdout) == (4, b"begun\ngot line\n"), ended.stderr
    deadline = time.monotonic() + 30
    while side.podman("container", "exists", made).status == 0:
        assert time.monotonic() < deadline, "--rm removes it"
        time.sleep(0.2)
    traces.wait_until_gone(made, STATE_ROOT)


def test_restarted_on_failure(side: Side) -> None:
    """Podman itself does it, under the same id; each life has its own end."""
    made = side.start(["/bin/sh", "-c", "echo life; exit 9"], "--restart", "on-failure:1")
    wait_for_log(side, made, "life", times=2)
    assert side.podman("wait", made).stdout == b"9\n"
    assert side.podman("logs", made).stdout.decode().split() == ["life"] * 2
    assert side.podman.inspect(made, "{{.RestartCount}} {{.State.ExitCode}}") == "1 9"
