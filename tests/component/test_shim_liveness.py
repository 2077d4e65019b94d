"""A VM that hangs: a real shim asks its guest at intervals, and does not wait for ever."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fixtures.shim import Shim, running
from sealrun_protocol import messages
from simulators.guest import Guest

SILENCE = 3
BUSY = 10.0  # what a bound may be exceeded by on a loaded machine


@contextmanager
def started(tmp_path: Path) -> Iterator[tuple[Shim, Guest]]:
    with running(tmp_path, silence_timeout=SILENCE) as shim, shim.guest() as guest:
        create = shim.create()
        guest.create()
        create.ok()
        start = shim.start()
        guest.start()
        start.ok()
        yield shim, guest


def test_a_guest_that_answers_lives(tmp_path: Path) -> None:
    with started(tmp_path) as (shim, guest):
        guest.alive = False
        begun = time.monotonic()
        for _ in range(4):
            guest.send(messages.Done(id=guest.expect(messages.Ping).id))
        assert time.monotonic() - begun < SILENCE + BUSY
        assert shim.state()["status"] == "running"


def test_a_guest_that_falls_silent_is_ended(tmp_path: Path) -> None:
    with started(tmp_path) as (shim, guest):
        guest.alive = False
        guest.send(messages.Done(id=guest.expect(messages.Ping).id))
        begun = time.monotonic()
        assert shim.stdio is not None
        assert shim.stdio.code() == 137
        assert SILENCE <= time.monotonic() - begun < 2 * SILENCE + BUSY
        state = shim.state()
        assert state["status"] == "stopped"
        reason = state["annotations"]["io.sealrun.exit-reason"]
        assert reason == f"the VM hangs: it did not answer for {SILENCE} s"
        shim.gone()


def test_time_for_which_the_shim_was_stopped_itself_does_not_count(tmp_path: Path) -> None:
    """A frozen cgroup holds shim and VM at once."""
    with started(tmp_path) as (shim, guest):
        guest.alive = False
        ping = guest.expect(messages.Ping)
        os.kill(shim.process.pid, signal.SIGSTOP)
        time.sleep(SILENCE + 1)
        os.kill(shim.process.pid, signal.SIGCONT)
        guest.send(messages.Done(id=ping.id))
        guest.send(messages.Done(id=guest.expect(messages.Ping).id))
        assert shim.state()["status"] == "running"
