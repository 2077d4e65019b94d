"""Signals by name and number."""

import signal

import pytest
from sealrun_runtime.commands.kill import signal_number
from sealrun_runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "number"),
    [("9", 9), ("KILL", 9), ("SIGKILL", 9), ("sigterm", 15), ("28", 28), ("0", 0), ("64", 64)]
    + [("SIGRTMIN", signal.SIGRTMIN)]
    + [(one.name, one.value) for one in signal.Signals],
)
def test_signals(text: str, number: int) -> None:
    assert signal_number(text) == number


@pytest.mark.parametrize("text", ["", "65", "-1", "SIG", "SIG_IGN", "_BLOCK", "LUNCH", "9x", "९"])
def test_no_signals(text: str) -> None:
    with pytest.raises(UsageError, match=f"unknown signal {text}"):
        signal_number(text)
