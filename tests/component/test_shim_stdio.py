"""stdin, stdout and stderr through a real shim: exact, bounded in memory, and nobody else's flags."""

import fcntl
import hashlib
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from fixtures.shim import SECONDS, Shim, alive, drain, memory_kib, wait
from sealrun_protocol import limits, messages
from sealrun_protocol.messages import CreateContainer
from simulators.guest import Guest

MIB = 1 << 20
EVERY_BYTE = bytes(range(256)) * 1024


def begin(
    shim: Shim, guest: Guest, descriptors: tuple[int, int, int] | None = None
) -> CreateContainer:
    """A running container."""
    request = shim.create(descriptors)
    message = guest.create()
    request.ok()
    start = shim.start()
    guest.start()
    start.ok()
    return message


def finish(shim: Shim, guest: Guest, code: int = 0) -> None:
    guest.exit("c1", code)
    assert shim.code() == code
    assert shim.gone() == 0


def is_blocking(fd: int) -> bool:
    return not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK


class Reader(threading.Thread):
    """Drains a descriptor, and hashes what it gets."""

    def __init__(self, fd: int) -> None:
        super().__init__(daemon=True)
        self.fd, self.count, self.digest = fd, 0, hashlib.sha256()
        self.start()

    def run(self) -> None:
        while part := os.read(self.fd, MIB):
            self.digest.update(part)
            self.count += len(part)


def test_stdin_is_exact_and_half_closes(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    data = EVERY_BYTE * 20  # more than a window
    fd = shim.stdio.stdin

    def feed() -> None:
        os.write(fd, data[:1])
        view = memoryview(data)[1:]
        while view:
            view = view[os.write(fd, view) :]
        os.close(fd)

    feeder = threading.Thread(target=feed)
    feeder.start()
    assert guest.input(message.stdin) == data
    feeder.join()
    guest.send(messages.StreamData(stream=message.stdout, data=b"after the end of stdin"))
    finish(shim, guest)
    assert drain(shim.stdio.stdout) == b"after the end of stdin"


def test_stdout_and_stderr_are_exact_and_apart(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    out, err = Reader(shim.stdio.stdout), Reader(shim.stdio.stderr)
    guest.output(message.stdout, iter([EVERY_BYTE] * 8))
    guest.output(message.stderr, iter([b"error\0\xff"]))
    finish(shim, guest, 7)
    out.join()
    err.join()
    assert out.digest.digest() == hashlib.sha256(EVERY_BYTE * 8).digest()
    assert err.digest.digest() == hashlib.sha256(b"error\0\xff").digest()


def test_nothing_is_read_from_stdin_before_start(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    message = guest.create()
    request.ok()
    assert shim.stdio is not None
    os.write(shim.stdio.stdin, b"early")
    assert guest.receive(0.3) is None
    start = shim.start()
    guest.start()
    start.ok()
    assert guest.expect(messages.StreamData) == messages.StreamData(
        stream=message.stdin, data=b"early"
    )


def test_output_is_complete_before_the_exit_is_told(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    data = os.urandom(limits.STREAM_WINDOW_BYTES)  # more than a pipe takes
    for at in range(0, len(data), limits.STREAM_CHUNK_BYTES):
        part = data[at : at + limits.STREAM_CHUNK_BYTES]
        guest.send(messages.StreamData(stream=message.stdout, data=part))
    guest.exit("c1", 5)
    time.sleep(0.5)
    assert shim.state()["status"] == "running"  # nobody has read it yet
    assert shim.stdio.stand_in.poll() is None
    assert drain(shim.stdio.stdout) == data
    assert shim.code() == 5
    assert shim.state()["status"] == "stopped"


def test_kill_ends_the_wait_for_a_reader_who_does_not_read(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    for _ in range(16):
        guest.send(messages.StreamData(stream=message.stdout, data=bytes(64 << 10)))
    guest.exit("c1", 5)
    wait(lambda: "the container ended with 5" in shim.log())
    assert shim.state()["status"] == "running"
    shim.kill(9).ok()
    assert shim.code() == 5
    assert shim.gone() == 0


def test_memory_stays_flat_however_much_flows(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    reader = Reader(shim.stdio.stdout)
    chunk = EVERY_BYTE[: 64 << 10]
    guest.output(message.stdout, iter([chunk] * 160))
    before = memory_kib(shim.process.pid)
    total = guest.output(message.stdout, iter([chunk] * 3200))
    assert total == 200 * MIB
    wait(lambda: reader.count == 210 * MIB)
    assert memory_kib(shim.process.pid) - before < 4096
    finish(shim, guest)
    reader.join()


def test_a_reader_who_stops_holds_the_guest_up(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    sent = 0
    while sent < limits.STREAM_WINDOW_BYTES:
        guest.send(messages.StreamData(stream=message.stdout, data=bytes(64 << 10)))
        sent += 64 << 10
    assert guest.receive(0.5) is None  # no credit
    got = 0
    while got < limits.STREAM_WINDOW_BYTES // 2:
        got += len(os.read(shim.stdio.stdout, 64 << 10))
    assert guest.expect(messages.StreamCredit).bytes >= limits.STREAM_WINDOW_BYTES // 4


def test_stdin_waits_for_credit(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    os.set_blocking(shim.stdio.stdin, False)
    written, most = (
        0,
        limits.STREAM_WINDOW_BYTES + (1 << 20),
    )  # one window on its way, one pipe full
    last = time.monotonic()
    while time.monotonic() - last < (1 if written >= limits.STREAM_WINDOW_BYTES else SECONDS):
        try:
            written += os.write(shim.stdio.stdin, bytes(64 << 10))
            last = time.monotonic()
            assert written <= most
        except BlockingIOError:
            time.sleep(0.02)
    assert written >= limits.STREAM_WINDOW_BYTES
    got = 0
    while got < limits.STREAM_WINDOW_BYTES:
        got += len(guest.expect(messages.StreamData).data)
    assert guest.receive(0.3) is None
    guest.send(messages.StreamCredit(stream=message.stdin, bytes=1000))
    assert len(guest.expect(messages.StreamData).data) == 1000


def test_a_closed_stdout_reaches_the_guest_as_reset(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    os.close(shim.stdio.stdout)
    shim.stdio.stdout = -1
    guest.send(messages.StreamData(stream=message.stdout, data=b"x"))
    assert guest.expect(messages.StreamReset).stream == message.stdout
    guest.send(messages.StreamData(stream=message.stdout, data=b"crossed it on the wire"))
    guest.send(messages.StreamData(stream=message.stderr, data=b"still there"))
    finish(shim, guest, 141)
    assert drain(shim.stdio.stderr) == b"still there"


def test_a_guest_that_closes_its_stdin_frees_the_writer(shim: Shim, guest: Guest) -> None:
    message = begin(shim, guest)
    assert shim.stdio is not None
    guest.send(messages.StreamReset(stream=message.stdin))

    def broken() -> bool:
        assert shim.stdio is not None
        try:
            os.write(shim.stdio.stdin, b"x")
        except BrokenPipeError:
            return True
        return False

    wait(broken)


def test_dev_null_is_left_to_the_guest(shim: Shim, guest: Guest) -> None:
    with open(os.devnull, "r+b", buffering=0) as null:
        message = begin(shim, guest, (null.fileno(),) * 3)
        assert (message.stdin, message.stdout, message.stderr) == (0, 0, 0)
        finish(shim, guest)


def test_regular_files_as_stdio(shim: Shim, guest: Guest, tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(EVERY_BYTE * 9)
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    with open(tmp_path / "in", "rb") as source, open(log, "ab") as sink:
        # Both on one open file description, as `>log 2>&1` makes them.
        message = begin(shim, guest, (source.fileno(), sink.fileno(), sink.fileno()))
        assert guest.input(message.stdin) == EVERY_BYTE * 9
        guest.send(messages.StreamData(stream=message.stdout, data=b"out\n"))
        guest.send(messages.StreamData(stream=message.stderr, data=b"err\n"))
        guest.output(message.stdout, iter([EVERY_BYTE] * 9))
        finish(shim, guest)
    assert log.read_bytes() == b"before\nout\nerr\n" + EVERY_BYTE * 9


def test_a_shared_file_without_append_keeps_its_offset(
    shim: Shim, guest: Guest, tmp_path: Path
) -> None:
    with open(os.devnull, "rb") as null, open(tmp_path / "log", "wb") as sink:
        sink.write(b"shell\n")
        sink.flush()
        message = begin(shim, guest, (null.fileno(), sink.fileno(), sink.fileno()))
        guest.send(messages.StreamData(stream=message.stdout, data=b"out\n"))
        guest.send(messages.StreamData(stream=message.stderr, data=b"err\n"))
        finish(shim, guest)
        os.write(sink.fileno(), b"shell again\n")
    assert (tmp_path / "log").read_bytes() == b"shell\nout\nerr\nshell again\n"


def test_the_callers_descriptors_stay_blocking(shim: Shim, guest: Guest) -> None:
    stdin, stdin_far = os.pipe()
    stdout_far, stdout = os.pipe()
    near, far = socket.socketpair()
    with near, far:
        message = begin(shim, guest, (stdin, stdout, near.fileno()))
        os.write(stdin_far, b"in")
        assert guest.expect(messages.StreamData).data == b"in"
        for stream in (message.stdout, message.stderr):
            guest.send(messages.StreamData(stream=stream, data=b"out"))
        assert (os.read(stdout_far, 10), far.recv(10)) == (b"out", b"out")
        assert all(is_blocking(fd) for fd in (stdin, stdout, near.fileno()))
        for fd in (stdin, stdin_far, stdout):
            os.close(fd)
        finish(shim, guest)
        assert drain(stdout_far) == b""
        os.close(stdout_far)


def test_sockets_as_stdio(shim: Shim, guest: Guest) -> None:
    near, far = socket.socketpair()
    with far:
        with near:
            message = begin(shim, guest, (near.fileno(),) * 3)
        far.sendall(b"in")
        assert guest.expect(messages.StreamData).data == b"in"
        guest.send(messages.StreamData(stream=message.stdout, data=b"out"))
        assert far.recv(10) == b"out"
        far.shutdown(socket.SHUT_WR)
        assert guest.expect(messages.StreamEnd).stream == message.stdin
        guest.send(messages.StreamData(stream=message.stderr, data=b"err"))
        finish(shim, guest)
        assert far.recv(10) == b"err"
        assert far.recv(10) == b""


def test_a_terminal_as_stdio_without_being_taken_over(shim: Shim, guest: Guest) -> None:
    master, slave = os.openpty()
    message = begin(shim, guest, (slave, slave, slave))
    os.write(master, b"typed\n")
    assert guest.expect(messages.StreamData).data == b"typed\n"
    guest.send(messages.StreamData(stream=message.stdout, data=b"shown"))
    wait(lambda: b"shown" in os.read(master, 100))
    assert is_blocking(slave)
    finish(shim, guest)
    os.close(slave)
    os.close(master)


def test_a_terminal_that_another_process_reads_too(shim: Shim, guest: Guest) -> None:
    """Somebody else takes the line between our look and our read: nobody hangs."""
    master, slave = os.openpty()
    begin(shim, guest, (slave, slave, slave))
    thief = threading.Thread(target=os.read, args=(slave, 100), daemon=True)
    thief.start()
    for _ in range(20):
        os.write(master, b"line\n")
        time.sleep(0.005)
    shim.kill(0).ok()  # it still answers
    finish(shim, guest)
    thief.join(5)
    os.close(slave)
    os.close(master)


def test_descriptors_are_let_go_of_when_the_container_ends(shim: Shim, guest: Guest) -> None:
    begin(shim, guest)
    assert shim.stdio is not None
    finish(shim, guest)
    assert drain(shim.stdio.stdout) == b""
    assert drain(shim.stdio.stderr) == b""
    with pytest.raises(BrokenPipeError):
        os.write(shim.stdio.stdin, b"x")
    assert not alive(shim.vmm)
