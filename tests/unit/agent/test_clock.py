"""The VM's clock follows the host's, and is not turned back by it."""

import os
import time

import pytest
from sealrun_agent import clock
from sealrun_protocol import limits

NOW = 1_800_000_000 * 10**9


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the clock was set to; it shows NOW."""
    found: list[int] = []
    monkeypatch.setattr(time, "time_ns", lambda: NOW)
    monkeypatch.setattr(time, "clock_settime_ns", lambda _clock, value: found.append(value))
    return found


@pytest.mark.parametrize("ahead", [clock.STEP_NS + 1, 86_400 * 10**9, limits.CLOCK_NS - NOW])
def test_it_catches_up(taken: list[int], ahead: int) -> None:
    clock.follow(NOW + ahead)
    assert taken == [NOW + ahead]


@pytest.mark.parametrize("ahead", [clock.STEP_NS, 0, -clock.STEP_NS, -86_400 * 10**9, -NOW])
def test_it_is_not_turned_back_and_not_moved_by_what_a_message_takes(
    taken: list[int], ahead: int
) -> None:
    clock.follow(NOW + ahead)
    assert taken == []


def test_at_first_it_is_not_before_the_guest_image_was_built(taken: list[int]) -> None:
    clock.set_first(NOW + 5)
    clock.set_first(1)
    assert taken == [NOW + 5, os.stat(clock.__file__).st_mtime_ns]
