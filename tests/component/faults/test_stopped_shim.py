"""A shim that somebody stopped: every verb that asks it says so soon, and what has to work always does."""

import signal
import subprocess
import time

import pytest
from component.faults.conftest import Creation, Host, exit_code, wait_until

pytestmark = pytest.mark.root

KILLED = 137
BOUND = 30.0  # seconds for what takes two on an idle machine

VERBS = (
    "start ID",
    "kill ID TERM",
    "delete ID",
    "exec ID true",
    "ps ID",
    "pause ID",
    "update --memory 1073741824 ID",
    "events --stats ID",
)


@pytest.fixture
def stopped(host: Host) -> Host:
    """A container that runs, and whose shim was stopped."""
    host.create()
    host.start()
    host.sandbox.kill("shim", signal.SIGSTOP)
    return host


def test_whoever_asks_it_is_told(stopped: Host) -> None:
    """All at once, since each waits for a moment. What failed is not done later, when the shim goes on."""
    remedy = f"use kill -CONT {stopped.sandbox.pid('shim')}, or delete --force"
    began = time.monotonic()
    calls = [begin(stopped, verb.replace("ID", stopped.id).split()) for verb in VERBS]
    statuses = [call.wait() for call in calls]
    took = time.monotonic() - began
    assert statuses == [255 if verb.startswith("exec") else 1 for verb in VERBS]
    expected = f"sealrun: the shim is stopped; {remedy}\n"
    assert [call.said() for call in calls] == [expected] * len(VERBS)
    assert took < BOUND
    stopped.sandbox.kill("shim", signal.SIGCONT)
    listed = stopped.runtime("ps", stopped.id)
    assert b"sleep 1000" in listed.stdout, listed.stderr
    state = stopped.runtime.state(stopped.id)
    assert state is not None
    assert state["status"] == "running"
    stopped.force_away()


def begin(host: Host, arguments: list[str]) -> Creation:
    """A call without pipes: the shim would hold an exec's, which wait for it to take them."""
    errors = host.tmp / f"{arguments[0]}.err"
    command = [host.runtime.binary, "--root", str(host.runtime.root), *arguments]
    null = subprocess.DEVNULL
    with errors.open("wb") as file:
        process = subprocess.Popen(command, stdin=null, stdout=null, stderr=file)
    return Creation(process, errors)


def test_kill_kills(stopped: Host) -> None:
    """As where the guest does not answer: the VM goes, with the shim."""
    stand_in = stopped.sandbox.pid("stand-in")
    began = time.monotonic()
    killed = stopped.runtime("kill", stopped.id, "KILL")
    assert (killed.status, killed.stderr) == (0, "")
    assert exit_code(stand_in) == KILLED
    assert time.monotonic() - began < BOUND
    stopped.runtime.wait_for(stopped.id, "stopped")
    wait_until(lambda: stopped.remains.processes() == [], f"left: {stopped.remains.processes()}")
    assert stopped.runtime("delete", stopped.id).ok
    assert stopped.remains.all() == []
