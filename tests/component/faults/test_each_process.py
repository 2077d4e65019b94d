"""Each process of a sandbox is killed in each state of its container: what its stand-in's parent, the
state and `create` then say, that everything ends by itself, and that a delete leaves nothing.
"""

import os
import signal
import subprocess
import time
from typing import NamedTuple

import pytest
from component.faults.conftest import SECONDS, Host, exit_code, wait_until
from fixtures import oci, simulated
from sealrun_runtime import leftovers

pytestmark = pytest.mark.root

KILLED = 137
BOUND = 30.0  # seconds for what takes at most 7 on an idle machine
BY_SIGNAL = -signal.SIGKILL


class End(NamedTuple):
    """code: of the stand-in, as its parent sees it. reason: what io.sealrun.exit-reason contains;
    None where there was nobody to say it."""

    code: int
    reason: str | None


VMM_DIED = "cloud-hypervisor ended with signal 9"
ENDS = {
    "shim": End(KILLED, None),
    "vmm": End(KILLED, VMM_DIED),
    "stand-in": End(BY_SIGNAL, "its stand-in process was killed"),
    "agent": End(KILLED, "the guest powered off"),
    "program": End(KILLED, ""),
    "shim vmm": End(KILLED, None),
    "stand-in vmm": End(BY_SIGNAL, ""),
    "stand-in shim": End(BY_SIGNAL, None),
    "stand-in shim vmm": End(BY_SIGNAL, None),
}
CASES = [(victims, "running") for victims in ENDS] + [
    (victim, state)
    for state in ("created", "paused")
    for victim in ENDS
    if " " not in victim and (victim, state) != ("program", "paused")  # it dies when it is thawed
]


def reach(host: Host, state: str) -> None:
    host.create()
    if state != "created":
        host.start()
    if state == "paused":
        assert host.runtime("pause", host.id).ok
    assert host.sandbox.status() == state


@pytest.mark.parametrize(("victims", "state"), CASES)
def test_of_a_container_that_is_there(host: Host, victims: str, state: str) -> None:
    reach(host, state)
    sandbox, expected = host.sandbox, ENDS[victims]
    stand_in = sandbox.pid("stand-in")
    pids = [sandbox.pid(victim) for victim in victims.split()]
    for number in (signal.SIGSTOP, signal.SIGKILL):  # so that none sees another one die
        for pid in pids:
            os.kill(pid, number)
    assert exit_code(stand_in) == expected.code
    document = host.runtime.wait_for(host.id, "stopped")
    assert document["pid"] == 0
    annotations = document["annotations"]
    if expected.reason is None:
        assert "io.sealrun.exit-code" not in annotations
    else:
        assert annotations["io.sealrun.exit-code"] == str(KILLED)
        assert expected.reason in annotations.get("io.sealrun.exit-reason", "")
    wait_until(lambda: host.remains.processes() == [], f"left: {host.remains.processes()}")
    for verb in (("start",), ("kill",), ("exec",)):
        assert not host.runtime(*verb, host.id, *(["true"] if verb == ("exec",) else [])).ok
    assert host.runtime("delete", host.id).ok, "it is stopped: no force is needed"
    assert host.remains.all() == []


CREATIONS = {
    "shim": "the shim ended without an answer",
    "vmm": VMM_DIED,
    "stand-in": "its stand-in process was killed",
    "agent": "the guest powered off",
}


@pytest.mark.parametrize("victim", CREATIONS)
@pytest.mark.parametrize("moment", ["booting", "pulling"])
def test_while_create_waits(host: Host, moment: str, victim: str) -> None:
    """It says why in one line, and has removed everything when it ends."""
    creation = begin(host, moment)
    if (moment, victim) == ("booting", "agent"):
        (sleeper,) = simulated.children(host.sandbox.pid("vmm"))
        os.kill(sleeper, signal.SIGKILL)
    else:
        host.sandbox.kill(victim)
    assert creation.wait() == 1
    assert CREATIONS[victim] in creation.said()
    assert len(creation.said().splitlines()) == 1
    assert host.remains.all(guests=False) == []
    host.remains.wait_until_none()


@pytest.mark.parametrize("moment", ["booting", "pulling"])
def test_create_itself(host: Host, moment: str) -> None:
    """The shim notices, and takes everything down but the directory."""
    creation = begin(host, moment)
    creation.process.kill()
    assert creation.wait() == -signal.SIGKILL
    wait_until(lambda: host.remains.processes() == [])
    state = host.runtime.wait_for(host.id, "stopped")
    assert state["annotations"]["io.sealrun.exit-reason"] == (
        "whoever asked for the container went away"
    )
    assert "deleted" not in host.runtime("delete", host.id).stderr
    assert host.remains.all() == []


@pytest.mark.parametrize("moment", ["booting", "pulling"])
def test_create_and_shim_at_once(host: Host, moment: str) -> None:
    """Nobody is left to write a state, and so it is stopped."""
    creation = begin(host, moment)
    shim = host.sandbox.pid("shim")
    creation.process.send_signal(signal.SIGSTOP)
    os.kill(shim, signal.SIGKILL)
    creation.process.kill()
    creation.wait()
    wait_until(lambda: host.remains.processes() == [])
    document = host.runtime.state(host.id)
    assert document is not None
    assert (document["status"], document["pid"]) == ("stopped", 0)
    assert host.runtime("delete", host.id).ok
    assert host.remains.all() == []


def begin(host: Host, moment: str):
    """A `create` that is stuck in the boot, or in the pull."""
    if moment == "booting":
        creation = host.begin(host.bundle(simulator="guest=none"))
        creation.wait_for(lambda: said_by_the_shim(host, "launched the VM"))
    else:
        creation = host.begin(host.bundle(image=simulated.WAITING_IMAGE))
        creation.wait_for(lambda: said_by_the_shim(host, "pull: waiting"))
    return creation


def said_by_the_shim(host: Host, text: str) -> bool:
    log = host.sandbox.directory / "shim.log"
    return log.exists() and text in log.read_text()


# --- the processes of an exec ---------------------------------------------------------------------


@pytest.fixture
def executed(host: Host):
    """A running container, and an exec in it that sleeps: its CLI, its stand-in's pid."""
    host.create()
    host.start()
    pid_file = host.tmp / "exec.pid"
    null = subprocess.DEVNULL
    command = [host.runtime.binary, "--root", str(host.runtime.root), "exec"]
    command += ["--pid-file", str(pid_file), host.id, "sleep", "1000"]
    with subprocess.Popen(command, stdin=null, stdout=null, stderr=null) as process:
        wait_until(pid_file.exists, "the program does not run")
        yield process, int(pid_file.read_text())
        process.kill()


def sleepers(host: Host) -> int:
    """How many programs sleep in the container: its own, and the exec's."""
    listed = host.runtime("ps", host.id)
    assert listed.ok, listed.stderr
    return listed.stdout.count(b"sleep 1000")


def test_the_stand_in_of_an_exec(host: Host, executed) -> None:
    """The program goes with it, the container stays."""
    process, stand_in = executed
    assert sleepers(host) == 2
    os.kill(stand_in, signal.SIGKILL)
    assert process.wait(SECONDS) == KILLED
    wait_until(lambda: sleepers(host) == 1)
    assert host.sandbox.status() == "running"
    host.force_away()


def test_the_command_line_of_an_exec(host: Host, executed) -> None:
    """The program goes on, as the program of an engine that is killed does, and can be ended."""
    process, stand_in = executed
    process.kill()
    process.wait(SECONDS)
    assert sleepers(host) == 2
    os.kill(stand_in, signal.SIGKILL)
    wait_until(lambda: sleepers(host) == 1)
    host.remains.processes()  # reaps it, as an engine does, or init
    host.force_away()


def test_orphans_that_nobody_reaps_do_not_hold_up_a_delete(host: Host, executed) -> None:
    """In a container without an init, say: the first process of a pid namespace waits for them."""
    process, stand_in = executed
    process.kill()
    process.wait(SECONDS)
    os.kill(stand_in, signal.SIGKILL)
    wait_until(lambda: sleepers(host) == 1)
    began = time.monotonic()
    done = host.runtime("delete", "--force", host.id)
    assert (done.status, done.stdout, done.stderr) == (0, b"", "")
    assert time.monotonic() - began < leftovers.KILL_SECONDS
    host.remains.wait_until_none()


def test_the_stand_in_of_an_exec_that_stands_still_in_the_host_s_pid_namespace(host: Host) -> None:
    """Nothing but the record of it says that it belongs to the container."""
    bundle = host.bundle()
    linux = oci.read(bundle)["linux"]
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "pid"]
    host.create(oci.edit(bundle, {"linux": linux}))
    host.start()
    pid_file = host.tmp / "exec.pid"
    null = subprocess.DEVNULL
    command = [host.runtime.binary, "--root", str(host.runtime.root), "exec", "--detach"]
    command += ["--pid-file", str(pid_file), host.id, "sleep", "1000"]
    subprocess.run(command, stdin=null, stdout=null, stderr=null, check=True, timeout=SECONDS)
    os.kill(int(pid_file.read_text()), signal.SIGSTOP)
    host.force_away()


def test_an_exec_that_has_ended_leaves_no_record(host: Host) -> None:
    host.create()
    host.start()
    for program in ("true", "/missing"):
        host.runtime("exec", host.id, program)
    wait_until(lambda: not list(host.sandbox.directory.glob("exec:*")))
    host.force_away()


@pytest.mark.parametrize("victim", ["shim", "vmm", "stand-in", "agent"])
def test_the_container_of_an_exec(host: Host, executed, victim: str) -> None:
    process, _ = executed
    host.sandbox.kill(victim)
    assert process.wait(SECONDS) == KILLED
    host.runtime.wait_for(host.id, "stopped")
    wait_until(lambda: host.remains.processes() == [])
    host.force_away()


# --- processes that do not die, but stand still ---------------------------------------------------


@pytest.mark.parametrize("victim", ["vmm", "stand-in", "agent"])
def test_one_that_stands_still_does_not_hold_up_a_delete(host: Host, victim: str) -> None:
    host.create()
    host.start()
    host.sandbox.kill(victim, signal.SIGSTOP)
    host.force_away()


def test_a_shim_that_was_stopped_holds_up_a_delete_for_a_moment(host: Host) -> None:
    host.create()
    host.sandbox.kill("shim", signal.SIGSTOP)
    began = time.monotonic()
    host.force_away()
    assert time.monotonic() - began < BOUND


def test_all_stand_still_and_the_shim_is_dead(host: Host) -> None:
    host.create()
    host.start()
    for role in ("vmm", "stand-in"):
        host.sandbox.kill(role, signal.SIGSTOP)
    host.sandbox.kill("shim")
    host.force_away()
