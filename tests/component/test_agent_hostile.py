"""A host that breaks the protocol: the sandbox ends with a reason, or nothing happens at all."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from fixtures.agent import SECONDS, Host, agent, config, process_config
from fixtures.shim import wait
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.messages import StreamCredit, StreamData, StreamEnd, StreamReset

pytestmark = pytest.mark.root

STDIN, STDOUT = 2, 4
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}


@pytest.fixture
def raw(tmp_path: Path) -> Iterator[Host]:
    """An agent that has said Hello."""
    with agent(tmp_path) as host:
        host.expect(messages.Hello)
        yield host


def _violated(host: Host) -> str:
    return host.last_words(ErrorCode.PROTOCOL_VIOLATION)


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        b"\xff" * 100,
        b"\x81",
        b"\x80",
        b"\x81\xa4type\xa5Hello",
        b"\x81\xa4type\xaeDeleteContainer",
        b"\x91" * 100_000,
        b"\x82\xa4type\xafShutdownSandbox\xa2id\xa11",
        b"\x83\xa4type\xafShutdownSandbox\xa2id\x01\xa5extra\x01",
        messages.encode(messages.ShutdownSandbox(id=1)) + b"x",
        b"\x82\xa4type\xa9StreamEnd\xa6stream\xcb\x00\x00\x00\x00\x00\x00\x00\x00",
    ],
)
def test_what_is_no_message(raw: Host, frame: bytes) -> None:
    raw.send_raw(frame)
    assert _violated(raw).startswith("not a message to the guest")


def test_a_message_of_two_frames(raw: Host) -> None:
    raw.send_raw(messages.encode(messages.ShutdownSandbox(id=1)), b"more")
    assert _violated(raw) == "a message of 2 frames"


def test_a_frame_that_is_too_large_ends_the_sandbox(raw: Host) -> None:
    raw.send_raw(bytes(limits.MESSAGE_BYTES + 1))
    assert "the agent channel broke" in raw.wait_end()


def test_the_largest_message_is_taken(host: Host) -> None:
    text = config("sh", env=["PATH=/bin", "X=" + "x" * (limits.MESSAGE_BYTES - 10_000)])
    assert host.run(config=text) == 1
    assert b"Argument list too long" in host.output[6]  # execve takes less


@pytest.mark.parametrize(
    "request_",
    [
        messages.CreateContainer(id=1, container="c1", config=b"{}", image="test/busybox"),
        messages.StartContainer(id=1, container="c1"),
        messages.SignalContainer(id=1, container="c1", signal=9),
        messages.ExecProcess(id=1, container="c1", process="p1", config=b"{}"),
        messages.PauseContainer(id=1, container="c1"),
        messages.ResumeContainer(id=1, container="c1"),
        messages.UpdateContainer(id=1, container="c1", resources=b"{}"),
        messages.ListProcesses(id=1, container="c1"),
        messages.ReadStatistics(id=1, container="c1"),
        messages.ResizeSandbox(id=1, cpus=1),
        messages.Ping(id=1, time_ns=1),
        messages.DeleteContainer(id=1, container="c1"),
    ],
)
def test_a_request_before_the_configuration(raw: Host, request_: messages.Request) -> None:
    raw.send(request_)
    assert _violated(raw) == "a request before ConfigureSandbox"


@pytest.mark.parametrize("time_ns", [-1, limits.CLOCK_NS + 1, 1 << 63])
def test_a_time_that_no_clock_takes(host: Host, time_ns: int) -> None:
    host.ask(messages.Ping, time_ns=time_ns)
    assert "at `$.time_ns`" in host.wait_end()


@pytest.mark.parametrize("cpus", [0, -1, 4097, 1 << 40])
def test_a_vm_of_no_size(host: Host, cpus: int) -> None:
    host.ask(messages.ResizeSandbox, cpus=cpus)
    assert _violated(host) == f"a VM of {cpus} CPUs"


def test_a_second_configuration(host: Host) -> None:
    host.ask(messages.ConfigureSandbox, init_data=b"", hostname="x", time_ns=1)
    assert _violated(host) == "a second ConfigureSandbox"


def test_values_that_no_clock_and_no_kernel_takes_fail_the_configuration(raw: Host) -> None:
    answer = raw.request(messages.ConfigureSandbox, init_data=b"", hostname="x" * 300, time_ns=1)
    assert isinstance(answer, messages.Failed)
    assert answer.code is ErrorCode.BOOT_FAILED


def test_a_repeated_request_is_answered_again_and_not_carried_out_twice(host: Host) -> None:
    number = host.ask_create("sleep", "1000", **NO_STDIO)
    first = host.answer(number)
    host._next = number - 1
    assert host.ask_create("sleep", "1000", **NO_STDIO) == number
    assert host.answer(number) == first
    host._next = number - 1
    assert host.request(messages.ShutdownSandbox) == first  # the id decides
    assert isinstance(host.delete(), messages.Done)


def test_a_request_that_is_repeated_while_it_is_carried_out_is_answered_once(host: Host) -> None:
    number = host.ask_create("sh", image="test/wait", **NO_STDIO)
    host.expect(messages.Progress)
    host._next = number - 1
    host.ask_create("sh", image="test/wait", **NO_STDIO)
    delete = host.ask(messages.DeleteContainer, container="c1")
    host.answer(delete)
    answers = [m for m in host.seen if isinstance(m, messages.Failed) and m.id == number]
    assert len(answers) == 1
    host.silence()


def test_a_request_that_is_long_forgotten(host: Host) -> None:
    for _ in range(300):
        answer = host.request(messages.StartContainer, container="none")
        assert isinstance(answer, messages.Failed)
    host.send(messages.StartContainer(id=2, container="none"))
    assert _violated(host) == "request 2 is older than what is remembered"


@pytest.mark.parametrize(
    "message",
    [
        StreamData(stream=8, data=b"x"),
        StreamData(stream=7, data=b"x"),
        StreamData(stream=-1, data=b"x"),
        StreamEnd(stream=8),
        StreamReset(stream=8),
        StreamCredit(stream=8, bytes=1 << 62),
        messages.TunnelOpened(stream=1),
        messages.TunnelOpened(stream=2),
        messages.ResizeTerminal(container="c1", rows=1, columns=1),
        messages.ResizeTerminal(container="", process="\0", rows=1, columns=1),
    ],
)
def test_words_about_streams_and_terminals_that_are_not_there_are_dropped(
    host: Host, message: messages.Message
) -> None:
    host.send(message)
    assert host.run("sh", "-c", "exit 3", **NO_STDIO) == 3


@pytest.mark.parametrize(
    ("hostile", "text"),
    [
        ([StreamData(stream=2, data=bytes(65537))], "stream data of 65537 bytes in one message"),
        ([StreamData(stream=2, data=bytes(65536))] * 18, "beyond the credit"),
        ([StreamCredit(stream=4, bytes=1)], "credit of 1 bytes for a stream that owes less"),
        ([StreamCredit(stream=4, bytes=0)], "credit of 0 bytes"),
        ([StreamCredit(stream=4, bytes=-5)], "credit of -5 bytes"),
        ([StreamCredit(stream=2, bytes=5)], "stream 2 has no such direction"),
        ([StreamData(stream=4, data=b"x")], "stream 4 has no such direction"),
        ([StreamEnd(stream=6)], "stream 6 has no such direction"),
        (
            [StreamData(stream=2, data=bytes(65536))] * 4 + [StreamEnd(stream=2)] * 2,
            "second end of stream 2",
        ),
        (
            [
                *[StreamData(stream=2, data=bytes(65536))] * 4,
                StreamEnd(stream=2),
                StreamData(stream=2, data=b"x"),
            ],
            "data of stream 2 after its end",
        ),
    ],
)
def test_streams_that_do_not_keep_their_credit_and_order(
    host: Host, hostile: list[messages.Message], text: str
) -> None:
    host.create("sleep", "1000")
    for message in hostile:
        host.send(message)
    assert text in _violated(host)


@pytest.mark.parametrize(
    "streams",
    [
        {"stdin": 1},
        {"stdout": 3},
        {"stdin": 2, "stdout": 2},
        {"stderr": -2},
        {"stdout": 40},
    ],
)
def test_stream_ids_that_are_not_new_and_even(host: Host, streams: dict[str, int]) -> None:
    host.create("sleep", "1000", container="c0", stdin=0, stdout=40, stderr=0)
    host.ask_create("sh", **(NO_STDIO | streams))
    assert "is not a new one of the host's" in _violated(host)


@pytest.mark.parametrize(
    ("hostile", "text"),
    [
        ([StreamData(stream=12, data=bytes(65537))], "stream data of 65537 bytes in one message"),
        ([StreamData(stream=12, data=bytes(65536))] * 18, "beyond the credit"),
        ([StreamCredit(stream=14, bytes=1)], "credit of 1 bytes for a stream that owes less"),
        ([StreamCredit(stream=12, bytes=5)], "stream 12 has no such direction"),
        ([StreamData(stream=16, data=b"x")], "stream 16 has no such direction"),
    ],
)
@pytest.mark.parametrize("waits", [True, False])
def test_streams_of_an_executed_program_that_do_not_keep_their_credit(
    host: Host, hostile: list[messages.Message], text: str, *, waits: bool
) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    number = host.ask_execute("sleep", "1000")
    if waits:
        host.answer(number)
    for message in hostile:
        host.send(message)
    assert text in _violated(host)


@pytest.mark.parametrize(
    ("hostile", "text"),
    [
        ([StreamData(stream=2, data=bytes(65536))] * 18, "beyond the credit"),
        ([StreamEnd(stream=2)] * 2, "second end of stream 2"),
        ([StreamCredit(stream=4, bytes=1)], "credit of 1 bytes for a stream that owes less"),
        ([StreamData(stream=4, data=b"x")], "stream 4 has no such direction"),
        ([messages.ResizeTerminal(container="c1", rows=-1, columns=1)], "a terminal of -1 x 1"),
        ([messages.ResizeTerminal(container="", rows=1, columns=65536)], "of 1 x 65536"),
        ([messages.ResizeTerminal(container="c1", rows=1 << 62, columns=1)], "a terminal of"),
    ],
)
def test_terminals_before_they_are_there(
    host: Host, hostile: list[messages.Message], text: str
) -> None:
    request = config("sleep", "1000", terminal=True)
    host.ask_create(config=request, terminal=True, stderr=0, image="test/wait")
    for message in hostile:
        host.send(message)
    assert text in _violated(host)


@pytest.mark.parametrize(
    ("members", "text"),
    [
        ({"stdin": 4}, "stream 4 is not a new one of the host's"),
        ({"stdin": 13}, "stream 13 is not a new one"),
        ({"stdout": 12}, "stream 12 is not a new one"),
        ({"stderr": -16}, "stream -16 is not a new one"),
        ({"terminal": True}, "a terminal has its output on stdout only"),
        ({"terminal": True, "stdout": 0, "stderr": 0}, "a terminal has its output on stdout only"),
        ({"terminal": True, "stderr": 0, "rows": 65536}, "a terminal of 65536 x 0"),
        ({"columns": -1}, "a terminal of 0 x -1"),
    ],
)
def test_streams_and_sizes_of_a_program_to_execute(
    host: Host, members: dict[str, int], text: str
) -> None:
    host.create("sleep", "1000")
    host.start()
    host.ask_execute("sh", **members)
    assert text in _violated(host)


def test_a_storm_of_programs_is_bounded(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    asked = [
        host.ask_execute("sleep", "1000", process=f"p{number}", **NO_STDIO) for number in range(140)
    ]
    threads = len(list(Path(f"/proc/{host.agent_pid}/task").iterdir()))
    answers = host.answers(asked)
    refused = [answer for answer in answers.values() if isinstance(answer, messages.Failed)]
    assert {answer.text for answer in refused} == {"the sandbox has too many processes"}
    assert len(refused) == 12
    assert threads < 160
    assert isinstance(host.delete(), messages.Done)
    assert len(host.exec_exits) == 128


def test_streams_for_programs_run_out_in_words(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    asked = [
        host.ask_execute(
            "sleep",
            "1000",
            process=f"p{n}",
            stdin=100 + 6 * n,
            stdout=102 + 6 * n,
            stderr=104 + 6 * n,
        )
        for n in range(100)
    ]
    answers = host.answers(asked)
    refused = [answer for answer in answers.values() if isinstance(answer, messages.Failed)]
    assert {answer.text for answer in refused} == {"the sandbox has too many processes"}
    assert len(refused) == 100 - 85
    assert isinstance(host.delete(), messages.Done)


def test_the_largest_process_is_taken(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    text = process_config("sh", env=["PATH=/bin", "X=" + "x" * (limits.MESSAGE_BYTES - 10_000)])
    answer = host.execute(config=text)
    assert isinstance(answer, messages.Failed)
    assert answer.text == "exec `sh`: Argument list too long"


def test_too_many_containers_are_refused(host: Host) -> None:
    for number in range(65):
        host.ask_create("sh", image="test/wait", container=f"c{number}", **NO_STDIO)
    answer = host.until(lambda message: isinstance(message, messages.Failed))
    assert "too many containers" in str(answer)


def test_more_requests_than_can_wait(host: Host) -> None:
    host.ask_create("sh", image="test/wait", **NO_STDIO)
    for _ in range(300):
        host.ask(messages.DeleteContainer, container="c1")
        host.ask_create("sh", image="test/wait", **NO_STDIO)
    # Whatever is answered in between, the agent stays with the protocol or says that it ends.
    host.ask(messages.ShutdownSandbox)
    host.wait_end()


@pytest.mark.parametrize("configured", [True, False])
def test_a_host_that_goes_away_ends_the_sandbox(tmp_path: Path, configured: bool) -> None:
    with agent(tmp_path) as host:
        if configured:
            host.configure()
            host.create("sleep", "1000", **NO_STDIO)
            host.start()
        else:
            host.expect(messages.Hello)
        host.socket.setsockopt(zmq.LINGER, 0)
        host.disappear()
        assert "the agent channel broke: the host closed its end" in host.wait_end()


def test_a_host_that_does_not_speak_zmtp(tmp_path: Path) -> None:
    with agent(tmp_path, port=True) as host:
        host.port.sendall(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n" * 10)
        assert "the agent has ended" in host.wait_end()  # libzmq takes it for ZMTP 1.0


def test_a_host_that_says_nothing_gets_nothing_and_costs_nothing(tmp_path: Path) -> None:
    with agent(tmp_path, port=True) as host:
        wait(lambda: host.has_begun and _idles(host, 1.0), SECONDS)  # it has come up
        with pytest.raises(BlockingIOError):
            host.port.recv(1, 0x40)  # MSG_DONTWAIT
        assert host.process.poll() is None


def _idles(host: Host, seconds: float) -> bool:
    used = host.cpu_seconds()
    time.sleep(seconds)
    return host.cpu_seconds() - used < 0.05


def test_an_idle_agent_does_not_spin(host: Host) -> None:
    host.create("cat")
    host.start()
    host.create("yes", container="c2", stdin=0, stdout=20, stderr=0)
    host.credit = False
    host.start("c2")
    while len(host.output.get(20, b"")) < limits.STREAM_WINDOW_BYTES:
        host.receive()
    wait(lambda: _idles(host, 1.5), SECONDS)  # what it was at is done
