"""Pausing, listing, figures and limits of containers in the real agent with real crun.

Where this machine gives cgroup v2 no controllers, limits cannot be set here and figures are 0; the
tests in a VM (tests/system/test_guest.py) have both.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.agent import Host, agent
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase

pytestmark = pytest.mark.root

STDOUT = 4
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}
COUNT = "n=0; while :; do n=$((n+1)); echo $n; sleep 0.02; done"


def _failed(answer: messages.Message, code: ErrorCode, phase: Phase = Phase.RUN) -> str:
    assert isinstance(answer, messages.Failed), answer
    assert (answer.code, answer.phase) == (code, phase), answer
    return answer.text


def _ask(host: Host, kind: type[messages.Request], **members: Any) -> Any:
    return host.request(kind, container="c1", **members)


def _document(host: Host, kind: type[messages.Request]) -> Any:
    done = _ask(host, kind)
    assert isinstance(done, messages.Done), done
    return json.loads(done.document)


def _silent(host: Host) -> None:
    """Whatever was under way has arrived, and nothing follows."""
    while host.socket.poll(300):
        host.receive()
    host.silence(0.3)


def test_pause_and_resume(host: Host) -> None:
    host.create("sh", "-c", COUNT)
    host.start()
    host.wait_output(b"1\n2\n")
    assert _ask(host, messages.PauseContainer) == messages.Done(id=host._next)
    _silent(host)
    shown = len(host.output[STDOUT])
    text = _failed(_ask(host, messages.PauseContainer), ErrorCode.WRONG_STATE)
    assert text == "cannot pause container c1: it is paused"
    text = _failed(host.execute("sh"), ErrorCode.WRONG_STATE)
    assert text == "cannot execute a program in container c1: it is paused"
    assert len(_document(host, messages.ListProcesses)) >= 1
    assert isinstance(_ask(host, messages.ResumeContainer), messages.Done)
    while len(host.output[STDOUT]) < shown + 10:
        host.receive()
    text = _failed(_ask(host, messages.ResumeContainer), ErrorCode.WRONG_STATE)
    assert text == "cannot resume container c1: it is running"


def test_executed_programs_are_paused_too(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    assert isinstance(host.execute("sh", "-c", COUNT), messages.Done)
    host.wait_output(b"1\n2\n", 14)
    assert isinstance(_ask(host, messages.PauseContainer), messages.Done)
    _silent(host)
    done = _ask(host, messages.SignalContainer, process="p1", signal=9)
    assert isinstance(done, messages.Done)
    assert host.exec_exit_code() == 137


def test_signals_reach_a_paused_container_when_it_goes_on(host: Host) -> None:
    host.create("sh", "-c", f"trap 'echo term; exit 3' TERM; {COUNT}")
    host.start()
    host.wait_output(b"1\n")
    assert isinstance(_ask(host, messages.PauseContainer), messages.Done)
    _silent(host)
    for everyone in (False, True):
        done = _ask(host, messages.SignalContainer, signal=15, all=everyone)
        assert isinstance(done, messages.Done)
    host.silence(0.3)
    assert isinstance(_ask(host, messages.ResumeContainer), messages.Done)
    assert host.exit_code() == 3


@pytest.mark.parametrize("everyone", [False, True])
def test_a_paused_container_can_be_killed(host: Host, *, everyone: bool) -> None:
    host.create("sh", "-c", f"sleep 1000 & {COUNT}")
    host.start()
    host.wait_output(b"1\n")
    assert isinstance(_ask(host, messages.PauseContainer), messages.Done)
    done = _ask(host, messages.SignalContainer, signal=9, all=everyone)
    assert isinstance(done, messages.Done)
    assert host.exit_code() == 137
    assert isinstance(host.delete(), messages.Done)
    assert not list(host.guest_path("/sys/fs/cgroup/sealrun").glob("*/"))


def test_a_paused_container_can_be_deleted_and_shut_down(host: Host) -> None:
    for _ in range(2):
        host.create("sh", "-c", COUNT, stdin=0, stdout=0, stderr=0)
        host.start()
        assert isinstance(_ask(host, messages.PauseContainer), messages.Done)
        assert isinstance(host.delete(), messages.Done)
    host.create("sh", "-c", COUNT, stdin=0, stdout=0, stderr=0)
    host.start()
    assert isinstance(_ask(host, messages.PauseContainer), messages.Done)
    assert isinstance(host.request(messages.ShutdownSandbox), messages.Done)


def test_a_ping_is_answered_while_a_container_is_busy_or_paused(host: Host) -> None:
    host.create("sh", "-c", COUNT)
    host.start()
    assert host.request(messages.Ping, time_ns=1) == messages.Done(id=host._next)
    assert isinstance(_ask(host, messages.PauseContainer), messages.Done)
    assert host.request(messages.Ping, time_ns=1) == messages.Done(id=host._next)


def test_cpus_that_were_added_are_waited_for(host: Host) -> None:
    """The simulated VM has 4."""
    assert host.request(messages.ResizeSandbox, cpus=4) == messages.Done(id=host._next)
    begun = time.monotonic()
    missing = host.ask(messages.ResizeSandbox, cpus=5)
    assert isinstance(host.request(messages.Ping, time_ns=1), messages.Done), "it does not block"
    text = _failed(host.answer(missing), ErrorCode.RUNTIME_FAILED)
    assert text == "only 4 of 5 CPUs came in 10 s"
    assert time.monotonic() - begun >= 10


def test_a_container_that_ends_while_it_is_being_paused(host: Host) -> None:
    for number in range(20):
        host.create("sh", "-c", "exit 5", stdin=0, stdout=0, stderr=0)
        start = host.ask(messages.StartContainer, container="c1")
        time.sleep(0.001 * number)
        asked = [
            host.ask(kind, container="c1")
            for kind in (
                messages.PauseContainer,
                messages.ListProcesses,
                messages.ReadStatistics,
                messages.ResumeContainer,
            )
        ]
        host.answers([start, *asked])
        assert host.exit_code() == 5
        assert isinstance(host.delete(), messages.Done)


@pytest.mark.parametrize(
    ("kind", "members", "verb"),
    [
        (messages.PauseContainer, {}, "pause"),
        (messages.ResumeContainer, {}, "resume"),
        (messages.UpdateContainer, {"resources": b"{}"}, "update"),
        (messages.ListProcesses, {}, "list the processes of"),
        (messages.ReadStatistics, {}, "read the statistics of"),
    ],
)
def test_states(
    host: Host, kind: type[messages.Request], members: dict[str, Any], verb: str
) -> None:
    _failed(_ask(host, kind, **members), ErrorCode.CONTAINER_UNKNOWN)
    host.create("sh", "-c", "exit 0", **NO_STDIO)
    if kind is messages.ResumeContainer:
        text = _failed(_ask(host, kind, **members), ErrorCode.WRONG_STATE)
        assert text == f"cannot {verb} container c1: it is created"
    else:
        assert isinstance(_ask(host, kind, **members), messages.Done)
    if kind is messages.PauseContainer:
        start = host.request(messages.StartContainer, container="c1")
        assert _failed(start, ErrorCode.WRONG_STATE) == "cannot start container c1: it is paused"
        assert isinstance(_ask(host, messages.ResumeContainer), messages.Done)
    host.start()
    host.exit_code()
    text = _failed(_ask(host, kind, **members), ErrorCode.WRONG_STATE)
    assert text == f"cannot {verb} container c1: it is stopped"


def test_the_processes_of_a_container(host: Host) -> None:
    host.create("sh", "-c", "sleep 1001 & echo up; wait")
    host.start()
    host.wait_output(b"up\n")
    host.create("sleep", "1003", container="c2", **NO_STDIO)
    assert isinstance(host.execute("sleep", "1002", **NO_STDIO), messages.Done)
    first, second, third = _document(host, messages.ListProcesses)
    assert first["command"] == "sh -c sleep 1001 & echo up; wait"
    assert (first["ppid"], first["uid"], first["container_pid"]) == (0, 0, 1)
    assert (second["command"], second["ppid"]) == ("sleep 1001", first["pid"])
    assert (third["command"], third["ppid"]) == ("sleep 1002", 0)
    assert first["pid"] < second["pid"] < third["pid"]
    assert set(first) == {"pid", "ppid", "uid", "command", "container_pid"}


def test_processes_in_groups_of_the_container_s_own_are_listed_and_signalled(host: Host) -> None:
    cgroup = {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}
    from fixtures.agent import config

    script = (
        "mkdir /sys/fs/cgroup/inner; (trap 'echo inner; exit' HUP; echo up; while :; do sleep 0.05; done) &"
        "echo $! >/sys/fs/cgroup/inner/cgroup.procs; trap 'echo outer; wait; exit' HUP; echo up;"
        "while :; do sleep 0.05; done"
    )
    assert isinstance(
        host.create(config=config("sh", "-c", script, mounts=[cgroup])), messages.Done
    )
    host.start()
    host.wait_output(b"up\nup\n")  # both have set their traps
    while len(_document(host, messages.ListProcesses)) < 3:  # two shells, and one sleep or two
        pass
    done = _ask(host, messages.SignalContainer, signal=1, all=True)
    assert isinstance(done, messages.Done)
    host.exit_code()
    assert set(bytes(host.output[STDOUT]).split()) == {b"up", b"inner", b"outer"}


def test_with_a_tee_the_host_is_not_told_what_runs(tmp_path: Path) -> None:
    with agent(tmp_path, tee="snp") as host:
        host.configure()
        host.create("sh", "-c", "exec sleep 1000", **NO_STDIO)
        host.start()
        (process,) = _document(host, messages.ListProcesses)
        assert process["command"] == ""
        assert process["container_pid"] == 1


def test_figures(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    figures = _document(host, messages.ReadStatistics)
    assert set(figures) == {
        "cpu", "cpuset", "memory", "pids", "blkio", "hugetlb", "intel_rdt", "network_interfaces",
    }  # fmt: skip
    assert figures["cpu"]["usage"]["total"] > 0
    assert figures["network_interfaces"] is None  # the agent's own network has lo only


@pytest.mark.parametrize(
    ("resources", "text"),
    [
        (b"", "resources: input data was truncated"),
        (b"[]", "resources: expected object, got array"),
        (b'{"memory":{"limit":"1"}}', "resources.memory.limit: expected int | null, got str"),
        (b'{"memory":{"limt":1}}', "resources.memory: object contains unknown field limt"),
        (b'{"unified":{"cgroup.kill":"1"}}', "resources.unified: 'cgroup.kill' is not accepted"),
        (b'{"unified":{"../x":"1"}}', "resources.unified: '../x' is not accepted"),
        (b'{"pids":{"limit":null,"x":1}}', "resources.pids: object contains unknown field x"),
    ],
)
def test_limits_that_are_refused(host: Host, resources: bytes, text: str) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    answer = _ask(host, messages.UpdateContainer, resources=resources)
    assert _failed(answer, ErrorCode.SPEC_REFUSED, Phase.START) == text


def test_limits_that_cannot_be_set_are_said_by_crun(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    answer = _ask(host, messages.UpdateContainer, resources=b'{"unified":{"memory.nothing":"1"}}')
    # It names the file, or the controller where this kernel has it elsewhere (cgroup v1).
    assert "memory" in _failed(answer, ErrorCode.RUNTIME_FAILED, Phase.START)


def test_devices_of_an_update_are_left_out_as_runc_does(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    answer = _ask(host, messages.UpdateContainer, resources=b'{"devices":[{"allow":false}]}')
    assert isinstance(answer, messages.Done)
