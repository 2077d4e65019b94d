"""Hooks on the host: prestart and createRuntime by `create`, poststart by `start`, poststop by whoever
deletes; each with the state on its stdin, in order, once.
"""

import base64
import json
import os
import resource
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fixtures.cli import World

pytestmark = pytest.mark.root


def hook(world: World, script: str = "cat", **more: Any) -> dict[str, Any]:
    """A hook that appends to the file `said`."""
    path = world.tmp / "said"
    args = ["hook", "-c", f"({script}) >> {path}"]
    return {"path": "/bin/sh", "args": args, **more}


def said(world: World) -> str:
    path = world.tmp / "said"
    return path.read_text() if path.exists() else ""


def test_the_state_is_on_its_stdin(world: World) -> None:
    world.create("exit=0", hooks={"poststop": [hook(world)]})
    world("start", "c1")
    world.wait_for("stopped")
    assert said(world) == ""
    assert world("delete", "c1").returncode == 0
    state = json.loads(said(world))
    assert (state["id"], state["status"], state["pid"]) == ("c1", "stopped", 0)
    assert state["bundle"] == str(world.tmp / "bundle")
    assert world("delete", "c1").returncode == 0
    assert said(world).count("ociVersion") == 1
    world.assert_nothing_left()


def test_in_order_with_their_own_environment_and_without_ours(world: World) -> None:
    """As conmon's exit command calls it: no PATH, no HOME, no stdio."""
    hooks = [
        hook(world, "echo one $A $HOME $#", env=["A=1"]),
        hook(world, "echo two; exec /usr/bin/env"),
    ]
    world.create(hooks={"poststop": hooks})
    null = subprocess.DEVNULL
    command = world.command("delete", "--force", "c1")
    subprocess.run(
        command, env={"SECRET": "x"}, stdin=null, stdout=null, stderr=null, check=True, timeout=60
    )
    lines = said(world).splitlines()
    assert lines[:2] == ["one 1 0", "two"]
    assert not any(line.startswith(("SECRET=", "HOME=")) for line in lines)
    world.assert_nothing_left()


@pytest.mark.parametrize(
    ("first", "text"),
    [
        ({"path": "/nowhere/hook"}, "cannot run poststop hook /nowhere/hook: it does not exist"),
        ({"path": "/bin/false"}, "poststop hook /bin/false ended with 1"),
        (
            {"path": "/bin/sh", "args": ["sh", "-c", "echo sorry >&2; kill -9 $$"]},
            "poststop hook /bin/sh was killed by signal 9: sorry",
        ),
        (
            {"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1},
            "poststop hook /bin/sleep did not end within 1 s",
        ),
    ],
)
def test_a_failing_hook_is_a_warning(world: World, first: dict[str, Any], text: str) -> None:
    world.create(hooks={"poststop": [first, hook(world, "echo second")]})
    done = world("delete", "--force", "c1")
    assert (done.returncode, done.stderr) == (0, f"sealrun: warning: {text}\n")
    line = json.loads(world.log.read_text().splitlines()[-1])
    assert (line["level"], line["msg"]) == ("warning", text)
    assert said(world) == "second\n"
    world.assert_nothing_left()


def test_they_follow_a_create_that_failed(world: World) -> None:
    bundle = world.bundle("refuse=vmm-failed", hooks={"poststop": [hook(world)]})
    assert world("create", "-b", bundle, "c1").returncode == 1
    assert json.loads(said(world))["status"] == "stopped"
    world.assert_nothing_left()


def test_run_runs_them(world: World) -> None:
    """Its children are no longer of the container's pid namespace by then."""
    bundle = world.bundle("exit=3", hooks={"poststop": [hook(world, "echo done")]})
    assert world("run", "-b", bundle, "c1").returncode == 3
    assert said(world) == "done\n"


def test_deletes_that_race_run_them_once(world: World) -> None:
    world.create("helper", hooks={"poststop": [hook(world, "echo once")]})
    os.kill(world.processes()["shim"], signal.SIGKILL)
    command = world.command("delete", "--force", "c1")
    racing = [subprocess.Popen(command) for _ in range(6)]
    assert [process.wait(timeout=60) for process in racing] == [0] * 6
    assert said(world) == "once\n"
    world.assert_nothing_left()


def test_a_hook_that_leaves_something_running_does_not_hold_us(world: World) -> None:
    script = "sleep 60 & echo $!"
    world.create(hooks={"poststop": [hook(world, script)]})
    started = time.monotonic()
    assert world("delete", "--force", "c1").returncode == 0
    assert time.monotonic() - started < 30
    os.kill(int(said(world)), signal.SIGKILL)


# --- before the VM -------------------------------------------------------------------------------


def test_hooks_of_create_find_the_namespaces_and_no_program(world: World) -> None:
    script = (
        'read state; echo "$state"; pid=${state#*\\"pid\\":}; pid=${pid%%,*}; '
        "readlink /proc/$pid/ns/net /proc/self/ns/net; cat /proc/$pid/comm; ulimit -Sn"
    )
    early = {
        "createRuntime": [hook(world, "cat >/dev/null; echo second"), hook(world, script)],
        "prestart": [hook(world, "cat >/dev/null; echo first")],
    }
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    try:
        pid = world.create(hooks=early)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    first, second, document, net, own, name, files = said(world).splitlines()
    assert int(files) == before[0] - 1, "not what a shim needs"
    assert (first, second) == ("first", "second")
    state = json.loads(document)
    assert state == {
        "ociVersion": "1.0.2",
        "id": "c1",
        "status": "creating",
        "pid": pid,
        "bundle": str(world.tmp / "bundle"),
        "annotations": {"io.sealrun.image": "r.test/a:1", "test.shim": ""},
    }
    assert own == os.readlink("/proc/self/ns/net") != net
    assert name in ("sh", "dash")
    assert world("start", "c1").returncode == 0
    assert len(said(world).splitlines()) == 7


@pytest.mark.parametrize("kind", ["prestart", "createRuntime"])
@pytest.mark.parametrize(
    ("failing", "text"),
    [
        ({"path": "/bin/false"}, "ended with 1"),
        ({"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}, "did not end within 1 s"),
    ],
)
def test_one_that_fails_ends_the_create(
    world: World, kind: str, failing: dict[str, Any], text: str
) -> None:
    hooks = {
        kind: [failing, hook(world, "echo never")],
        "poststop": [hook(world, "echo poststop")],
    }
    done = world("create", "-b", world.bundle(hooks=hooks), "c1")
    expected = f"{kind} hook {failing['path']} {text}"
    assert (done.returncode, done.stderr) == (1, f"sealrun: {expected}\n")
    assert world.error() == expected
    assert said(world) == "poststop\n"
    world.assert_nothing_left()


def test_a_create_that_is_called_off_ends_its_hook(world: World) -> None:
    script = "echo $$; exec sleep 1000"
    bundle = world.bundle(hooks={"createRuntime": [hook(world, script)]})
    with subprocess.Popen(
        world.command("create", "-b", bundle, "c1"), stderr=subprocess.DEVNULL
    ) as process:
        deadline = time.monotonic() + 20
        while not said(world):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 1
    assert not os.path.exists(f"/proc/{said(world).strip()}")
    world.assert_nothing_left()


@pytest.mark.parametrize("kind", ["createRuntime", "poststart"])
def test_a_hook_whose_caller_was_killed_ends_with_the_container(world: World, kind: str) -> None:
    hooks = {kind: [hook(world, "echo $$; exec sleep 1000")]}
    command = world.command("create", "-b", world.bundle(hooks=hooks), "c1")
    if kind == "poststart":
        world.create(hooks=hooks)
        command = world.command("start", "c1")
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 20
        while not said(world):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
    left = os.pidfd_open(int(said(world)))
    assert world("delete", "--force", "c1").returncode == 0
    assert select.select([left], [], [], 0)[0], "it lives"
    os.close(left)
    world.assert_nothing_left()


def test_a_hook_of_create_may_take_longer_than_a_shim_waits(world: World) -> None:
    """The shim is only started when the hooks are done."""
    script = f"test -e {world.root}/c1/shim.sock && echo there || echo not yet"
    world.create(hooks={"createRuntime": [hook(world, script)]})
    assert said(world) == "not yet\n"


# --- when the program runs -----------------------------------------------------------------------


def test_poststart_hooks_follow_the_start(world: World) -> None:
    hooks = {"poststart": [hook(world), hook(world, "echo; echo second", env=["A=1"])]}
    pid = world.create(hooks=hooks)
    assert said(world) == ""
    assert world("start", "c1").returncode == 0
    document, second = said(world).splitlines()
    state = json.loads(document)
    assert (state["status"], state["pid"], second) == ("running", pid, "second")
    assert world("start", "c1").returncode == 1
    assert said(world).count("second") == 1


def test_a_poststart_hook_that_fails_ends_the_container(world: World) -> None:
    hooks = {
        "poststart": [{"path": "/bin/false"}, hook(world, "echo never")],
        "poststop": [hook(world, "echo poststop")],
    }
    world.create(hooks=hooks)
    done = world("start", "c1")
    text = "poststart hook /bin/false ended with 1"
    assert (done.returncode, done.stderr) == (1, f"sealrun: {text}\n")
    assert said(world) == "poststop\n"
    world.assert_nothing_left()
    bundle = world.bundle(hooks=hooks)
    done = world("run", "-b", bundle, "c1")
    assert (done.returncode, done.stderr) == (1, f"sealrun: {text}\n")
    assert said(world) == "poststop\n" * 2
    world.assert_nothing_left()


@pytest.mark.parametrize("kind", ["createContainer", "startContainer"])
def test_those_of_the_guest_need_the_tenant_s_word(world: World, kind: str) -> None:
    hooks = {kind: [{"path": "/bin/setup", "args": ["setup", "-x"]}]}
    text = (
        f"$.hooks.{kind}[0]: it would run in the guest, and is not among the hooks of [container]"
    )
    done = world("create", "-b", world.bundle(hooks=hooks), "c1")
    assert done.returncode == 1
    assert text in done.stderr
    for allowed, status in (('["/bin/setup"]', 1), ('["/bin/setup", "-x"]', 0)):
        ours = f"[container]\\nhooks = [{allowed}]\\n".replace('"', '\\"')
        document = f'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n"sealrun.toml" = "{ours}"\n'
        annotations = {"io.sealrun.init-data": base64.b64encode(document.encode()).decode()}
        bundle = world.bundle(hooks=hooks, annotations=annotations)
        done = world("create", "-b", bundle, "c1")
        assert done.returncode == status, done.stderr
    assert world("delete", "--force", "c1").returncode == 0
    world.assert_nothing_left()


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hooks", "text"),
    [
        ({"poststop": [{"path": "relative"}]}, "$.hooks.poststop[0].path: "),
        ({"prestart": [{"path": "/x", "timeout": 0}]}, "$.hooks.prestart[0].timeout: "),
        ({"createRuntime": [{"args": []}]}, "$.hooks.createRuntime[0]: object missing required"),
        ({"poststart": "x"}, "$.hooks.poststart: expected `array | null`, got `str`"),
    ],
)
def test_hooks_that_are_none(world: World, hooks: dict[str, Any], text: str) -> None:
    bundle = Path(world.bundle(hooks=hooks))
    done = world("create", "-b", str(bundle), "c1")
    assert done.returncode == 1
    assert f"config.json: {text}" in done.stderr
    assert os.listdir(world.root) == []
