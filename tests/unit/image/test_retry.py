"""Retry-After, in both of its forms, and as nobody should write it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.image import retry
from sealrun_agent.image.connection import Broken
from sealrun_protocol.errors import ErrorCode

NOON = 1_790_000_000.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        (" 0 ", 0.0),
        ("Mon, 21 Sep 2026 14:13:50 GMT", 30.0),
        ("Mon, 21 Sep 2020 14:13:50 GMT", 0.0),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("9" * 40, None),
    ],
)
def test_reads(header: str, seconds: float | None) -> None:
    assert retry.retry_after(header, NOON) == seconds


@given(st.text(max_size=80))
def test_any_header_is_read(header: str) -> None:
    assert (retry.retry_after(header, NOON) or 0.0) >= 0


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", slept.append)
    patience = retry.Patience()
    broken = Broken(ErrorCode.REGISTRY_BUSY, "busy", 2.0)
    assert [patience.wait(broken) for _ in range(4)] == [True, True, True, False]
    assert all(2.0 <= seconds < 4 for seconds in slept)
    assert not retry.Patience().wait(Broken(ErrorCode.REGISTRY_BUSY, "busy", 3600.0))
    slept.clear()
    retry.Patience().wait(Broken(ErrorCode.REGISTRY_UNREACHABLE, "cut"))
    assert 0.5 * retry.SECONDS <= slept[0] <= 1.5 * retry.SECONDS
