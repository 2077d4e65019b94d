"""Programs with a terminal in the real agent: the pseudo-terminal is the guest's, made by real crun."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.agent import Host, agent, config, process_config
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode

pytestmark = pytest.mark.root

STDIN, STDOUT = 2, 4
EXEC_STDIN, EXEC_STDOUT = 12, 14
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}
DEVPTS = {
    "destination": "/dev/pts",
    "type": "devpts",
    "source": "devpts",
    "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
}


def _create(host: Host, *args: str, **members: Any) -> Any:
    request = config(*args, terminal=True, mounts=[DEVPTS])
    return host.create(**({"config": request, "terminal": True, "stderr": 0} | members))


def _execute(host: Host, *args: str, **members: Any) -> Any:
    process = process_config(*args, terminal=True)
    return host.execute(**({"config": process, "terminal": True, "stderr": 0} | members))


def _type(host: Host, text: str, stream: int = STDIN) -> None:
    host.send(messages.StreamData(stream=stream, data=text.encode()))


def _wait(host: Host, text: str, stream: int = STDOUT) -> None:
    """Until the terminal has shown `text`."""
    while text.encode() not in host.output.get(stream, b""):
        host.receive()


def _resize(host: Host, rows: int, columns: int, process: str = "", container: str = "c1") -> None:
    host.send(
        messages.ResizeTerminal(container=container, process=process, rows=rows, columns=columns)
    )


def _descriptors(host: Host) -> list[str]:
    """Terminals and sockets' files that the agent holds."""
    links = [os.readlink(entry) for entry in Path(f"/proc/{host.agent_pid}/fd").iterdir()]
    return [link for link in links if "ptmx" in link or "pts" in link]


def test_a_shell(host: Host) -> None:
    assert isinstance(_create(host, "sh"), messages.Done)
    host.start()
    _type(host, "tty; id -u\n")
    _wait(host, "/dev/pts/0\r\n0\r\n")  # ONLCR: the line discipline is at work
    assert b"tty; id -u\r\n" in host.output[STDOUT], "the terminal echoes"
    _type(host, "exit 7\n")
    assert host.exit_code() == 7
    assert STDOUT in host.ended
    assert isinstance(host.delete(), messages.Done)
    assert _descriptors(host) == []
    assert not list(host.guest_path("/run/sealrun/containers").iterdir())


def test_all_three_are_the_terminal_and_it_controls_the_session(host: Host) -> None:
    script = "test -t 0 && test -t 1 && test -t 2 && echo yes >/dev/tty; ls -l /dev/console"
    assert isinstance(_create(host, "sh", "-c", script), messages.Done)
    host.start()
    assert host.exit_code() == 0
    assert host.output[STDOUT].startswith(b"yes\r\n")


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x1c", 131)])
def test_keys_that_are_signals(host: Host, key: str, code: int) -> None:
    assert isinstance(_create(host, "cat"), messages.Done)
    host.start()
    _type(host, "hello\n")
    _wait(host, "hello\r\nhello\r\n")
    host.request(messages.SignalContainer, container="c1", signal=0)
    # The first process of a pid namespace has no default action for a signal from inside of it.
    assert isinstance(_execute(host, "cat"), messages.Done)
    _type(host, key, EXEC_STDIN)
    assert host.exec_exit_code() == code


def test_end_of_file_is_a_key(host: Host) -> None:
    assert isinstance(_create(host, "cat"), messages.Done)
    host.start()
    _type(host, "line\n\x04")
    assert host.exit_code() == 0
    assert host.output[STDOUT] == b"line\r\nline\r\n"


def test_the_size_from_the_request_and_later(host: Host) -> None:
    script = "trap 'stty size' WINCH; stty size; echo ready; while :; do sleep 0.05; done"
    done = _create(host, "sh", "-c", script, rows=33, columns=101)
    assert isinstance(done, messages.Done)
    host.start()
    _wait(host, "33 101\r\nready\r\n")
    _resize(host, 44, 120)
    _wait(host, "44 120\r\n")
    _resize(host, 0, 0)
    _resize(host, 7, 8)
    _wait(host, "7 8\r\n")
    host.delete()
    _resize(host, 1, 1)
    _resize(host, 1, 1, process="p1")
    host.silence()


def test_a_size_that_comes_before_the_terminal_is_there(host: Host) -> None:
    request = config("sh", "-c", "stty size", terminal=True, mounts=[DEVPTS])
    number = host.ask_create(config=request, terminal=True, stderr=0)
    _resize(host, 55, 66)
    assert isinstance(host.answer(number), messages.Done)
    host.start()
    assert host.exit_code() == 0
    assert host.output[STDOUT] == b"55 66\r\n"


def test_without_a_size_it_is_unknown(host: Host) -> None:
    assert isinstance(_create(host, "stty", "size"), messages.Done)
    host.start()
    host.exit_code()
    assert host.output[STDOUT] == b"stty: standard input\r\n"  # what busybox says to 0 x 0


def test_input_that_arrives_before_the_terminal_is_kept(host: Host) -> None:
    request = config("sh", terminal=True, mounts=[DEVPTS])
    number = host.ask_create(config=request, terminal=True, stderr=0)
    _type(host, "echo ear''ly; exit 3\n")
    host.send(messages.StreamEnd(stream=STDIN))
    assert isinstance(host.answer(number), messages.Done)
    host.start()
    assert host.exit_code() == 3
    assert b"early\r\n" in host.output[STDOUT]


def test_the_end_of_input_is_not_an_end_for_the_program(host: Host) -> None:
    assert isinstance(
        _create(host, "sh", "-c", "read x; echo got $x; exec sleep 1000"), messages.Done
    )
    host.start()
    _type(host, "it\n")
    host.send(messages.StreamEnd(stream=STDIN))
    _wait(host, "got it\r\n")
    host.silence(0.3)
    _resize(host, 5, 5)
    assert host.exits == {}


def test_a_reset_of_the_output_hangs_the_terminal_up(host: Host) -> None:
    # With a handler: the first process of a pid namespace ignores what it does not handle.
    script = "trap 'exit 9' HUP; echo ready; while :; do sleep 0.05; done"
    assert isinstance(_create(host, "sh", "-c", script), messages.Done)
    host.start()
    _wait(host, "ready")
    host.send(messages.StreamReset(stream=STDOUT))
    assert host.exit_code() == 9
    assert STDIN in host.ended


def test_a_terminal_that_nobody_has_open_for_a_while_goes_on(host: Host) -> None:
    script = (
        "exec </dev/null >/dev/null 2>&1; sleep 0.5; echo back >/dev/tty; sleep 0.3;"
        "echo again >/dev/tty; exit 4"
    )
    used = host.cpu_seconds()
    assert isinstance(_create(host, "sh", "-c", script), messages.Done)
    host.start()
    assert host.exit_code() == 4
    assert host.output[STDOUT] == b"back\r\nagain\r\n"
    assert host.cpu_seconds() - used < 0.3


def test_a_process_left_in_the_background_does_not_hold_the_exit_up(host: Host) -> None:
    assert isinstance(_create(host, "sleep", "1000"), messages.Done)
    host.start()
    script = "trap '' HUP; (sleep 1000 &); echo done"
    assert isinstance(_execute(host, "sh", "-c", script), messages.Done)
    assert host.exec_exit_code() == 0
    assert host.output[EXEC_STDOUT] == b"done\r\n"


def test_the_last_bytes_are_not_lost(host: Host) -> None:
    assert isinstance(_create(host, "sleep", "1000"), messages.Done)
    host.start()
    for _ in range(10):
        host.output.clear()
        script = "head -c 20000 /dev/zero | tr '\\0' x; printf end"
        assert isinstance(_execute(host, "sh", "-c", script), messages.Done)
        assert host.exec_exit_code() == 0
        assert bytes(host.output[EXEC_STDOUT]) == b"x" * 20_000 + b"end"


def test_a_slow_reader_holds_the_program(tmp_path: Path) -> None:
    with agent(tmp_path, credit=False) as host:
        host.configure()
        total = limits.STREAM_WINDOW_BYTES + 300_000
        script = f"stty raw; head -c {total} /dev/zero; exit 6"
        assert isinstance(_create(host, "sh", "-c", script, stdin=0), messages.Done)
        host.start()
        while len(host.output.get(STDOUT, b"")) < limits.STREAM_WINDOW_BYTES:
            host.receive()
        host.silence(0.5)
        for _ in range(2):
            host.send(messages.StreamCredit(stream=STDOUT, bytes=limits.STREAM_WINDOW_BYTES // 2))
            time.sleep(0.1)
        assert host.exit_code() == 6
        assert len(host.output[STDOUT]) == total


def test_a_program_that_reads_nothing_holds_the_host(host: Host) -> None:
    done = _create(host, "sh", "-c", "stty raw -echo; echo ready; exec sleep 1000")
    assert isinstance(done, messages.Done)
    host.start()
    _wait(host, "ready")
    used = host.cpu_seconds()
    for _ in range(limits.STREAM_WINDOW_BYTES // limits.STREAM_CHUNK_BYTES):
        host.send(messages.StreamData(stream=STDIN, data=bytes(limits.STREAM_CHUNK_BYTES)))
    host.silence(1.0)
    assert host.cpu_seconds() - used < 0.2
    assert isinstance(host.delete(), messages.Done)


def test_exec_with_a_terminal(host: Host) -> None:
    host.create(config=config("sleep", "1000", mounts=[DEVPTS]), **NO_STDIO)
    host.start()
    assert isinstance(_execute(host, "sh", rows=20, columns=30), messages.Done)
    _type(host, "stty size; tty\n", EXEC_STDIN)
    _wait(host, "20 30\r\n/dev/pts/", EXEC_STDOUT)
    _resize(host, 21, 31, process="p1")
    _type(host, "stty size\n", EXEC_STDIN)
    _wait(host, "21 31\r\n", EXEC_STDOUT)
    other = {"process": "p2", "stdin": 22, "stdout": 24}
    assert isinstance(_execute(host, "sh", **other), messages.Done)
    _type(host, "tty; exit 2\n", 22)
    assert host.exec_exit_code("p2") == 2
    assert b"/dev/pts/1\r\n" in host.output[24]
    _type(host, "exit 3\n", EXEC_STDIN)
    assert host.exec_exit_code() == 3
    assert _descriptors(host) == []


def test_a_program_that_is_not_there(host: Host) -> None:
    answer = _create(host, "nosuch")
    assert isinstance(answer, messages.Failed)
    assert answer.code is ErrorCode.PROGRAM_NOT_FOUND
    assert not list(host.guest_path("/run/sealrun/containers").iterdir())
    host.create(config=config("sleep", "1000", mounts=[DEVPTS]), **NO_STDIO)
    host.start()
    for program, code in (
        ("nosuch", ErrorCode.PROGRAM_NOT_FOUND),
        ("/bin/not-executable", ErrorCode.PROGRAM_NOT_EXECUTABLE),
        ("/bin/garbage", ErrorCode.PROGRAM_NOT_EXECUTABLE),
    ):
        answer = _execute(host, program)
        assert isinstance(answer, messages.Failed)
        assert answer.code is code
    assert _descriptors(host) == []
    assert host.output == {}


def test_delete_of_a_shell_that_waits(host: Host) -> None:
    assert isinstance(_create(host, "sh"), messages.Done)
    host.start()
    assert isinstance(_execute(host, "sh"), messages.Done)
    assert isinstance(host.delete(), messages.Done)
    exits = [message for message in host.seen if isinstance(message, messages.ProcessExited)]
    # In either order: the kernel ends them, and each terminal has its own end.
    assert sorted((message.process, message.code) for message in exits) == [("", 137), ("p1", 137)]
    assert _descriptors(host) == []
