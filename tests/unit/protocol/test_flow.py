"""Byte credit: never more outstanding than the window, and never a stall."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_protocol import limits
from sealrun_protocol.flow import ReceiveWindow, SendWindow
from sealrun_protocol.messages import ProtocolViolation


@given(st.lists(st.integers(min_value=1, max_value=limits.STREAM_CHUNK_BYTES), max_size=200))
def test_a_sender_that_obeys_is_never_refused_and_never_stalls(sizes: list[int]) -> None:
    sender, receiver = SendWindow(), ReceiveWindow()
    outstanding = 0
    for size in sizes:
        count = min(size, sender.available)
        assert count > 0, "credit came back before the window was used up"
        sender.sent(count)
        receiver.received(count)
        outstanding += count
        assert outstanding <= limits.STREAM_WINDOW_BYTES
        credit = receiver.passed_on(count)
        if credit:
            sender.credited(credit)
            outstanding -= credit


def test_a_receiver_that_passes_nothing_on_stops_the_sender() -> None:
    sender, receiver = SendWindow(), ReceiveWindow()
    total = 0
    while sender.available:
        count = sender.available
        sender.sent(count)
        receiver.received(count)
        total += count
    assert total == limits.STREAM_WINDOW_BYTES


def test_data_beyond_the_credit_is_a_violation() -> None:
    receiver = ReceiveWindow(window=10)
    receiver.received(10)
    with pytest.raises(ProtocolViolation, match="beyond the credit"):
        receiver.received(1)


def test_a_chunk_beyond_the_limit_is_a_violation() -> None:
    with pytest.raises(ProtocolViolation, match="in one message"):
        ReceiveWindow().received(limits.STREAM_CHUNK_BYTES + 1)


@pytest.mark.parametrize("count", [0, -1, 1, 2**62])
def test_credit_that_was_never_owed_is_a_violation(count: int) -> None:
    with pytest.raises(ProtocolViolation, match="owes less"):
        SendWindow().credited(count)
