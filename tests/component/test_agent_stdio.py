"""Stdio and exit codes through the real agent, a real byte stream and real crun."""

import hashlib
import os
import random
from pathlib import Path

import pytest
from fixtures.agent import Host, agent, config
from sealrun_protocol import limits, messages

pytestmark = pytest.mark.root

STDIN, STDOUT, STDERR = 2, 4, 6


def test_stdout_and_stderr_are_apart_and_complete_before_the_exit(host: Host) -> None:
    assert host.run("sh", "-c", "echo out; echo err >&2; exit 7") == 7
    assert host.output == {STDOUT: b"out\n", STDERR: b"err\n"}
    assert host.ended in ({STDIN, STDOUT, STDERR}, {STDOUT, STDERR})
    assert isinstance(host.seen[-1], messages.ProcessExited)
    host.silence()


def test_every_exit_code_and_256_cycles_without_growth(host: Host) -> None:
    for code in range(256):
        name = f"c{code}"
        streams = {"stdin": 0, "stdout": 0, "stderr": 0}
        assert host.run("sh", "-c", f"exit {code}", container=name, **streams) == code
        assert isinstance(host.delete(name), messages.Done)
        if code == 5:  # by now everything is loaded that a cycle needs
            before = host.counts()
    host.wait_counts(before)


def test_a_killed_program_exits_with_137(host: Host) -> None:
    host.create("sleep", "1000")
    host.start()
    done = host.request(messages.SignalContainer, container="c1", signal=9)
    assert isinstance(done, messages.Done)
    assert host.exit_code() == 137


def test_binary_input_comes_back_unchanged_after_half_close(host: Host) -> None:
    data = random.Random(1).randbytes(1 << 20)
    host.create("cat")
    host.start()
    for start in range(0, len(data), 50_000):
        host.send(messages.StreamData(stream=STDIN, data=data[start : start + 50_000]))
    host.send(messages.StreamEnd(stream=STDIN))
    assert host.exit_code() == 0
    assert hashlib.sha256(host.output[STDOUT]).digest() == hashlib.sha256(data).digest()
    credit = sum(m.bytes for m in host.seen if isinstance(m, messages.StreamCredit))
    assert 0 < credit <= len(data)


def test_input_that_arrives_before_the_container_is_made_is_kept(host: Host) -> None:
    number = host.ask_create("cat")
    host.send(messages.StreamData(stream=STDIN, data=b"early"))
    host.send(messages.StreamEnd(stream=STDIN))
    assert isinstance(host.answer(number), messages.Done)
    host.start()
    assert host.exit_code() == 0
    assert host.output[STDOUT] == b"early"


def test_input_to_a_program_that_reads_no_more_is_reset(host: Host) -> None:
    assert host.run("sh", "-c", "exec <&-; sleep 0.2; echo late", stdin=b"x") == 0
    assert host.output[STDOUT] == b"late\n"
    host.create(
        "sh", "-c", "exec <&-; exec sleep 1000", container="c2", stdin=12, stdout=0, stderr=0
    )
    host.start("c2")
    while 12 not in host.ended:
        host.receive()
    host.send(messages.StreamData(stream=12, data=b"crossed the reset on the wire"))
    host.send(messages.StreamEnd(stream=12))
    assert isinstance(host.delete("c2"), messages.Done)


def test_without_streams_stdio_is_dev_null(host: Host) -> None:
    streams = {"stdin": 0, "stdout": 0, "stderr": 0}
    assert host.run("sh", "-c", "cat && echo lost", **streams) == 0
    assert host.output == {}


def test_no_other_descriptor_reaches_the_program(host: Host) -> None:
    assert host.run("sh", "-c", "echo /proc/self/fd/*") == 0
    assert host.output[STDOUT].split() == [b"/proc/self/fd/%d" % fd for fd in range(4)]


def test_signals_that_python_ignores_are_not_ignored_in_the_container(host: Host) -> None:
    assert host.run("cat", "/proc/self/status") == 0
    status = dict(line.split(b":", 1) for line in bytes(host.output[STDOUT]).splitlines())
    ignored = int(status[b"SigIgn"], 16)
    sigpipe, sigxfsz = 13, 25
    assert not ignored & (1 << (sigpipe - 1) | 1 << (sigxfsz - 1))
    assert int(status[b"SigBlk"], 16) == 0


def test_a_process_left_in_the_background_does_not_hold_the_exit_up(host: Host) -> None:
    assert host.run("sh", "-c", "sleep 1000 & echo done") == 0
    assert host.output[STDOUT] == b"done\n"


def test_a_reader_that_went_away_ends_the_writer(host: Host) -> None:
    host.create("sh", "-c", "yes; echo $? >&2")
    host.start()
    host.wait_output(b"y\n")
    host.send(messages.StreamReset(stream=STDOUT))
    assert host.exit_code() == 0
    assert int(host.output[STDERR]) > 0


def _resident_kib(host: Host, name: str = "VmRSS") -> int:
    for line in Path(f"/proc/{host.agent_pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise AssertionError(name)


def test_100_mib_pass_in_bounded_memory(host: Host) -> None:
    before = _resident_kib(host)
    host.create("dd", "if=/dev/zero", "bs=1M", "count=100")
    host.start()
    received = 0
    while "c1" not in host.exits:
        host.receive()
        host.seen.clear()
        data = host.output.pop(STDOUT, bytearray())
        assert data.count(0) == len(data)
        received += len(data)
    assert host.exits == {"c1": 0}
    assert received == 100 << 20
    assert _resident_kib(host, "VmHWM") - before < 16 << 10


def test_a_slow_reader_holds_the_writer_and_nothing_is_lost(tmp_path: Path) -> None:
    total = 3 << 20
    with agent(tmp_path, credit=False) as host:
        host.configure()
        host.create("dd", "if=/dev/zero", "bs=1M", "count=3", stdin=0, stderr=0)
        host.start()
        while len(host.output.get(STDOUT, b"")) < limits.STREAM_WINDOW_BYTES:
            host.receive()
        host.silence(1.0)  # neither more data nor an exit
        while len(host.output[STDOUT]) < total:
            host.send(messages.StreamCredit(stream=STDOUT, bytes=1 << 18))
            size = len(host.output[STDOUT])
            while len(host.output[STDOUT]) < min(size + (1 << 18), total):
                host.receive()
        # The end of the stream is looked for only while there is credit.
        host.send(messages.StreamCredit(stream=STDOUT, bytes=1 << 18))
        assert host.exit_code() == 0
        assert STDOUT in host.ended


def test_exit_waits_for_a_slow_reader_of_what_was_written_before(tmp_path: Path) -> None:
    with agent(tmp_path, credit=False) as host:
        host.configure()
        count = limits.STREAM_WINDOW_BYTES + 30_000  # the rest fits into the pipe
        host.create("head", "-c", str(count), "/dev/zero", stdin=0, stderr=0)
        host.start()
        while len(host.output.get(STDOUT, b"")) < limits.STREAM_WINDOW_BYTES:
            host.receive()
        host.silence(5.0)  # longer than a stalled pipe is waited for
        host.send(messages.StreamCredit(stream=STDOUT, bytes=limits.STREAM_WINDOW_BYTES))
        assert host.exit_code() == 0
        assert len(host.output[STDOUT]) == count


def test_a_slow_program_holds_the_host(host: Host) -> None:
    host.create("sleep", "1000")
    host.start()
    chunk = bytes(limits.STREAM_CHUNK_BYTES)
    for _ in range(limits.STREAM_WINDOW_BYTES // len(chunk)):
        host.send(messages.StreamData(stream=STDIN, data=chunk))
    host.silence(0.3)  # the pipe's 64 KiB are not worth a credit
    assert isinstance(host.delete(), messages.Done)


def test_many_containers_at_once(host: Host) -> None:
    names = [f"c{number}" for number in range(8)]
    for number, name in enumerate(names):
        streams = {"stdin": 0, "stdout": 100 + 2 * number, "stderr": 0}
        assert isinstance(
            host.create("sh", "-c", f"echo {name}", container=name, **streams), messages.Done
        )
    for name in names:
        host.ask(messages.StartContainer, container=name)
    assert [host.exit_code(name) for name in names] == [0] * len(names)
    assert host.output == {100 + 2 * n: f"{name}\n".encode() for n, name in enumerate(names)}


def test_a_program_that_cannot_be_executed_after_the_start_says_why(host: Host) -> None:
    assert host.run("/bin/garbage") == 1
    assert host.output[STDERR] == b"exec container process `/bin/garbage`: Exec format error\n"


def test_user_environment_and_directory(host: Host) -> None:
    script = "id -u; id -g; echo $COLOUR; pwd; umask"
    process = {"user": {"uid": 1000, "gid": 1001, "umask": 0o27}, "cwd": "/etc"}
    request = config("sh", "-c", script, env=["PATH=/bin", "COLOUR=blue"], **process)
    assert host.run(config=request) == 0
    assert host.output[STDOUT].split() == [b"1000", b"1001", b"blue", b"/etc", b"0027"]
    assert os.geteuid() == 0
