"""A person at a terminal: `podman run -it`, `attach` and `exec -it` in a real VM, and the same with crun.

Podman has a pseudo-terminal of the test's; between it and the program are conmon, the shim, the channel and
the guest's own pseudo-terminal.
"""

import hashlib
import os
import signal
import time
from collections.abc import Iterator

import pytest
from fixtures.beside import Side
from fixtures.terminal import Begin, Session, sessions

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

# What is typed is shown too: a text of a program's has to be one that was not typed.
PROMPT = ("--env", "PS1=ready$(echo :) ")
READY = "ready: "
SHELL = ["/bin/sh"]
FOLLOW = r"trap 'busybox stty size' WINCH; echo fol''lows; while :; do sleep 0.1; done"
SLEEP = "echo sle''eps; exec sleep 1000"
DETACH = b"\x10\x11"  # Ctrl-P, Ctrl-Q


@pytest.fixture(scope="module")
def container(side: Side) -> str:
    """A shell with a terminal, and nobody in front of it."""
    return side.start(SHELL, "-it", *PROMPT)


@pytest.fixture
def begin() -> Iterator[Begin]:
    """begin(command line, rows=, columns=): a terminal, and podman in it."""
    with sessions() as begin:
        yield begin


def ask(session: Session, command: str, answer: str) -> None:
    session.screen.type(command.encode() + b"\n")
    session.screen.expect(answer + "\r\n")
    session.screen.expect(READY)


def press(session: Session, keys: bytes) -> None:
    """Like a person, who does not press two keys at once: podman looks at one read at a time."""
    for key in keys:
        time.sleep(0.3)
        session.screen.type(bytes([key]))


def settle(session: Session) -> None:
    """Until podman has put the terminal into raw mode, and the shell answers."""
    for _ in range(60):
        session.screen.type(b"\n")
        if session.screen.shows(READY, seconds=0.5):
            ask(session, "echo set''tled", "settled")
            return
    raise AssertionError(f"the shell does not answer: {session.screen.shown!r}")


def attach(begin: Begin, side: Side, container: str, **size: int) -> Session:
    session = begin(side.line("attach", container), **size)
    settle(session)
    return session


def test_a_shell_in_the_foreground(side: Side, begin: Begin) -> None:
    """A size from the start and later ones, signals by keys, job control, and an end by Ctrl-D."""
    session = begin(side.words("run", SHELL, "-it", "--rm", *PROMPT), rows=33, columns=101)
    screen = session.screen
    screen.expect(READY)
    ask(session, "busybox tty", "/dev/pts/0")
    ask(session, "busybox stty size", "33 101")
    ask(session, "echo $TERM", "xterm")
    screen.type(b'sh -c "' + FOLLOW.encode() + b'"\n')
    screen.expect("follows\r\n")
    for rows, columns in ((44, 120), (10, 20), (200, 300)):
        screen.resize(rows, columns)
        screen.expect(f"{rows} {columns}\r\n")
    screen.type(b"\x03")
    screen.expect(READY)
    ask(session, "echo status $?", "status 130")
    screen.type(b'sh -c "' + SLEEP.encode() + b'"\n')
    screen.expect("sleeps\r\n")
    screen.type(b"\x1a")
    screen.expect("Stopped")
    screen.expect(READY)
    ask(session, "jobs | busybox wc -l", "1")
    screen.type(b"fg\n")
    screen.expect("exec sleep 1000")
    screen.type(b"\x1c")
    screen.expect(READY)
    ask(session, "echo status $?", "status 131")
    screen.type(b"echo rea''ds; cat >/tmp/typed; busybox wc -c </tmp/typed\n")
    screen.expect("reads\r\n")
    screen.type(b"line\n\x04")
    screen.expect("5\r\n")
    screen.expect(READY)
    screen.type(b"sh -c 'exit 7'\n")
    screen.expect(READY)
    screen.type(b"\x04")
    assert session.wait() == 7


def test_detach_and_attach_again(side: Side, container: str, begin: Begin) -> None:
    """The shell stays as it was; a terminal of another size is noticed."""
    first = attach(begin, side, container, rows=30, columns=90)
    ask(first, "MINE=kept", "")
    ask(first, "busybox stty size", "30 90")
    press(first, DETACH)
    assert first.wait() == 0
    assert side.podman.inspect(container, "{{.State.Status}}") == "running"
    second = begin(side.line("attach", "--detach-keys", "ctrl-a", container), rows=40, columns=70)
    settle(second)
    ask(second, "echo $MINE", "kept")
    ask(second, "busybox stty size", "40 70")
    press(second, b"\x01")
    assert second.wait() == 0


def test_two_in_front_of_one_container(side: Side, container: str, begin: Begin) -> None:
    """Both see everything; where one of them hangs up, the container and the other stay."""
    first, second = (attach(begin, side, container) for _ in range(2))
    first.screen.type(b"echo to''gether\n")
    for session in (first, second):
        session.screen.expect("together\r\n")
        session.screen.expect(READY)
    os.kill(first.pid, signal.SIGKILL)
    ask(second, "echo al''one", "alone")
    press(second, DETACH)
    assert second.wait() == 0


def test_exec_with_a_terminal(side: Side, container: str, begin: Begin) -> None:
    words = ("exec", "-it", *PROMPT, "--workdir", "/tmp", container, "/bin/sh")
    session = begin(side.line(*words), rows=21, columns=77)
    screen = session.screen
    screen.expect(READY)
    ask(session, "busybox tty", "/dev/pts/1")
    ask(session, "busybox stty size", "21 77")
    ask(session, "pwd", "/tmp")
    screen.type(b'sh -c "' + FOLLOW.encode() + b'"\n')
    screen.expect("follows\r\n")
    screen.resize(50, 132)
    screen.expect("50 132\r\n")
    screen.type(b"\x03")
    screen.expect(READY)
    ask(session, "echo status $?", "status 130")
    screen.type(b"sh -c 'exit 9'\n")
    screen.expect(READY)
    screen.type(b"\x04")
    assert session.wait() == 9


def test_who_detaches_from_an_exec_leaves_it_running(
    side: Side, container: str, begin: Begin
) -> None:
    script = "echo star''ted; while [ ! -e /tmp/go ]; do sleep 0.1; done; echo done >/tmp/gone"
    session = begin(side.line("exec", "-it", container, "/bin/sh", "-c", script))
    session.screen.expect("started\r\n")
    press(session, DETACH)
    session.wait()  # Podman 4.3 gives up after 5 s: the program has no exit status yet
    script = "busybox touch /tmp/go; until [ -s /tmp/gone ]; do sleep 0.1; done; cat /tmp/gone"
    ended = side.podman("exec", container, "/bin/sh", "-c", script)
    assert (ended.status, ended.stdout) == (0, b"done\n")


def test_pipes_without_a_terminal(side: Side, container: str) -> None:
    """An exec beside a terminal: no tty, all of the input, its end, and the streams apart."""
    sent = os.urandom(300_000)
    script = "busybox tty >&2; busybox sha256sum; cat; echo end >&2; exit 3"
    ended = side.podman("exec", "-i", container, "/bin/sh", "-c", script, stdin=sent)
    digest = hashlib.sha256(sent).hexdigest().encode()
    assert (ended.status, ended.stdout) == (3, digest + b"  -\n")
    assert ended.stderr == "not a tty\nend\n"
    ended = side.podman("exec", container, "/bin/sh", "-c", "cat; echo end", stdin=b"not passed on")
    assert (ended.status, ended.stdout) == (0, b"end\n"), "without -i there is no input"


def test_the_end_of_the_shell_ends_who_is_attached(
    side: Side, container: str, begin: Begin
) -> None:
    """The last one: the container is gone then."""
    session = attach(begin, side, container)
    session.screen.type(b"exit 5\n")
    session.wait()
    assert side.podman("wait", container).stdout == b"5\n"
