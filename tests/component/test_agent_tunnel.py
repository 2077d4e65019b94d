"""Tunnels: a worker of the real agent talks through the host, which the test plays."""

import pytest
from fixtures.agent import Host
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode, Phase

pytestmark = pytest.mark.root

STDOUT = 4
SENT = b"give\n" * 100_000


def _opened(host: Host) -> int:
    request = host.expect(messages.OpenTunnel)
    assert (request.host, request.port) == ("registry.example", 5000)
    assert request.stream % 2 == 1
    return int(request.stream)


def _create(host: Host, container: str = "c1", stdout: int = STDOUT) -> int:
    streams = {"stdin": 0, "stdout": stdout, "stderr": 0}
    return host.ask_create(
        "cat", "/fetched", container=container, image="test/dial/registry.example/5000", **streams
    )


def _send(host: Host, stream: int, data: bytes) -> None:
    """As a host that keeps to its credit."""
    credit = limits.STREAM_WINDOW_BYTES
    while data:
        chunk = data[: min(credit, limits.STREAM_CHUNK_BYTES)]
        host.send(messages.StreamData(stream=stream, data=chunk))
        data, credit = data[len(chunk) :], credit - len(chunk)
        while not credit:
            message = host.receive()
            if isinstance(message, messages.StreamCredit) and message.stream == stream:
                credit += message.bytes


def test_bytes_pass_both_ways_with_half_close(host: Host) -> None:
    number = _create(host)
    stream = _opened(host)
    host.send(messages.TunnelOpened(stream=stream))
    while stream not in host.ended:
        host.receive()
    assert host.output.pop(stream) == SENT
    answer = bytes(range(256)) * 10_000
    _send(host, stream, answer)
    host.send(messages.StreamEnd(stream=stream))
    assert isinstance(host.answer(number), messages.Done)
    host.start()
    assert host.exit_code() == 0
    assert host.output[STDOUT] == answer


def test_several_tunnels_have_ids_of_their_own(host: Host) -> None:
    numbers = [_create(host, f"c{stdout}", stdout) for stdout in (10, 12, 14)]
    streams = [_opened(host) for _ in numbers]
    assert len(set(streams)) == 3
    for stream in streams:
        host.send(messages.TunnelOpened(stream=stream))
        host.send(messages.StreamEnd(stream=stream))
    answers = {host.expect(messages.Done).id for _ in numbers}
    assert answers == set(numbers)


@pytest.mark.parametrize(
    ("reset", "code", "text"),
    [
        (
            {"code": ErrorCode.ENDPOINT_REFUSED},
            ErrorCode.ENDPOINT_REFUSED,
            "the host did not connect",
        ),
        (
            {"code": ErrorCode.ENDPOINT_REFUSED, "text": "not\nallowed"},
            ErrorCode.ENDPOINT_REFUSED,
            "not allowed",
        ),
        (
            {"code": ErrorCode.REGISTRY_UNREACHABLE, "text": "connection refused"},
            ErrorCode.REGISTRY_UNREACHABLE,
            "connection refused",
        ),
        ({}, ErrorCode.REGISTRY_UNREACHABLE, "the host did not connect"),
    ],
)
def test_a_tunnel_that_the_host_does_not_open(
    host: Host, reset: dict[str, object], code: ErrorCode, text: str
) -> None:
    number = _create(host)
    host.send(messages.StreamReset(stream=_opened(host), **reset))
    failed = host.answer(number)
    assert (failed.phase, failed.code, failed.text) == (Phase.PULL, code, text)
    assert host.run("sh", "-c", "exit 3") == 3


def test_a_tunnel_that_is_reset_under_way_reads_as_ended(host: Host) -> None:
    number = _create(host)
    stream = _opened(host)
    host.send(messages.TunnelOpened(stream=stream))
    host.send(messages.StreamReset(stream=stream))
    answer = host.answer(number)  # what was fetched ended early: the puller's to notice
    assert isinstance(answer, messages.Done | messages.Failed)


@pytest.mark.parametrize("opened", [True, False])
def test_delete_ends_a_pull_that_waits_for_the_network(host: Host, opened: bool) -> None:
    number = _create(host)
    stream = _opened(host)
    if opened:
        host.send(messages.TunnelOpened(stream=stream))
        while len(host.output.get(stream, b"")) < len(SENT):
            host.receive()
    delete = host.ask(messages.DeleteContainer, container="c1")
    assert isinstance(host.answer(number), messages.Failed)
    assert isinstance(host.answer(delete), messages.Done)
    assert [m for m in host.seen if isinstance(m, messages.StreamReset) and m.stream == stream]
    host.send(messages.TunnelOpened(stream=stream))  # crossed the reset
    assert host.run("sh", "-c", "exit 3") == 3


def test_data_for_a_tunnel_that_is_not_open_yet_is_dropped(host: Host) -> None:
    number = _create(host)
    stream = _opened(host)
    host.send(messages.StreamData(stream=stream, data=b"early"))
    host.send(messages.TunnelOpened(stream=stream))
    host.send(messages.StreamData(stream=stream, data=b"right"))
    host.send(messages.StreamEnd(stream=stream))
    assert isinstance(host.answer(number), messages.Done)
    host.start()
    host.exit_code()
    assert host.output[STDOUT] == b"right"


def _create_from_cache(host: Host) -> tuple[int, int]:
    """The ids of the request and of the stream that the guest asks for."""
    number = host.ask_create(
        "cat", "/fetched", image="registry.test/test/content:1", cached=True, stdin=0, stderr=0
    )
    asked = host.expect(messages.OpenContent)
    assert asked.image == "registry.test/test/content:1"
    assert asked.digest.startswith("sha256:")
    return number, int(asked.stream)


def test_content_of_the_hosts_cache_is_read_to_its_end(host: Host) -> None:
    number, stream = _create_from_cache(host)
    host.send(messages.TunnelOpened(stream=stream))
    content = bytes(range(256)) * 10_000
    _send(host, stream, content)
    host.send(messages.StreamEnd(stream=stream))
    assert isinstance(host.answer(number), messages.Done)
    host.start()
    assert host.exit_code() == 0
    assert host.output[STDOUT] == content


def test_a_host_that_refuses_content_is_heard(host: Host) -> None:
    number, stream = _create_from_cache(host)
    host.send(messages.StreamReset(stream=stream, text="the disk is full"))
    failed = host.answer(number)
    assert isinstance(failed, messages.Failed)
    assert failed.code is ErrorCode.IMAGE_NOT_FOUND
    assert "the disk is full" in failed.text
