"""createContainer and startContainer hooks: programs in the guest, where the tenant wants them.

The simulated guest has a shell where a real one has none: its root file system is this machine's.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.agent import Host, agent, config
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase

pytestmark = pytest.mark.root

STDOUT = 4
NO_STDIO = {"stdin": 0, "stdout": 0, "stderr": 0}
NOTE = "(echo $1; readlink /proc/self/ns/uts; cat) >/run/noted-$0"
CREATE = ["/bin/sh", "-c", NOTE, "create", "extra"]
START = ["/bin/sh", "-c", "(echo $WHO; pwd; cat) >/noted-start"]
SLEEP = ["/bin/sleep", "1000"]
# It takes what crun has for it: one that ends before has "exit code -33" (EPIPE).
FAIL = ["/bin/sh", "-c", "cat >/dev/null; echo sorry >&2; exit 7"]
NEVER = ["/bin/sh", "-c", "echo >/never"]


def init_data(more: str = "") -> bytes:
    allowed = json.dumps([CREATE, START, SLEEP, FAIL, NEVER])
    return (
        'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"sealrun.toml" = """\n'
        f"[container]\nhooks = {allowed}\nallow_exec = true\ninsecure_any_process = true\n{more}"
        '"""\n'
    ).encode()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    with agent(tmp_path) as host:
        host.configure(init_data('environment = ["WHO"]\n'))
        yield host


def hook(command: list[str], **more: Any) -> dict[str, Any]:
    # Busybox goes by the name that it is called.
    return {"path": command[0], "args": [os.path.basename(command[0]), *command[1:]], **more}


def create(host: Host, hooks: dict[str, Any], *args: str, **members: Any) -> Any:
    document = json.loads(config(*args))
    document["hooks"] = hooks
    return host.create(config=json.dumps(document).encode(), **members)


def failed(answer: messages.Message, code: ErrorCode) -> str:
    assert isinstance(answer, messages.Failed), answer
    assert (answer.code, answer.phase) == (code, Phase.START), answer
    return answer.text


def test_each_in_its_place_with_the_state(host: Host) -> None:
    hooks = {
        "createContainer": [hook(CREATE)],
        "startContainer": [hook(START, env=["WHO=guest"], timeout=20)],
        "createRuntime": [{"path": "/nowhere"}],
        "poststop": [{"path": "/nowhere"}],
    }
    assert isinstance(create(host, hooks, "cat", "/noted-start"), messages.Done)
    extra, uts, state = host.guest_path("/run/noted-create").read_text().splitlines()
    assert extra == "extra"
    assert uts != os.readlink(f"/proc/{host.agent_pid}/ns/uts")
    assert {name: json.loads(state)[name] for name in ("id", "status")} == {
        "id": "c1",
        "status": "created",
    }
    host.start()
    assert host.exit_code() == 0
    who, where, state = bytes(host.output[STDOUT]).decode().splitlines()
    assert json.loads(state)["id"] == "c1"
    assert (who, where) == ("guest", "/")


def test_one_that_fails_ends_the_create(host: Host) -> None:
    hooks = {"createContainer": [hook(FAIL), hook(NEVER)]}
    text = failed(create(host, hooks, "sh"), ErrorCode.RUNTIME_FAILED)
    assert text == "error executing hook `/bin/sh` (exit code: 7)"
    assert not host.guest_path("/never").exists()
    assert not host.guest_path("/run/sealrun/containers/c1").exists()


def test_one_that_fails_ends_the_start(host: Host) -> None:
    hooks = {"startContainer": [hook(FAIL), hook(NEVER)]}
    assert isinstance(create(host, hooks, "sh", "-c", "echo never"), messages.Done)
    host.request(messages.StartContainer, container="c1")
    assert host.exit_code() != 0
    assert b"never" not in host.output.get(STDOUT, b"")


def test_one_that_takes_too_long(host: Host) -> None:
    hooks = {"createContainer": [hook(SLEEP, timeout=1), hook(NEVER)]}
    text = failed(create(host, hooks, "sh"), ErrorCode.RUNTIME_FAILED)
    assert "`/bin/sleep`" in text  # crun says that its time is over, or that it was killed


@pytest.mark.parametrize("kind", ["createContainer", "startContainer"])
def test_what_the_tenant_does_not_name_is_refused(host: Host, kind: str) -> None:
    for command in ([*START, "more"], START[:2], ["/bin/dash", *START[1:]]):
        text = failed(create(host, {kind: [hook(command)]}, "sh"), ErrorCode.POLICY_DENIED)
        assert text.startswith(f'hooks.{kind}[0]: ["/bin/')
        assert text.endswith(
            "runs in the guest, and [container] of the init-data does not allow it"
        )
    another = hook(SLEEP) | {"args": ["rm", *SLEEP[1:]]}
    text = failed(create(host, {kind: [another]}, "sh"), ErrorCode.POLICY_DENIED)
    assert text.startswith(f"hooks.{kind}[0].args[0]: it is called 'rm'")
    hooks = {kind: [hook(START), hook(START, env=["WHO=x", "LD_PRELOAD=/x"])]}
    text = failed(create(host, hooks, "sh"), ErrorCode.POLICY_DENIED)
    assert text.startswith(f"hooks.{kind}[1].env[1]: the host may not set 'LD_PRELOAD'")


def test_without_a_tenant_none_is_allowed(tmp_path: Path) -> None:
    with agent(tmp_path) as host:
        host.configure()
        failed(create(host, {"startContainer": [hook(START)]}, "sh"), ErrorCode.POLICY_DENIED)
