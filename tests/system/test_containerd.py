"""Real containerd and its runc shim, driven by ctr: terminals and a task's verbs, in a real VM and with runc."""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import containerd, containerds
from fixtures import workload as workloads
from fixtures.containerd import Containerd
from fixtures.terminal import Begin, Session, sessions

pytestmark = [pytest.mark.vm, pytest.mark.containerd, pytest.mark.registry, pytest.mark.root]

READY = "ready: "
# ctr leaves the terminal's own conversion of ends of lines on: there are two carriage returns before one.
# What is typed is shown too: a text of a program's has to be one that was not typed.
SHELL = ("/bin/sh", "-c", "PS1='ready: ' exec sh")
FOLLOW = r"trap 'busybox stty size' WINCH; echo fol''lows; while :; do sleep 0.1; done"


@pytest.fixture(scope="module", params=containerd.VERSIONS)
def ctr(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    """Sockets have short paths: not in pytest's own directory."""
    if missing := containerds.missing(request.param):
        pytest.skip(missing)
    with tempfile.TemporaryDirectory(prefix="ctr-") as name:
        with containerd.serve(Path(name), request.param) as one:
            yield one


@pytest.fixture(scope="module", params=containerd.RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def container(
    ctr: Containerd, runtime: str, busybox_annotations: workloads.Annotations
) -> Iterator[str]:
    """A shell with a terminal, and nobody in front of it."""
    name, line = ctr.run_line(runtime, busybox_annotations, "--detach", "--tty", command=SHELL)
    session = Session(line)
    try:
        assert session.wait() == 0, session.screen.rest()
        yield name
    finally:
        session.close()


@pytest.fixture
def begin() -> Iterator[Begin]:
    """begin(command line, rows=, columns=): a terminal, and ctr in it."""
    with sessions() as begin:
        yield begin


def ask(session: Session, command: str, answer: str) -> None:
    session.screen.type(command.encode() + b"\n")
    session.screen.expect(answer + "\r")
    session.screen.expect(READY)


def attach(begin: Begin, ctr: Containerd, container: str, **size: int) -> Session:
    session = begin(ctr.line("task", "attach", container), **size)
    for _ in range(60):
        session.screen.type(b"\n")
        if session.screen.shows(READY, seconds=0.5):
            ask(session, "echo set''tled", "settled")
            return session
    raise AssertionError(f"the shell does not answer: {session.screen.shown!r}")


def use(session: Session, size: str) -> None:
    """What there is to a terminal: a size, changes of it, Ctrl-C, Ctrl-D; it ends with 7."""
    screen = session.screen
    screen.expect(READY)
    ask(session, "busybox stty size", size)
    screen.type(b'sh -c "' + FOLLOW.encode() + b'"\n')
    screen.expect("follows\r")
    for rows, columns in ((44, 120), (10, 20)):
        screen.resize(rows, columns)
        screen.expect(f"{rows} {columns}\r")
    screen.type(b"\x03")
    screen.expect(READY)
    ask(session, "echo status $?", "status 130")
    screen.type(b"sh -c 'exit 7'\n")
    screen.expect(READY)
    screen.type(b"\x04")
    assert session.wait() == 7


def test_a_shell_in_the_foreground(
    ctr: Containerd, runtime: str, busybox_annotations: workloads.Annotations, begin: Begin
) -> None:
    _, line = ctr.run_line(runtime, busybox_annotations, "--rm", "--tty", command=SHELL)
    use(begin(line, rows=33, columns=101), "33 101")


def test_exec_with_a_terminal(ctr: Containerd, container: str, begin: Begin) -> None:
    words = ("task", "exec", "--tty", "--exec-id", "shell", "--cwd", "/tmp", container, *SHELL)
    use(begin(ctr.line(*words), rows=21, columns=77), "21 77")


def test_attach_hang_up_and_attach_again(ctr: Containerd, container: str, begin: Begin) -> None:
    first = attach(begin, ctr, container, rows=30, columns=90)
    ask(first, "MINE=kept", "")
    ask(first, "busybox stty size", "30 90")
    os.kill(first.pid, signal.SIGKILL)
    second = attach(begin, ctr, container, rows=40, columns=70)
    ask(second, "echo $MINE", "kept")
    ask(second, "busybox stty size", "40 70")
    second.screen.type(b"exit 5\n")
    assert second.wait() == 5


def test_a_task_s_verbs(
    ctr: Containerd, runtime: str, busybox_annotations: workloads.Annotations
) -> None:
    script = "trap 'touch /tmp/usr1' USR1; while :; do sleep 0.1; done"
    command = ("/bin/sh", "-c", script.replace("touch", "busybox touch"))
    name, line = ctr.run_line(
        runtime, busybox_annotations, "--detach", "--null-io", command=command
    )
    ended = ctr(*line[3:])
    assert ended.status == 0, ended.stderr
    execute = ("task", "exec", "--exec-id")
    script = "cat; echo no >&2; exit 6"
    ended = ctr(*execute, "one", name, "/bin/sh", "-c", script, stdin=b"in\n")
    assert (ended.status, ended.stdout) == (6, b"in\n")
    assert "no\n" in ended.stderr
    ended = ctr(*execute, "two", name, "/no/such/program")
    assert ended.status == 1
    assert "no such file or directory" in ended.stderr.lower()
    assert ctr("task", "pause", name).status == 0
    assert "PAUSED" in ctr("task", "list").stdout.decode()
    assert ctr("task", "resume", name).status == 0
    assert len(ctr("task", "ps", name).stdout.splitlines()) >= 2
    assert ctr("task", "kill", "--signal", "USR1", name).status == 0
    script = "until [ -e /tmp/usr1 ]; do sleep 0.1; done"
    assert ctr(*execute, "three", name, "/bin/sh", "-c", script).status == 0
    assert ctr("task", "kill", "--signal", "KILL", "--all", name).status == 0
    deadline = time.monotonic() + 60
    while "STOPPED" not in (listed := ctr("task", "list").stdout.decode()):
        assert time.monotonic() < deadline, listed
        time.sleep(0.1)
    assert "exit code 137" in ctr("task", "delete", name).stderr
    assert ctr("container", "delete", name).status == 0
