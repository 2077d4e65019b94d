"""The wire: what decodes, what does not, and that its form does not change by accident."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_protocol import messages
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase
from sealrun_protocol.messages import (
    CreateContainer,
    Failed,
    File,
    Hello,
    ProtocolViolation,
    StreamData,
    StreamReset,
    decode_from_guest,
    decode_from_host,
    encode,
)

HELLO = Hello(version=1, agent_version="0.1.0", tee="none", memory_available_kib=7, uptime_ms=9)


def test_a_message_survives_the_wire() -> None:
    request = CreateContainer(
        id=3,
        container="c",
        config=b"{}",
        image="r/x:1",
        insecure_registries=("127.0.0.1:5000",),
        shared_mounts=(1, 2),
        files={5: File(content=b"\x00\xff", mode=0o600)},
        stdin=2,
    )
    assert decode_from_host(encode(request)) == request
    assert decode_from_guest(encode(HELLO)) == HELLO


def test_the_form_on_the_wire_is_pinned() -> None:
    # A change of this text is a change of the protocol: raise PROTOCOL_VERSION with it.
    assert messages.PROTOCOL_VERSION == 1
    failure = Failed(id=1, phase=Phase.PULL, code=ErrorCode.NO_SPACE, text="full")
    assert msgspec.msgpack.decode(encode(failure)) == {
        "type": "Failed",
        "id": 1,
        "phase": "pull",
        "code": "no-space",
        "text": "full",
    }
    reset = StreamReset(stream=4)
    assert msgspec.msgpack.decode(encode(reset)) == {
        "type": "StreamReset",
        "stream": 4,
        "code": None,
        "text": "",
    }


def test_each_side_accepts_only_what_is_meant_for_it() -> None:
    with pytest.raises(ProtocolViolation, match="not a message to the guest"):
        decode_from_host(encode(HELLO))
    with pytest.raises(ProtocolViolation, match="not a message to the host"):
        decode_from_guest(encode(CreateContainer(id=1, container="c", config=b"", image="i")))


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"type": "Nonsense"},
        {"type": "StreamData", "stream": 1},
        {"type": "StreamData", "stream": "1", "data": b""},
        {"type": "StreamData", "stream": 1, "data": b"", "extra": 1},
        {"type": "Failed", "id": 1, "phase": "lunch", "code": "no-space", "text": ""},
        [],
        None,
        7,
    ],
)
def test_malformed_messages_are_violations(value: object) -> None:
    frame = msgspec.msgpack.encode(value)
    for decode in (decode_from_host, decode_from_guest):
        with pytest.raises(ProtocolViolation):
            decode(frame)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_a_violation(frame: bytes) -> None:
    for decode in (decode_from_host, decode_from_guest):
        try:
            decode(frame)
        except ProtocolViolation:
            continue


def test_deep_nesting_is_a_violation_not_a_crash() -> None:
    with pytest.raises(ProtocolViolation):
        decode_from_host(b"\x91" * 100_000)


@given(st.binary(max_size=70_000), st.integers(min_value=0, max_value=2**63 - 1))
def test_stream_data_is_binary_safe(data: bytes, stream: int) -> None:
    message = StreamData(stream=stream, data=data)
    assert decode_from_host(encode(message)) == message
    assert decode_from_guest(encode(message)) == message


def test_every_code_has_its_sentence_and_remedy() -> None:
    assert set(ERRORS) == set(ErrorCode)
    for info in ERRORS.values():
        assert info.summary and info.remedy
        assert not info.summary.endswith(".") and "\n" not in info.summary + info.remedy
