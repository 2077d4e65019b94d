"""A guest gone bad against a real shim: its sandbox ends, with the reason, and nothing else does."""

import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zmq
from fixtures.shim import Shim, alive, memory_kib, running, wait
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode, Phase
from simulators.guest import Guest

CONTAINER = "c1"
STDIN, STDOUT = 2, 4


@pytest.fixture
def busy() -> Iterator[int]:
    """A port whose connections do not stand: its queue is full."""
    with socket.socket() as listener, socket.socket() as first, socket.socket() as second:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for one in (first, second):
            one.setblocking(False)
            one.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


@pytest.fixture
def shim(tmp_path: Path, busy: int) -> Iterator[Shim]:
    with running(tmp_path, endpoints=(f"127.0.0.1:{busy}",)) as one:
        yield one


def run(shim: Shim, guest: Guest) -> None:
    request = shim.create()
    message = guest.create()
    request.ok()
    assert (message.stdin, message.stdout) == (STDIN, STDOUT)
    start = shim.start()
    guest.start()
    start.ok()


def overrun(guest: Guest) -> None:
    for _ in range(limits.STREAM_WINDOW_BYTES // limits.STREAM_CHUNK_BYTES + 8):
        try:
            guest.send(messages.StreamData(stream=STDOUT, data=bytes(limits.STREAM_CHUNK_BYTES)))
        except AssertionError:
            return  # it has hung up before the last one


def once(message: messages.Message) -> Callable[[Guest], None]:
    return lambda guest: guest.send(message)


def raw(*frames: bytes) -> Callable[[Guest], None]:
    return lambda guest: guest.send_raw(*frames)


VIOLATIONS: dict[str, Callable[[Guest], None]] = {
    "no message": raw(b"\xc1"),
    "empty": raw(b""),
    "text": raw(b"GET / HTTP/1.1\r\n\r\n"),
    "nested deeply": raw(b"\x91" * 60_000),
    "an unknown message": raw(b"\x81\xa4type\xa4Nope"),
    "an unknown member": raw(b"\x83\xa4type\xa4Done\xa2id\x01\xa1x\x01"),
    "a message for guests": once(messages.StartContainer(id=1, container=CONTAINER)),
    "two frames": raw(messages.encode(messages.Done(id=1)), b""),
    "a second hello": lambda guest: guest.hello(),
    "an answer to nothing": once(messages.Done(id=99)),
    "an answer twice": once(messages.Done(id=1)),
    "a failure of nothing": once(
        messages.Failed(id=-5, phase=Phase.RUN, code=ErrorCode.INTERNAL, text="")
    ),
    "another container's end": once(messages.ProcessExited(container="c2", code=0)),
    "an impossible code": once(messages.ProcessExited(container=CONTAINER, code=256)),
    "a negative code": once(messages.ProcessExited(container=CONTAINER, code=-1)),
    "another container's progress": once(
        messages.Progress(container="c2", phase=Phase.PULL, text="")
    ),
    "data into stdin": once(messages.StreamData(stream=STDIN, data=b"x")),
    "the end of stdin": once(messages.StreamEnd(stream=STDIN)),
    "credit for stdout": once(messages.StreamCredit(stream=STDOUT, bytes=1)),
    "credit for nothing": once(messages.StreamCredit(stream=STDIN, bytes=1)),
    "negative credit": once(messages.StreamCredit(stream=STDIN, bytes=-1)),
    "data without credit": overrun,
    "empty data": once(messages.StreamData(stream=STDOUT, data=b"")),
    "data after the end": lambda guest: (
        guest.send(messages.StreamData(stream=STDOUT, data=bytes(limits.STREAM_CHUNK_BYTES))),
        guest.send(messages.StreamData(stream=STDOUT, data=bytes(limits.STREAM_CHUNK_BYTES))),
        guest.send(messages.StreamEnd(stream=STDOUT)),
        guest.send(messages.StreamData(stream=STDOUT, data=b"x")),
    )[-1],
    "a chunk too large": once(
        messages.StreamData(stream=STDOUT, data=bytes(limits.STREAM_CHUNK_BYTES + 1))
    ),
    "a tunnel with the host's id": once(
        messages.OpenTunnel(stream=STDOUT, host="127.0.0.1", port=9)
    ),
    "a tunnel with no id": once(messages.OpenTunnel(stream=0, host="127.0.0.1", port=9)),
    "a tunnel with a negative id": once(messages.OpenTunnel(stream=-1, host="127.0.0.1", port=9)),
    "a huge frame": raw(bytes(limits.MESSAGE_BYTES)),
}


@pytest.mark.parametrize("violation", VIOLATIONS)
def test_a_violation_ends_the_sandbox_with_its_reason(shim: Shim, violation: str) -> None:
    with shim.guest() as guest:
        run(shim, guest)
        VIOLATIONS[violation](guest)
        assert shim.code() == 137
        assert shim.state()["status"] == "stopped"
        assert "protocol" in shim.annotation("exit-reason")
        assert shim.gone() == 0


def test_a_tunnel_twice(shim: Shim, busy: int) -> None:
    with shim.guest() as guest:
        run(shim, guest)
        for _ in range(2):
            guest.send(messages.OpenTunnel(stream=1, host="127.0.0.1", port=busy))
        assert shim.code() == 137
        assert "a second tunnel with stream id 1" in shim.annotation("exit-reason")


def test_data_before_the_tunnel_stands(shim: Shim, busy: int) -> None:
    with shim.guest() as guest:
        run(shim, guest)
        guest.send(messages.OpenTunnel(stream=1, host="127.0.0.1", port=busy))
        guest.send(messages.StreamData(stream=1, data=b"x"))
        assert shim.code() == 137
        assert "before it is open" in shim.annotation("exit-reason")


@pytest.mark.parametrize(
    "early",
    [
        messages.Done(id=1),
        messages.ProcessExited(container=CONTAINER, code=0),
        messages.OpenTunnel(stream=1, host="127.0.0.1", port=9),
        messages.StreamData(stream=STDOUT, data=b"x"),
        messages.Progress(container=CONTAINER, phase=Phase.PULL, text=""),
    ],
    ids=lambda message: type(message).__name__,
)
def test_nothing_comes_before_hello(shim: Shim, early: messages.Message) -> None:
    with shim.guest() as guest:
        request = shim.create()
        guest.send(early)
        error = request.error()
        assert error.kind == "protocol-violation"
        assert "before Hello" in error.text
        assert shim.gone() == 0


def test_an_end_before_create_was_answered(shim: Shim) -> None:
    with shim.guest() as guest:
        request = shim.create()
        guest.boot()
        guest.exit(CONTAINER, 0)
        assert request.error().kind == "protocol-violation"
        assert shim.code() == 137


def test_another_identity_is_a_violation(shim: Shim) -> None:
    with shim.guest(b"other") as guest:
        request = shim.create()
        guest.hello()
        assert request.error().kind == "protocol-violation"


def test_a_guest_that_does_not_speak_zmtp(shim: Shim) -> None:
    assert shim.vmm
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(shim.path / "channel.sock"))
        request = shim.create()
        stream.sendall(b"GET / HTTP/1.1\r\nHost: shim\r\n\r\n" + bytes(64))
        error = request.error()
        assert error.kind == "protocol-violation"
        assert shim.gone() == 0


def test_a_guest_that_hangs_up(shim: Shim) -> None:
    with shim.guest() as guest:
        run(shim, guest)
        guest.close()
        assert shim.code() == 137
        assert "connection broke" in shim.annotation("exit-reason")
        shim.gone()


def test_a_window_of_single_bytes_costs_a_window(shim: Shim) -> None:
    with shim.guest() as guest:
        run(shim, guest)
        assert shim.stdio is not None
        for _ in range(2):  # the pipe takes the first part
            guest.send(messages.StreamData(stream=STDOUT, data=bytes(64 << 10)))
        time.sleep(0.2)
        before = memory_kib(shim.process.pid)
        frame = messages.encode(messages.StreamData(stream=STDOUT, data=b"x"))
        for _ in range(100_000):
            guest.send_raw(frame)
        shim.kill(0).ok()
        assert memory_kib(shim.process.pid) - before < 4096


def test_credit_of_ever_growing_size_is_counted(shim: Shim) -> None:
    with shim.guest() as guest:
        run(shim, guest)
        guest.send(messages.StreamCredit(stream=STDIN, bytes=2**62))
        assert shim.code() == 137


def test_a_guest_that_asks_and_takes_no_answers(shim: Shim) -> None:
    with shim.guest() as guest:
        run(shim, guest)
        vmm = shim.vmm
        stream = 1
        poller_deadline = time.monotonic() + 60
        while alive(vmm) and time.monotonic() < poller_deadline:
            refused = messages.OpenTunnel(stream=stream, host="h" * 200, port=1)
            try:
                guest.socket.send(messages.encode(refused), zmq.DONTWAIT)
            except zmq.Again:
                time.sleep(0.01)
            stream += 2
        assert shim.code() == 137
        assert "take the answers" in shim.annotation("exit-reason")


def test_a_flood_of_words_leaves_the_log_small(shim: Shim) -> None:
    with shim.guest() as guest:
        request = shim.create()
        guest.boot()
        create = guest.expect(messages.CreateContainer)
        for number in range(20_000):
            text = f"{number}\n\x1b[2J" + "x" * 5000
            guest.send(messages.Progress(container=CONTAINER, phase=Phase.PULL, text=text))
        guest.send(messages.Done(id=create.id))
        request.ok()
        log = shim.log()
        assert len(log) < 4 << 20
        assert "\x1b" not in log


def _greet(stream: socket.socket) -> None:
    """The ZMTP 3.0 handshake of a DEALER called `agent`, by hand (rfc.zeromq.org/spec/23)."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    stream.sendall(greeting)
    stream.recv(64, socket.MSG_WAITALL)
    properties = b"".join(
        bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
        for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", b"agent"))
    )
    ready = b"\x05READY" + properties
    stream.sendall(b"\x04" + bytes([len(ready)]) + ready)


def test_one_endless_message_does_not_eat_the_hosts_memory(shim: Shim) -> None:
    assert shim.vmm
    vmm, pid = shim.vmm, shim.process.pid
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(str(shim.path / "channel.sock"))
        shim.create()
        _greet(stream)
        frame = b"\x03" + struct.pack(">Q", 64 << 10) + os.urandom(64 << 10)  # more, long
        most = 0
        try:
            for _ in range(16_384):  # 1 GiB
                stream.sendall(frame)
                if shim.process.poll() is None:
                    most = max(most, memory_kib(pid))
        except (OSError, AssertionError):
            pass
        else:
            pytest.fail("the shim took 1 GiB of one message")
        assert most < 600 << 10
        wait(lambda: not alive(vmm))
        assert shim.code() == 137


def test_other_sandboxes_do_not_notice(tmp_path: Path) -> None:
    with running(tmp_path / "a") as bad, running(tmp_path / "b") as good:
        with bad.guest() as evil, good.guest() as guest:
            run(good, guest)
            run(bad, evil)
            overrun(evil)
            assert bad.code() == 137
            good.kill(0).ok()
            guest.exit(CONTAINER, 0)
            assert good.code() == 0


def test_the_shim_has_no_threads_of_its_own(shim: Shim) -> None:
    """ZeroMQ has two."""
    with shim.guest() as guest:
        run(shim, guest)
        assert len(os.listdir(f"/proc/{shim.process.pid}/task")) == 3
