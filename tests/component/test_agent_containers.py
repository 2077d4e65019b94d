"""The life of containers in the real agent with real crun: states, failures, what is left behind."""

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.agent import NOT_RUN, Host, agent, config, process_config
from sealrun_protocol import messages
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase

pytestmark = pytest.mark.root

STDOUT = 4
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}


def _left_behind(host: Host) -> dict[str, list[str]]:
    """What containers leave in the guest when they should have left nothing."""
    mounts = host.guest_path("/proc/1/mounts").read_text().splitlines()
    children = Path(f"/proc/{host.agent_pid}/task/{host.agent_pid}/children").read_text().split()
    descriptors = [os.readlink(entry) for entry in Path(f"/proc/{host.agent_pid}/fd").iterdir()]
    return {
        "bundles": _names(host.guest_path("/run/sealrun/containers")),
        "rootfs": _names(host.guest_path("/run/sealrun/rootfs")),
        "crun": _names(host.guest_path("/run/sealrun/crun")),
        "cgroups": [path.name for path in host.guest_path("/sys/fs/cgroup/sealrun").glob("*/")],
        "mounts": [line for line in mounts if "/sealrun/" in line],
        "children": children,
        "pipes": [target for target in descriptors if target.startswith("pipe:")],
    }


NOTHING: dict[str, list[str]] = {
    name: [] for name in ("bundles", "rootfs", "crun", "cgroups", "mounts", "children", "pipes")
}


def _names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()] if directory.exists() else []


def _failed(answer: messages.Message, code: ErrorCode, phase: Phase) -> str:
    assert isinstance(answer, messages.Failed), answer
    assert (answer.code, answer.phase) == (code, phase), answer
    assert "\n" not in answer.text
    return answer.text


def test_create_start_exit_delete_leave_nothing(host: Host) -> None:
    done = host.create("sh", "-c", "sleep 1000 & sleep 1000 & exit 3")
    assert done.image_digest == "sha256:" + "5" * 64
    host.start()
    assert host.exit_code() == 3
    assert isinstance(host.delete(), messages.Done)
    assert _left_behind(host) == NOTHING
    _failed(host.delete(), ErrorCode.CONTAINER_UNKNOWN, Phase.RUN)


@pytest.mark.parametrize(
    ("program", "code", "text"),
    NOT_RUN,
)
def test_a_program_that_cannot_be_run(host: Host, program: str, code: ErrorCode, text: str) -> None:
    assert _failed(host.create(program), code, Phase.START) == text
    assert host.output == {}
    assert _left_behind(host) == NOTHING
    assert host.run("sh", "-c", "exit 4") == 4  # the name and the streams are free again


@pytest.mark.parametrize(
    ("image", "code", "phase", "text"),
    [
        ("test/fail", ErrorCode.DIGEST_MISMATCH, Phase.VERIFY, "layer sha256:0: not what it says"),
        ("test/none", ErrorCode.IMAGE_NOT_FOUND, Phase.PULL, "no image test/none"),
        ("test/bug", ErrorCode.INTERNAL, Phase.RUN, "ZeroDivisionError: nobody expected this"),
    ],
)
def test_a_pull_that_fails(
    host: Host, image: str, code: ErrorCode, phase: Phase, text: str
) -> None:
    assert _failed(host.create("sh", image=image), code, phase) == text
    assert _left_behind(host) == NOTHING
    assert ("ZeroDivisionError" in host.console.read_text()) == (image == "test/bug")
    assert host.run("sh", "-c", "exit 4") == 4


def test_a_refused_configuration_is_named_before_anything_is_pulled(host: Host) -> None:
    request = config("sh", mounts=[{"destination": "/data", "type": "bind", "source": "/srv"}])
    text = _failed(host.create(config=request), ErrorCode.SPEC_REFUSED, Phase.START)
    assert text == "mounts[2]: /data: the host shares no directory or file for it"
    assert not [message for message in host.seen if isinstance(message, messages.Progress)]
    assert _left_behind(host) == NOTHING


def test_names_and_states(host: Host) -> None:
    unknown = {"container": "c9"}
    for kind in (messages.StartContainer, messages.DeleteContainer):
        _failed(host.request(kind, **unknown), ErrorCode.CONTAINER_UNKNOWN, Phase.RUN)
    answer = host.request(messages.SignalContainer, signal=15, **unknown)
    _failed(answer, ErrorCode.CONTAINER_UNKNOWN, Phase.RUN)
    for name in ("", ".", "..", "a/b", "-x", "x" * 129, "ä", "a\nb"):
        answer = host.create("sh", container=name, **NO_STDIO)
        _failed(answer, ErrorCode.SPEC_REFUSED, Phase.START)
    assert isinstance(host.create("sleep", "1000", **NO_STDIO), messages.Done)
    answer = host.create("sh", **NO_STDIO)
    _failed(answer, ErrorCode.CONTAINER_EXISTS, Phase.RUN)
    host.start()
    answer = host.request(messages.StartContainer, container="c1")
    assert _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN).endswith("it is running")
    host.request(messages.SignalContainer, container="c1", signal=9)
    assert host.exit_code() == 137
    for signal in (0, 9, 15):
        answer = host.request(messages.SignalContainer, container="c1", signal=signal)
        assert _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN).endswith("it is stopped")
    answer = host.request(messages.StartContainer, container="c1")
    _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN)


def test_a_start_that_was_sent_before_the_create_was_answered(host: Host) -> None:
    number = host.ask_create("sleep", "1000")
    start = host.ask(messages.StartContainer, container="c1")
    answer = host.answer(start)
    assert _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN).endswith("it is being created")
    assert isinstance(host.answer(number), messages.Done)


def _home(host: Host, uid: int, **changes: Any) -> str:
    """What a container's first program of a user has, who is in no group."""
    members = {"files": changes.pop("files", {})}
    request = config("sh", "-c", "echo $HOME", user={"uid": uid, "gid": 0}, **changes)
    host.output.clear()
    assert host.run(config=request, **members) == 0
    assert isinstance(host.delete(), messages.Done)
    return bytes(host.output[STDOUT]).decode().removesuffix("\n")


def test_every_user_has_a_home(host: Host) -> None:
    assert _home(host, 0) == "/root"
    assert _home(host, 1234) == "/"
    assert _home(host, 1234, env=["PATH=/bin", "HOME=/data"]) == "/data"
    brought = messages.File(content=b"somebody:x:1234:0::/home/somebody:/bin/sh\n")
    over = {"destination": "/etc/passwd", "type": "bind", "source": "/x", "options": ["bind"]}
    assert _home(host, 1234, mounts=[over], files={2: brought}) == "/home/somebody"


def test_every_user_of_a_later_program_has_a_home(host: Host) -> None:
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    for uid, home in ((0, b"/root"), (1234, b"/")):
        host.output.clear()
        request = process_config("sh", "-c", "echo $HOME", user={"uid": uid, "gid": 0})
        assert host.run_in(config=request) == 0
        assert host.output[14] == home + b"\n"
    script = "echo somebody:x:1234:0::/home/somebody: >>/etc/passwd; echo $HOME"
    assert host.run_in("sh", "-c", script) == 0
    host.output.clear()
    request = process_config("sh", "-c", "echo $HOME", user={"uid": 1234, "gid": 0})
    assert host.run_in(config=request) == 0
    assert host.output[14] == b"/home/somebody\n"


def test_signals_reach_the_first_process(host: Host) -> None:
    host.create(
        "sh", "-c", "trap 'echo hangup; exit 5' HUP; echo ready; while :; do sleep 0.05; done"
    )
    host.start()
    host.wait_output(b"ready\n")
    for harmless in (0, 18, 28):
        done = host.request(messages.SignalContainer, container="c1", signal=harmless)
        assert isinstance(done, messages.Done)
    for wrong in (-1, 65, 1 << 40):
        answer = host.request(messages.SignalContainer, container="c1", signal=wrong)
        _failed(answer, ErrorCode.RUNTIME_FAILED, Phase.RUN)
    host.request(messages.SignalContainer, container="c1", signal=1)
    assert host.exit_code() == 5
    assert host.output[STDOUT] == b"ready\nhangup\n"


def test_signals_reach_all_processes(host: Host) -> None:
    script = "(trap 'echo child; exit' TERM; echo up; while :; do sleep 0.05; done) & wait; wait"
    host.create("sh", "-c", f"trap 'echo parent' TERM; {script}")
    host.start()
    host.wait_output(b"up\n")
    done = host.request(messages.SignalContainer, container="c1", signal=15, all=True)
    assert isinstance(done, messages.Done), done
    host.exit_code()
    assert set(bytes(host.output[STDOUT]).split()) == {b"up", b"parent", b"child"}
    host.delete()
    host.create("sleep", "1000", **NO_STDIO)
    host.start()
    host.request(messages.SignalContainer, container="c1", signal=9, all=True)
    assert host.exit_code() == 137


def test_kill_before_the_start(host: Host) -> None:
    host.create("sleep", "1000")
    assert isinstance(
        host.request(messages.SignalContainer, container="c1", signal=9), messages.Done
    )
    assert host.exit_code() == 137
    assert isinstance(host.delete(), messages.Done)
    assert _left_behind(host) == NOTHING


def test_delete_kills_what_runs_and_reports_its_end_first(host: Host) -> None:
    host.create("sh", "-c", "yes")
    host.credit = False
    host.start()
    assert isinstance(host.delete(), messages.Done)
    exits = [m for m in host.seen if isinstance(m, messages.ProcessExited)]
    assert exits == [messages.ProcessExited(container="c1", code=137)]
    assert host.seen.index(exits[0]) < len(host.seen) - 1
    assert STDOUT in host.ended
    assert _left_behind(host) == NOTHING


def test_delete_of_what_was_created_and_never_started(host: Host) -> None:
    host.create("sleep", "1000")
    assert isinstance(host.delete(), messages.Done)
    assert _left_behind(host) == NOTHING


def test_delete_ends_a_pull(host: Host) -> None:
    number = host.ask_create("sh", image="test/wait")
    host.expect(messages.Progress)
    delete = host.ask(messages.DeleteContainer, container="c1")
    answer = host.answer(number)
    _failed(answer, ErrorCode.WRONG_STATE, Phase.RUN)
    assert isinstance(host.answer(delete), messages.Done)
    assert not [m for m in host.seen if isinstance(m, messages.ProcessExited)]
    assert _left_behind(host) == NOTHING
    assert host.run("sh", "-c", "exit 4") == 4


def test_delete_right_behind_a_create_and_twice(host: Host) -> None:
    for _ in range(10):
        create = host.ask_create("sleep", "1000")
        deletes = [host.ask(messages.DeleteContainer, container="c1") for _ in range(2)]
        host.answer(create)
        first, second = map(host.answer, deletes)
        assert isinstance(first, messages.Done)
        if not isinstance(second, messages.Done):  # the first was carried out already
            _failed(second, ErrorCode.CONTAINER_UNKNOWN, Phase.RUN)
    assert _left_behind(host) == NOTHING


def test_delete_meets_start_at_any_moment(host: Host) -> None:
    for number in range(30):
        host.create("sleep", "1000", **NO_STDIO)
        start = host.ask(messages.StartContainer, container="c1")
        time.sleep(0.001 * (number % 10))
        delete = host.ask(messages.DeleteContainer, container="c1")
        host.answer(start)  # Done, or Failed where the first process was killed before
        assert isinstance(host.answer(delete), messages.Done)
    assert _left_behind(host) == NOTHING


def test_progress_has_a_bounded_rate(host: Host) -> None:
    begin = time.monotonic()
    number = host.ask_create("sh", image="test/wait")
    for _ in range(5):
        assert isinstance(host.receive(), messages.Progress)
    assert time.monotonic() - begin >= 4 * 0.5
    host.ask(messages.DeleteContainer, container="c1")
    host.answer(number)


def test_files_hostname_and_shared_memory(host: Host) -> None:
    binds = ["/etc/hosts", "/etc/hostname", "/run/.containerenv", "/dev/shm", "/run/secrets/key"]
    request = config(
        "sh",
        "-c",
        "hostname; cat /etc/hosts /etc/hostname; echo -n >/run/.containerenv || echo ro;"
        "echo x >/etc/hosts && echo written; ls -ln /run/secrets/key; grep /dev/shm /proc/mounts",
        mounts=[
            {"destination": path, "type": "bind", "source": f"/host{path}", "options": ["bind"]}
            for path in binds
        ],
    )
    document = json.loads(request)
    document["mounts"][4]["options"] = ["ro"]
    contents = {2: b"10.0.0.1 db\n", 3: b"inside\n", 4: b""}
    files = {index: messages.File(content=content) for index, content in contents.items()}
    files[6] = messages.File(content=b"12345", mode=0o440, uid=7, gid=8)
    size = {"shm_bytes": 1 << 20}
    assert host.run(config=json.dumps(document).encode(), files=files, **size) == 0
    lines = bytes(host.output[STDOUT]).decode().splitlines()
    assert lines[:5] == ["inside", "10.0.0.1 db", "inside", "ro", "written"]
    assert lines[5].split()[:5] == ["-r--r-----", "1", "7", "8", "5"]
    assert lines[6].startswith("shm /dev/shm tmpfs rw,nosuid,nodev,noexec")
    assert "size=1024k" in lines[6]


def test_the_network_s_sysctl_is_set_in_the_vm(host: Host) -> None:
    request = config(
        "cat", "/proc/sys/net/ipv4/ping_group_range",
        linux={"sysctl": {"net.ipv4.ping_group_range": "7 9"}},
    )  # fmt: skip
    assert host.run(config=request) == 0
    assert bytes(host.output[STDOUT]).split() == [b"7", b"9"]
    request = config("sh", linux={"sysctl": {"net.ipv4.no_such_thing": "1"}})
    answer = host.create(config=request, container="c2", **NO_STDIO)
    text = _failed(answer, ErrorCode.SPEC_REFUSED, Phase.START)
    assert text.startswith("linux.sysctl.net.ipv4.no_such_thing: cannot set '1'")


@pytest.mark.parametrize("mounts", [None, [], [{"destination": "/x", "type": "tmpfs"}]])
@pytest.mark.parametrize("readonly", [False, True])
def test_an_image_that_has_nothing_but_its_program(
    host: Host, mounts: list[dict[str, str]] | None, *, readonly: bool
) -> None:
    document = json.loads(config("/busybox", "sh", "-c", "echo x >/dev/null && /busybox ls /"))
    document["mounts"] = mounts
    document["root"]["readonly"] = readonly
    done = host.create(config=json.dumps(document).encode(), image="test/scratch")
    assert isinstance(done, messages.Done), done
    host.start()
    assert host.exit_code() == 0
    expected = {b"dev", b"x"} if mounts else {b"dev", b"proc", b"sys"}
    assert set(bytes(host.output[STDOUT]).split()) - {b"etc"} == expected | {b"busybox"}


def test_default_mounts(host: Host) -> None:
    document = json.loads(config("cat", "/proc/mounts"))
    del document["mounts"]
    assert host.run(config=json.dumps(document).encode()) == 0
    mounted = [line.split()[1] for line in bytes(host.output[STDOUT]).decode().splitlines()]
    assert {"/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/sys"} <= set(mounted)


def test_a_read_only_root(host: Host) -> None:
    document = json.loads(config("sh", "-c", "echo x >/x || echo refused"))
    document["root"]["readonly"] = True
    assert host.run(config=json.dumps(document).encode()) == 0
    assert host.output[STDOUT] == b"refused\n"


def test_a_container_cannot_see_the_agent(host: Host) -> None:
    script = "ls /proc | head -c 20; ls /run/sealrun 2>&1; cat /proc/1/comm"
    assert host.run("sh", "-c", script) == 0
    assert b"No such file" in host.output[STDOUT]
    assert b"python" not in host.output[STDOUT]


def test_orphans_are_reaped(host: Host) -> None:
    for number in range(5):
        script = "(sleep 0.01 &) ; (exec sleep 0.01 &); exit 0"
        assert host.run("sh", "-c", script, container=f"c{number}", **NO_STDIO) == 0
        host.delete(f"c{number}")
    assert _left_behind(host) == NOTHING


def test_shutdown_kills_and_powers_off(host: Host) -> None:
    for name in ("c1", "c2"):
        host.create("sleep", "1000", container=name, **NO_STDIO)
        host.start(name)
    host.ask_create("sh", container="c3", image="test/wait", **NO_STDIO)
    assert isinstance(host.request(messages.ShutdownSandbox), messages.Done)
    assert "the agent has ended" in host.wait_end()


def test_shutdown_of_an_empty_sandbox_needs_no_configuration(tmp_path: Path) -> None:
    with agent(tmp_path) as host:
        host.expect(messages.Hello)
        assert isinstance(host.request(messages.ShutdownSandbox), messages.Done)
        host.wait_end()


def test_init_data_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with agent(tmp_path) as host:
        host.expect(messages.Hello)
        members = {"hostname": "sandbox", "time_ns": 1}
        answer = host.request(messages.ConfigureSandbox, init_data=b"version = 7", **members)
        _failed(answer, ErrorCode.INIT_DATA_INVALID, Phase.ATTEST)
        text = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"aa.toml" = "# another"\n'
        answer = host.request(messages.ConfigureSandbox, init_data=text, **members)
        _failed(answer, ErrorCode.INIT_DATA_MISMATCH, Phase.ATTEST)
        text = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"policy.rego" = ""\n'
        answer = host.request(messages.ConfigureSandbox, init_data=text, **members)
        assert "policy.rego" in _failed(answer, ErrorCode.INIT_DATA_INVALID, Phase.ATTEST)
        text = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"other.toml" = ""\n'
        done = host.request(messages.ConfigureSandbox, init_data=text, **members)
        assert isinstance(done, messages.Done)
        assert "other.toml" in host.console.read_text()


def test_hello_describes_the_guest(tmp_path: Path) -> None:
    with agent(tmp_path, tee="snp") as host:
        hello = host.expect(messages.Hello)
        assert hello.version == messages.PROTOCOL_VERSION
        assert hello.tee == "snp"
        assert hello.memory_available_kib > 10_000
        assert hello.uptime_ms > 0


def test_with_a_tee_texts_come_from_the_table(tmp_path: Path) -> None:
    with agent(tmp_path, tee="snp") as host:
        host.configure()
        for image, code in (
            ("test/fail", ErrorCode.DIGEST_MISMATCH),
            ("test/bug", ErrorCode.INTERNAL),
        ):
            answer = host.create("sh", image=image)
            assert isinstance(answer, messages.Failed)
            assert answer.text == ERRORS[code].summary
        answer = host.create("secret-program")
        assert answer.text == ERRORS[ErrorCode.PROGRAM_NOT_FOUND].summary
        progress = [m for m in host.seen if isinstance(m, messages.Progress)]
        assert {m.text for m in progress} == {"pull", "start"}


def test_hostname_of_the_sandbox(host: Host) -> None:
    document = json.loads(config("hostname"))
    del document["hostname"]
    assert host.run(config=json.dumps(document).encode()) == 0
    assert host.output[STDOUT] == b"sandbox\n"
