"""The VM's clock follows the host's, and is not turned back by it."""

import time
from pathlib import Path

import pytest
from sealrun_agent import clock
from sealrun_guest_image import contents
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


def test_at_first_it_is_not_before_the_guest_image_s_packages(
    taken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = tmp_path / "newest"
    monkeypatch.setattr(clock, "NEWEST", str(newest))
    newest.write_text("1700000000\n")
    for host_time in (NOW, 1_700_000_000 * 10**9 + 1, 1_700_000_000 * 10**9 - 1, 1, 0, -1):
        clock.set_first(host_time)
    assert taken == [NOW, 1_700_000_000 * 10**9 + 1, *[1_700_000_000 * 10**9] * 4]


@pytest.mark.parametrize("content", [None, "", "soon\n"])
def test_an_image_that_does_not_say_its_age_does_not_run(
    taken: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None
) -> None:
    monkeypatch.setattr(clock, "NEWEST", str(tmp_path / "newest"))
    if content is not None:
        (tmp_path / "newest").write_text(content)
    with pytest.raises((OSError, ValueError)):
        clock.set_first(NOW)
    assert taken == []


def test_it_is_looked_for_where_the_image_has_it() -> None:
    """There `__file__` is that of the bytecode."""
    ours = Path(clock.__file__).parents[1]
    assert Path("/", contents.OUR_DIRECTORY, Path(clock.NEWEST).relative_to(ours)) == Path(
        "/", contents.NEWEST
    )
