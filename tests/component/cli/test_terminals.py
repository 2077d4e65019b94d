"""Terminals: handed to an engine, or stood in front of; sizes; and that our own comes back as it was."""

import json
import os
import re
import signal
import subprocess
import termios
import time
import tty
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.cli import SECONDS, World
from fixtures.terminal import ConsoleSocket, Screen, Session

pytestmark = pytest.mark.root

PROCESS = {"args": ["sh"], "cwd": "/", "terminal": True}


@pytest.fixture
def console(tmp_path: Path) -> Iterator[ConsoleSocket]:
    socket = ConsoleSocket(tmp_path / "console.sock")
    yield socket
    socket.close()


def create(world: World, console: ConsoleSocket, **changes: Any) -> tuple[int, Screen]:
    bundle = world.bundle(**{"process": PROCESS, **changes})
    pid_file = world.tmp / "pid"
    options = ["-b", bundle, "--pid-file", str(pid_file), "--console-socket", console.path]
    done = world("create", *options, "c1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    name, screen = console.receive()
    assert re.fullmatch(rb"/dev/pts/[0-9]+", name)
    return int(pid_file.read_text()), screen


def start(world: World, console: ConsoleSocket, program: str) -> tuple[int, Screen]:
    """A running container, and an exec in a terminal of an engine's."""
    world.create()
    world("start", "c1")
    pid_file = world.tmp / "exec-pid"
    process = world.tmp / "process.json"
    process.write_text(json.dumps({"args": [program], "cwd": "/", "terminal": True}))
    options = ["--detach", "--pid-file", str(pid_file), "--console-socket", console.path]
    # As conmon calls it.
    done = world("exec", *options, "--process", str(process), "--tty", "c1")
    assert (done.returncode, done.stderr) == (0, "")
    return int(pid_file.read_text()), console.receive()[1]


def test_an_engine_gets_the_terminal_of_a_container(world: World, console: ConsoleSocket) -> None:
    pid, screen = create(world, console)
    world("start", "c1")
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    session, controlling = int(stat[3]), int(stat[4])
    assert session == pid
    assert os.major(controlling) == 136  # a pseudo-terminal's slave
    screen.resize(33, 101)
    screen.expect("winch 33x101")
    screen.resize(44, 120)
    screen.expect("winch 44x120")
    world("kill", "c1", "9")
    screen.rest()
    screen.close()


def test_only_the_shim_keeps_the_slave(world: World, console: ConsoleSocket) -> None:
    """Engines read the master until it hangs up."""
    pid, screen = create(world, console)
    descriptors = {os.readlink(f"/proc/{pid}/fd/{one}") for one in os.listdir(f"/proc/{pid}/fd")}
    assert all(target.startswith("socket:") for target in descriptors)
    os.kill(world.processes()["shim"], signal.SIGKILL)
    assert screen.rest() == b""
    screen.close()


def test_every_change_of_the_size_arrives(world: World, console: ConsoleSocket) -> None:
    _, screen = create(world, console)
    world("start", "c1")
    for turn in range(100):
        screen.resize(20 + turn, 80)
        screen.expect(f"{20 + turn}x80")
    screen.close()


def test_the_terminal_is_raw_and_has_the_size_of_the_configuration(
    world: World, console: ConsoleSocket
) -> None:
    process = {**PROCESS, "consoleSize": {"height": 25, "width": 90}}
    _, screen = create(world, console, process=process)
    attributes = termios.tcgetattr(screen.descriptor)
    assert not attributes[tty.LFLAG] & (termios.ECHO | termios.ICANON | termios.ISIG)
    assert not attributes[tty.OFLAG] & termios.OPOST
    assert termios.tcgetwinsize(screen.descriptor) == (25, 90)
    screen.close()


def test_a_console_socket_that_nobody_listens_on(world: World) -> None:
    bundle = world.bundle(process=PROCESS)
    done = world("create", "-b", bundle, "--console-socket", "/nowhere", "c1")
    assert done.returncode == 1
    assert done.stderr == "sealrun: cannot send the terminal to /nowhere: it does not exist\n"
    world.assert_nothing_left()


def test_an_engine_gets_the_terminal_of_an_exec(world: World, console: ConsoleSocket) -> None:
    pid, screen = start(world, console, "cat")
    screen.type(b"all bytes\x00\x01\x03\x04\x11\x13\x1a\r\n\xff")
    screen.expect("all bytes")
    screen.expect("\x00\x01\x03\x04\x11\x13\x1a\r\n")
    screen.resize(50, 132)
    screen.expect("winch 50x132")
    os.kill(pid, signal.SIGTERM)
    assert screen.rest().endswith(b"signal 15 50x132\n")
    screen.close()


def test_who_hangs_up_on_an_exec_signals_it(world: World, console: ConsoleSocket) -> None:
    """As the kernel does with a session whose terminal is gone."""
    _, screen = start(world, console, "report")
    screen.close()
    requests = world.root / "c1/requests"
    deadline = time.monotonic() + SECONDS
    while '["link", "signal 1"]' not in requests.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def sessions() -> Iterator[list[Session]]:
    made: list[Session] = []
    yield made
    for session in made:
        session.close()


def begin(sessions: list[Session], world: World, *arguments: str) -> Session:
    session = Session(world.command(*arguments), rows=40, columns=100)
    sessions.append(session)
    return session


def test_an_interactive_exec(world: World, sessions: list[Session]) -> None:
    world.create()
    world("start", "c1")
    session = begin(sessions, world, "exec", "--tty", "c1", "cat")
    before = session.local_flags()
    session.screen.type(b"x")
    session.screen.expect("x")
    while session.local_flags() & termios.ECHO:
        pass
    assert not session.local_flags() & (termios.ECHO | termios.ICANON | termios.ISIG)
    session.screen.type(b"\x03\x1a\x04")  # nobody but the guest interprets them
    session.screen.expect("\x03\x1a\x04")
    session.screen.resize(55, 111)
    session.screen.expect("winch 55x111")
    os.kill(session.pid, signal.SIGTERM)
    session.screen.expect("signal 15 55x111")
    assert session.wait() == 143
    assert session.local_flags() == before


def test_an_interactive_run(world: World, sessions: list[Session]) -> None:
    session = begin(sessions, world, "run", "-b", world.bundle(process=PROCESS), "c1")
    session.screen.expect("pull: layer 1 of 1")
    world.wait_for("running")
    session.screen.resize(56, 112)
    session.screen.expect("winch 56x112")
    world("kill", "c1", "KILL")
    assert session.wait() == 137
    world.assert_nothing_left()


def test_an_interactive_program_starts_with_the_size_that_is_there(
    world: World, sessions: list[Session]
) -> None:
    world.create()
    world("start", "c1")
    session = begin(sessions, world, "exec", "-t", "c1", "report")
    session.screen.expect("begin 40x100")


def test_output_before_the_end_is_not_lost(world: World, sessions: list[Session]) -> None:
    bundle = world.bundle("exit=3", process=PROCESS)
    session = begin(sessions, world, "run", "--bundle", bundle, "c1")
    assert session.wait() == 3
    session.screen.expect("out")
    world.assert_nothing_left()


def test_much_input_that_nobody_reads_yet_blocks_no_output(
    world: World, sessions: list[Session]
) -> None:
    world.create()
    world("start", "c1")
    session = begin(sessions, world, "exec", "-t", "c1", "report")
    session.screen.expect("begin")
    while session.local_flags() & termios.ECHO:
        pass
    session.screen.type(b"y" * 3000)
    session.screen.type(b"y" * 3000)
    session.screen.resize(57, 113)
    session.screen.expect("winch 57x113")


def test_without_a_terminal_of_our_own(world: World) -> None:
    """The program has one all the same, as with runc; its size is not known."""
    world.create()
    world("start", "c1")
    command = world.command("exec", "--tty", "c1", "exit", "4")
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60, start_new_session=True
    )
    assert (done.returncode, done.stdout) == (4, b"out\n")
