"""Sizes and durations as they are written on command lines."""

import pytest
from sealrun_runtime.commands import events, update
from sealrun_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("-1", -1),
        ("1024", 1024),
        ("1b", 1),
        ("2k", 2048),
        ("2K", 2048),
        ("2kb", 2048),
        ("2KiB", 2048),
        ("512m", 512 << 20),
        ("1.5g", 3 << 29),
        ("1 GiB", 1 << 30),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert update.size(text) == expected


@pytest.mark.parametrize("text", ["", "m", "1x", "1mm", "one", "1.2.3", "--1", "1e", "nan", "inf"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises((ValueError, OverflowError)):
        update.size(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5s", 5.0), ("100ms", 0.1), ("1m30s", 90.0), ("1.5h", 5400.0), ("10ms", 0.01)],
)
def test_durations(text: str, expected: float) -> None:
    assert events.seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "5", "s", "-5s", "5 s", "5d", "0s", "1ms", "..s", "1..5s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError):
        events.seconds(text)
