"""Programs that are executed in a running container, by the real agent with real crun."""

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.agent import NOT_RUN, Host, agent, config, process_config
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode, Phase

pytestmark = pytest.mark.root

STDIN, STDOUT, STDERR = 12, 14, 16
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """An agent with a container that runs and says nothing."""
    with agent(tmp_path) as host:
        host.configure()
        host.create("sleep", "1000", **NO_STDIO)
        host.start()
        yield host


def _failed(answer: messages.Message, code: ErrorCode, phase: Phase = Phase.START) -> str:
    assert isinstance(answer, messages.Failed), answer
    assert (answer.code, answer.phase) == (code, phase), answer
    assert "\n" not in answer.text
    return answer.text


def _left_behind(host: Host) -> tuple[list[str], int, list[str]]:
    """Files, processes and pipes of executions."""
    files = host.guest_path("/run/sealrun/containers/.exec")
    children = Path(f"/proc/{host.agent_pid}/task/{host.agent_pid}/children").read_text().split()
    descriptors = [os.readlink(entry) for entry in Path(f"/proc/{host.agent_pid}/fd").iterdir()]
    return (
        [entry.name for entry in files.iterdir()] if files.exists() else [],
        len(children),
        [name for name in descriptors if name.startswith(("pipe:", "/dev/p")) or "fifo" in name],
    )


ONLY_THE_CONTAINER: tuple[list[str], int, list[str]] = ([], 1, [])


def test_output_and_exit_code(host: Host) -> None:
    script = "echo out; echo err >&2; cat /proc/1/comm; exit 7"
    assert host.run_in("sh", "-c", script) == 7
    assert host.output == {STDOUT: b"out\nsleep\n", STDERR: b"err\n"}
    assert isinstance(host.seen[-1], messages.ProcessExited)
    assert host.seen[-1] == messages.ProcessExited(container="c1", process="p1", code=7)
    host.silence()
    assert _left_behind(host) == ONLY_THE_CONTAINER
    assert host.run_in("sh", "-c", "exit 8") == 8  # name and streams are free again


def test_binary_input_comes_back_unchanged_after_half_close(host: Host) -> None:
    data = random.Random(1).randbytes(1 << 19)
    assert isinstance(host.execute("cat"), messages.Done)
    for start in range(0, len(data), 50_000):
        host.send(messages.StreamData(stream=STDIN, data=data[start : start + 50_000]))
    host.send(messages.StreamEnd(stream=STDIN))
    assert host.exec_exit_code() == 0
    assert bytes(host.output[STDOUT]) == data


def test_input_that_arrives_before_the_program_runs_is_kept(host: Host) -> None:
    number = host.ask_execute("cat")
    host.send(messages.StreamData(stream=STDIN, data=b"early"))
    host.send(messages.StreamEnd(stream=STDIN))
    assert isinstance(host.answer(number), messages.Done)
    assert host.exec_exit_code() == 0
    assert host.output[STDOUT] == b"early"


@pytest.mark.parametrize(
    ("program", "code", "text"),
    [
        *NOT_RUN,
        (
            "/bin/garbage",
            ErrorCode.PROGRAM_NOT_EXECUTABLE,
            "exec `/bin/garbage`: Exec format error",
        ),
        (
            "/bin/no-interpreter",
            ErrorCode.PROGRAM_NOT_FOUND,
            "exec `/bin/no-interpreter`: No such file or directory",
        ),
    ],
)
def test_a_program_that_cannot_be_run(host: Host, program: str, code: ErrorCode, text: str) -> None:
    assert _failed(host.execute(program), code) == text
    assert host.output == {}
    host.silence()
    assert _left_behind(host) == ONLY_THE_CONTAINER
    assert host.run_in("sh", "-c", "exit 4") == 4


def test_a_very_long_name_of_a_program_that_is_not_there(host: Host) -> None:
    text = _failed(host.execute("x" * 120_000), ErrorCode.RUNTIME_FAILED)
    assert text.startswith("open executable `xxx")
    assert len(text.encode()) <= limits.ERROR_TEXT_BYTES


def test_a_directory_that_is_not_there(host: Host) -> None:
    answer = host.execute(config=process_config("sh", cwd="/no/such"))
    assert (
        _failed(answer, ErrorCode.RUNTIME_FAILED) == "chdir `/no/such`: No such file or directory"
    )


@pytest.mark.parametrize(
    ("process", "text"),
    [
        (b"", "process: input data was truncated"),
        (b"{}", "process: object missing required field args"),
        (process_config(), "process.args: there is no program to run"),
        (process_config("sh", cwd="x"), "process.cwd: 'x' is not an absolute path"),
        (process_config("sh", env=[5]), "process.env[0]: expected str, got int"),
        (process_config("sh", "a\0b"), "process.args[1]: it holds a NUL character"),
        (process_config("sh", terminal=True), "process.terminal: the request says otherwise"),
        (process_config("sh", hidden=1), "process: object contains unknown field hidden"),
    ],
)
def test_a_process_that_is_refused(host: Host, process: bytes, text: str) -> None:
    assert _failed(host.execute(config=process), ErrorCode.SPEC_REFUSED) == text
    assert _left_behind(host) == ONLY_THE_CONTAINER


def test_user_groups_environment_directory_and_limits(host: Host) -> None:
    script = "id -u; id -g; id -G; echo $COLOUR; pwd; umask; ulimit -n; cat /proc/self/status"
    process = process_config(
        "sh",
        "-c",
        script,
        user={"uid": 1000, "gid": 1001, "umask": 0o27, "additionalGids": [5, 6]},
        env=["PATH=/bin", "COLOUR=blue"],
        cwd="/etc",
        noNewPrivileges=True,
        rlimits=[{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}],
        capabilities={name: ["CAP_KILL"] for name in ("bounding", "effective", "permitted")},
        oomScoreAdj=123,
        apparmorProfile="whatever",
        selinuxLabel="whatever",
    )
    assert host.run_in(config=process) == 0
    lines = bytes(host.output[STDOUT]).decode().splitlines()
    assert lines[:7] == ["1000", "1001", "1001 5 6", "blue", "/etc", "0027", "77"]
    status = dict(line.split(":\t", 1) for line in lines[7:])
    assert status["NoNewPrivs"] == "1"
    assert int(status["CapBnd"], 16) == 1 << 5
    assert int(status["CapEff"], 16) == 0  # not root, and none of them ambient


def test_the_oom_score_of_the_process(host: Host) -> None:
    script = "while [ $(cat /proc/self/oom_score_adj) = 0 ]; do sleep 0.01; done"
    assert host.run_in(config=process_config("sh", "-c", script, oomScoreAdj=321)) == 0


def test_without_an_environment_it_is_the_container_s(host: Host) -> None:
    process = b'{"args":["env"],"cwd":"/","user":{"uid":0,"gid":0}}'
    assert host.run_in(config=process) == 0
    assert b"PATH=/bin" in host.output[STDOUT].splitlines()


def test_no_other_descriptor_reaches_the_program(host: Host) -> None:
    assert host.run_in("sh", "-c", "echo /proc/self/fd/*") == 0
    assert host.output[STDOUT].split() == [b"/proc/self/fd/%d" % fd for fd in range(4)]


def test_signals_reach_the_process_and_only_it(host: Host) -> None:
    script = "trap 'echo hangup; exit 5' HUP; echo ready; while :; do sleep 0.05; done"
    assert isinstance(host.execute("sh", "-c", script), messages.Done)
    host.wait_output(b"ready\n", STDOUT)
    other = {"process": "p2", "stdin": 0, "stdout": 24, "stderr": 0}
    assert isinstance(host.execute("sh", "-c", script, **other), messages.Done)
    host.wait_output(b"ready\n", 24)
    members = {"container": "c1", "process": "p1"}
    for wrong in (-1, 65, 1 << 40):
        answer = host.request(messages.SignalContainer, signal=wrong, **members)
        _failed(answer, ErrorCode.RUNTIME_FAILED, Phase.RUN)
    assert isinstance(host.request(messages.SignalContainer, signal=1, **members), messages.Done)
    assert host.exec_exit_code() == 5
    answer = host.request(messages.SignalContainer, signal=1, **members)
    _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN)
    members["process"] = "p2"
    assert isinstance(host.request(messages.SignalContainer, signal=9, **members), messages.Done)
    assert host.exec_exit_code("p2") == 137
    assert host.exits == {}


def test_a_killed_process_takes_its_children_output_along(host: Host) -> None:
    assert isinstance(host.execute("sh", "-c", "sleep 1000 & echo up; wait"), messages.Done)
    host.wait_output(b"up\n", STDOUT)
    host.request(messages.SignalContainer, container="c1", process="p1", signal=9)
    assert host.exec_exit_code() == 137  # though the child holds the pipe


def test_the_container_s_end_is_its_processes_end(host: Host) -> None:
    for number in range(4):
        streams = {"stdin": 0, "stdout": 20 + 2 * number, "stderr": 0}
        done = host.execute("sleep", "1000", process=f"p{number}", **streams)
        assert isinstance(done, messages.Done)
    host.request(messages.SignalContainer, container="c1", signal=9)
    assert host.exit_code() == 137
    while len(host.exec_exits) < 4:  # the kernel ends them in its own order
        host.receive()
    assert host.exec_exits == {f"p{number}": 137 for number in range(4)}
    answer = host.execute("sh")
    text = _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN)
    assert text == "cannot execute a program in container c1: it is stopped"
    assert isinstance(host.delete(), messages.Done)
    assert _left_behind(host) == ([], 0, [])


def test_delete_ends_processes_and_says_so_first(host: Host) -> None:
    host.credit = False
    assert isinstance(host.execute("yes"), messages.Done)
    assert isinstance(host.delete(), messages.Done)
    exits = [message for message in host.seen if isinstance(message, messages.ProcessExited)]
    # In either order: the program's output, which nobody takes, holds its end back.
    assert sorted(message.process for message in exits) == ["", "p1"]
    assert STDOUT in host.ended
    assert _left_behind(host) == ([], 0, [])
    host.silence()


def test_delete_meets_exec_at_any_moment(host: Host) -> None:
    for number in range(20):
        asked = host.ask_execute("sleep", "1000", process=f"p{number}")
        time.sleep(0.002 * (number % 10))
        delete = host.ask(messages.DeleteContainer, container="c1")
        answers = host.answers([asked, delete])
        if isinstance(answers[asked], messages.Done):
            assert host.exec_exit_code(f"p{number}") == 137
        assert isinstance(answers[delete], messages.Done)
        assert isinstance(host.create("sleep", "1000", **NO_STDIO), messages.Done)
        host.start()
    assert _left_behind(host) == ONLY_THE_CONTAINER


def test_states_in_which_nothing_can_be_executed(host: Host) -> None:
    answer = host.execute("sh", container="c9")
    _failed(answer, ErrorCode.CONTAINER_UNKNOWN, Phase.RUN)
    number = host.ask_create("sh", image="test/wait", container="c2", **NO_STDIO)
    answer = host.execute("sh", container="c2")
    assert _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN).endswith("it is being created")
    host.ask(messages.DeleteContainer, container="c2")
    host.answer(number)


def test_beside_a_program_that_waits_to_be_started(host: Host) -> None:
    members = {"container": "c2", "stdin": 0, "stdout": 4, "stderr": 0}
    host.create("sh", "-c", "cat /left; exit 5", **members)
    done = host.execute("sh", "-c", "echo before >/left", container="c2")
    assert isinstance(done, messages.Done), done
    assert host.exec_exit_code() == 0
    host.start("c2")
    assert host.exit_code("c2") == 5
    assert host.output[4] == b"before\n"


def test_names_of_processes(host: Host) -> None:
    for name in ("", ".", "..", "a/b", "-x", "x" * 129, "ä", "a\nb"):
        answer = host.execute("sh", process=name, **NO_STDIO)
        _failed(answer, ErrorCode.SPEC_REFUSED, Phase.RUN)
    assert isinstance(host.execute("sleep", "1000", **NO_STDIO), messages.Done)
    answer = host.execute("sh", **NO_STDIO)
    text = _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN)
    assert text == "cannot execute process 'p1' of container c1: it exists"
    host.create("sleep", "1000", container="c2", **NO_STDIO)
    host.start("c2")
    assert isinstance(host.execute("sh", container="c2", **NO_STDIO), messages.Done)


def test_dozens_at_once(host: Host) -> None:
    count = 48
    asked = [
        host.ask_execute(
            "sh",
            "-c",
            f"echo {n}; exit {n}",
            process=f"p{n}",
            stdin=0,
            stdout=100 + 2 * n,
            stderr=0,
        )
        for n in range(count)
    ]
    answers = host.answers(asked)
    assert all(isinstance(answer, messages.Done) for answer in answers.values()), answers
    assert [host.exec_exit_code(f"p{n}") for n in range(count)] == list(range(count))
    assert {n: bytes(host.output[100 + 2 * n]) for n in range(count)} == {
        n: f"{n}\n".encode() for n in range(count)
    }
    assert _left_behind(host) == ONLY_THE_CONTAINER


def test_200_in_a_row_without_growth(host: Host) -> None:
    for number in range(200):
        assert host.run_in("sh", "-c", f"exit {number}", **NO_STDIO) == number
        if number == 5:
            before = host.counts()
    host.wait_counts(before)


def test_a_repeated_request_is_carried_out_once(host: Host) -> None:
    number = host.ask_execute("sh", "-c", "echo once >>/log", **NO_STDIO)
    first = host.answer(number)
    assert host.exec_exit_code() == 0
    host._next = number - 1
    assert host.answer(host.ask_execute("sh", "-c", "echo once >>/log", **NO_STDIO)) == first
    assert host.run_in("cat", "/log") == 0
    assert host.output[STDOUT] == b"once\n"


def test_seccomp_and_masked_paths_hold_for_executed_programs(host: Host) -> None:
    linux: dict[str, Any] = {
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
        },
    }
    request = config("sleep", "1000", linux=linux)
    assert isinstance(host.create(config=request, container="c2", **NO_STDIO), messages.Done)
    host.start("c2")
    script = "mkdir /x 2>&1; echo 1 >/proc/sys/kernel/panic; head -c 1 /proc/kcore | wc -c"
    done = host.execute("sh", "-c", script, container="c2")
    assert isinstance(done, messages.Done)
    assert host.exec_exit_code() == 0
    assert b"can't create directory '/x': Operation not supported" in host.output[STDOUT]
    assert b"Read-only file system" in host.output[STDERR]
