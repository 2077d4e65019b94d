"""Programs that run beside a container's first one, through a real shim."""

import fcntl
import os
import signal
import struct
import termios
import time
import tty
from collections.abc import Iterator
from io import FileIO
from pathlib import Path
from typing import NamedTuple

import pytest
from fixtures.shim import Shim, drain, running, terminate, wait
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from simulators.guest import Guest

TERMINAL = b'{"args":["/bin/sh"],"terminal":true}'


@pytest.fixture
def guest(shim: Shim) -> Iterator[Guest]:
    """Of a running container."""
    with shim.guest() as one:
        create = shim.create()
        one.create()
        create.ok()
        start = shim.start()
        one.start()
        start.ok()
        yield one


class Terminal(NamedTuple):
    """A pair of which the slave is raw."""

    master: FileIO
    slave: FileIO

    def stdio(self) -> tuple[int, int, int]:
        number = self.slave.fileno()
        return number, number, number


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    master, slave = os.openpty()
    tty.setraw(slave)
    with FileIO(master, "r+") as near, FileIO(slave, "r+") as far:
        yield Terminal(near, far)


def resize(fd: int, rows: int, columns: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


def test_a_program_with_pipes(shim: Shim, guest: Guest) -> None:
    config = b'{"args":["/bin/cat"],"x":"' + b"y" * 150_000 + b'"}'
    request, ends = shim.execute("e1", config)
    message = guest.execute()
    request.ok()
    assert (message.container, message.process, message.config) == ("c1", "e1", config)
    assert not message.terminal
    ids = {message.stdin, message.stdout, message.stderr}
    assert len(ids) == 3
    assert ids.isdisjoint({0, 2, 4, 6})
    os.write(ends.stdin, b"in")
    assert guest.expect(messages.StreamData) == messages.StreamData(
        stream=message.stdin, data=b"in"
    )
    guest.send(messages.StreamData(stream=message.stdout, data=b"out"))
    guest.send(messages.StreamData(stream=message.stderr, data=b"err"))
    guest.exit("c1", 42, "e1")
    assert (drain(ends.stdout), drain(ends.stderr)) == (b"out", b"err")
    assert ends.code() == 42
    assert shim.state()["status"] == "running"


def test_nothing_is_read_before_the_program_runs(shim: Shim, guest: Guest) -> None:
    request, ends = shim.execute("e1")
    message = guest.expect(messages.ExecProcess)
    os.write(ends.stdin, b"early")
    assert guest.receive(0.3) is None
    guest.send(messages.Done(id=message.id))
    request.ok()
    assert guest.expect(messages.StreamData).data == b"early"


def test_a_program_that_ends_with_the_answer(shim: Shim, guest: Guest) -> None:
    request, ends = shim.execute("e1")
    message = guest.expect(messages.ExecProcess)
    guest.send(messages.Done(id=message.id))
    guest.exit("c1", 7, "e1")
    request.ok()
    assert ends.code() == 7


@pytest.mark.parametrize(
    "code", [ErrorCode.PROGRAM_NOT_FOUND, ErrorCode.PROGRAM_NOT_EXECUTABLE, ErrorCode.INTERNAL]
)
def test_a_program_that_cannot_be_run(shim: Shim, guest: Guest, code: ErrorCode) -> None:
    request, ends = shim.execute("e1")
    message = guest.expect(messages.ExecProcess)
    words = "executable file `nope` not found in $PATH: No such file or directory"
    guest.send(messages.Failed(id=message.id, phase=Phase.START, code=code, text=words))
    error = request.error()
    assert error.kind == code.value
    if code is not ErrorCode.INTERNAL:
        assert error.text == words
    assert ends.code() == 137
    again, _ = shim.execute("e1")
    guest.execute()
    again.ok()


def test_signals_of_the_stand_in_are_passed_on(shim: Shim, guest: Guest) -> None:
    request, ends = shim.execute("e1")
    guest.execute()
    request.ok()
    ends.say("signal 15\nsignal ")
    message = guest.expect(messages.SignalContainer)
    assert (message.container, message.process, message.signal) == ("c1", "e1", 15)
    assert not message.all
    guest.send(messages.Done(id=message.id))
    ends.say("2\nsignal 99\nwinch\nrubbish\n")
    assert guest.expect(messages.SignalContainer).signal == 2
    guest.exit("c1", 130, "e1")
    assert ends.code() == 130


def test_a_killed_stand_in_kills_its_program(shim: Shim, guest: Guest) -> None:
    request, ends = shim.execute("e1")
    guest.execute()
    request.ok()
    terminate(ends.stand_in.pid)
    message = guest.expect(messages.SignalContainer)
    assert (message.process, message.signal) == ("e1", signal.SIGKILL)
    guest.send(messages.Done(id=message.id))
    guest.exit("c1", 137, "e1")
    assert shim.state()["status"] == "running"


@pytest.mark.parametrize("how", ["caller", "stand-in"])
def test_who_goes_away_before_the_program_runs(shim: Shim, guest: Guest, how: str) -> None:
    request, ends = shim.execute("e1")
    message = guest.expect(messages.ExecProcess)
    if how == "caller":
        request.connection._socket.shutdown(2)
    else:
        terminate(ends.stand_in.pid)
        ends.stand_in.wait()
    for _ in range(3):
        shim.kill(0).ok()  # whoever is answered came behind it
    guest.send(messages.Done(id=message.id))
    kill = guest.expect(messages.SignalContainer)
    assert (kill.process, kill.signal) == ("e1", 9)
    guest.send(messages.Done(id=kill.id))
    guest.exit("c1", 137, "e1")
    assert ends.code() in (137, -9)
    assert shim.state()["status"] == "running"


def test_many_at_once(shim: Shim, guest: Guest) -> None:
    count = 40
    asked = [shim.execute(f"e{number}") for number in range(count)]
    sent = [guest.execute() for _ in range(count)]
    for request, _ in asked:
        request.ok()
    for message in sent:
        data = message.process.encode()
        guest.send(messages.StreamData(stream=message.stdout, data=data))
        guest.exit("c1", int(data[1:]), message.process)
    for number, (_, ends) in enumerate(asked):
        assert drain(ends.stdout) == f"e{number}".encode()
        assert ends.code() == number


def test_too_many_at_once(shim: Shim, guest: Guest) -> None:
    for number in range(79):
        request, _ = shim.execute(f"e{number}")
        guest.execute()
        request.ok()
    request, ends = shim.execute("one-more")
    assert "too many" in request.error().text
    assert ends.code() == 137


@pytest.mark.parametrize("how", ["exit", "vmm", "delete", "shim"])
def test_all_end_with_the_container(shim: Shim, guest: Guest, how: str) -> None:
    request, ends = shim.execute("e1")
    message = guest.execute()
    request.ok()
    pending, pending_ends = shim.execute("e2")
    guest.expect(messages.ExecProcess)
    guest.send(messages.StreamData(stream=message.stdout, data=b"last"))
    assert os.read(ends.stdout, 10) == b"last"
    if how == "exit":
        guest.exit("c1", 3)
        assert shim.code() == 3
    elif how == "vmm":
        terminate(shim.vmm)
    elif how == "shim":
        terminate(shim.process.pid)
    else:
        shim.delete(force=True).ok()
    assert ends.code() == 137
    assert pending_ends.code() == 137
    if how != "shim":
        assert pending.error().kind in ("wrong-state", "vmm-failed")
        assert shim.gone() == 0


def test_an_end_told_after_that_of_the_container_counts(shim: Shim, guest: Guest) -> None:
    request, ends = shim.execute("e1")
    guest.execute()
    request.ok()
    guest.exit("c1", 0)
    wait(lambda: "the container ended with 0" in shim.log())
    guest.exit("c1", 5, "e1")
    assert ends.code() == 5
    assert shim.code() == 0


def test_output_that_nobody_reads_does_not_hold_the_container(shim: Shim, guest: Guest) -> None:
    request, ends = shim.execute("e1")
    message = guest.execute()
    request.ok()
    for _ in range(4):
        guest.send(messages.StreamData(stream=message.stdout, data=bytes(64 << 10)))
    guest.exit("c1", 5, "e1")
    time.sleep(0.2)
    assert ends.stand_in.poll() is None
    guest.exit("c1", 0)
    assert shim.code() == 0
    assert ends.code() == 5
    assert shim.gone() == 0


def test_exec_before_and_after_the_create(tmp_path: Path) -> None:
    with running(tmp_path) as shim, shim.guest() as guest:
        assert shim.execute("e1")[0].error().kind == "wrong-state"
        create = shim.create()
        guest.create()
        create.ok()
        request, _ = shim.execute("e1")
        guest.execute()
        request.ok()
        assert shim.state()["status"] == "created"


def test_what_is_no_exec(shim: Shim, guest: Guest) -> None:
    assert shim.ask("exec", "c1", "e1", "1", "{}").error().kind == "internal"
    assert shim.execute("e1", b"rubbish")[0].error().kind == "internal"
    assert shim.execute("e1", TERMINAL)[0].error().kind == "internal"  # pipes are no terminal
    request, _ = shim.execute("e1")
    guest.execute()
    request.ok()
    assert shim.execute("e1")[0].error().kind == "internal"
    assert shim.state()["status"] == "running"


def test_the_end_of_a_program_that_nobody_asked_for(shim: Shim, guest: Guest) -> None:
    guest.exit("c1", 0, "ghost")
    assert shim.code() == 137
    assert "broke the protocol" in shim.annotation("exit-reason")


# --- terminals -----------------------------------------------------------------------------------


def test_a_program_with_a_terminal(shim: Shim, guest: Guest, terminal: Terminal) -> None:
    master = terminal.master.fileno()
    resize(master, 24, 80)
    request, ends = shim.execute("e1", TERMINAL, terminal.stdio())
    terminal.slave.close()
    message = guest.execute()
    request.ok()
    assert (message.terminal, message.rows, message.columns) == (True, 24, 80)
    assert message.stdin and message.stdout and not message.stderr
    os.write(master, b"\x03ls\r")
    assert guest.expect(messages.StreamData) == messages.StreamData(
        stream=message.stdin, data=b"\x03ls\r"
    )
    guest.send(messages.StreamData(stream=message.stdout, data=b"a\r\nb"))
    assert os.read(master, 100) == b"a\r\nb"
    resize(master, 50, 132)
    ends.say("winch\n")
    sized = guest.expect(messages.ResizeTerminal)
    assert (sized.container, sized.process, sized.rows, sized.columns) == ("c1", "e1", 50, 132)
    guest.send(messages.StreamData(stream=message.stdout, data=b"bye"))
    guest.exit("c1", 4, "e1")
    assert ends.code() == 4
    assert os.read(master, 100) == b"bye"
    with pytest.raises(OSError, match="Input/output error"):
        os.read(master, 100)  # nobody has the other side any more


def test_a_closed_master_hangs_the_programs_terminal_up(
    shim: Shim, guest: Guest, terminal: Terminal
) -> None:
    request, ends = shim.execute("e1", TERMINAL, terminal.stdio())
    terminal.slave.close()
    message = guest.execute()
    request.ok()
    terminal.master.close()
    resets = {guest.expect(messages.StreamReset).stream for _ in range(2)}
    assert resets == {message.stdin, message.stdout}
    guest.exit("c1", 129, "e1")
    assert ends.code() == 129


def test_a_container_with_a_terminal(tmp_path: Path, terminal: Terminal) -> None:
    master = terminal.master.fileno()
    resize(master, 25, 81)
    with running(tmp_path, terminal=True) as shim, shim.guest() as guest:
        create = shim.create(terminal.stdio())
        terminal.slave.close()
        message = guest.create()
        create.ok()
        assert (message.terminal, message.rows, message.columns) == (True, 25, 81)
        start = shim.start()
        guest.start()
        start.ok()
        assert shim.stdio is not None
        resize(master, 30, 90)
        shim.stdio.say("winch\n")
        sized = guest.expect(messages.ResizeTerminal)
        assert (sized.process, sized.rows, sized.columns) == ("", 30, 90)
        os.write(master, b"x")
        assert guest.expect(messages.StreamData).stream == message.stdin
        guest.send(messages.StreamData(stream=message.stdout, data=b"y"))
        guest.exit("c1", 0)
        assert os.read(master, 9) == b"y"
        assert shim.code() == 0
        wait(lambda: shim.process.poll() == 0)
