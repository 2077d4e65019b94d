"""Which verb does what in which state: the same on runc, which is the oracle, but where it is listed.

Each pair of state and verb is tried on a fresh container of either runtime; what is compared is whether
the call succeeds, and the state after it.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest
from fixtures.cli import World

pytestmark = pytest.mark.root

RUNC = "/usr/sbin/runc"
BUSYBOX = "/bin/busybox"
ABSENT = "absent"
STATES = (ABSENT, "created", "running", "paused", "stopped")
VERBS: dict[str, list[str]] = {
    "state": ["state", "ID"],
    "create": ["create", "--bundle", "BUNDLE", "ID"],
    "start": ["start", "ID"],
    "kill": ["kill", "ID", "KILL"],
    "kill --all": ["kill", "--all", "ID", "KILL"],
    "delete": ["delete", "ID"],
    "delete --force": ["delete", "--force", "ID"],
    "pause": ["pause", "ID"],
    "resume": ["resume", "ID"],
    "exec": ["exec", "ID", "exit", "0"],
    "ps": ["ps", "--format", "json", "ID"],
    "update": ["update", "--pids-limit", "50", "ID"],
    "events": ["events", "--stats", "ID"],
}
DIFFERENCES = {
    ("delete", ABSENT): "engines delete after a failed create, and twice (decision 4)",
    ("exec", "created"): "as crun: in a guest nothing runs that a program could be put beside",
    (
        "delete",
        "created",
    ): "the specification: deleting one that is not stopped is an error; crun, too",
    ("ps", "stopped"): "nobody is there any more to be asked; runc says null",
}
Outcome = tuple[bool, str]


class Runtime(Protocol):
    """A runtime with one container, `c1`."""

    def bundle(self) -> str: ...

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]": ...


class Runc:
    def __init__(self, tmp: Path) -> None:
        self.tmp = tmp
        self.directory = tmp / "runc-bundle"
        rootfs = self.directory / "rootfs"
        (rootfs / "bin").mkdir(parents=True)
        shutil.copy(BUSYBOX, rootfs / "bin/busybox")
        for name in ("sleep", "sh"):
            (rootfs / "bin" / name).symlink_to("busybox")
        (rootfs / "bin/exit").write_text("#!/bin/sh\nexit $1\n")
        (rootfs / "bin/exit").chmod(0o755)

    def bundle(self) -> str:
        config = self.directory / "config.json"
        config.unlink(missing_ok=True)
        subprocess.run([RUNC, "spec", "--bundle", str(self.directory)], check=True)
        document = json.loads(config.read_text())
        document["process"].update(terminal=False, args=["sleep", "1000"])
        document["linux"]["cgroupsPath"] = f"/sealrun-test-{os.getpid()}"
        config.write_text(json.dumps(document))
        return str(self.directory)

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        with open(self.tmp / "out", "w+") as out:
            done = subprocess.run(
                [RUNC, "--root", str(self.tmp / "runc"), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                timeout=60,
            )
        text = (self.tmp / "out").read_text()
        return subprocess.CompletedProcess(done.args, done.returncode, text, "")


class Sealrun:
    def __init__(self, world: World) -> None:
        self.world = world

    def bundle(self) -> str:
        return self.world.bundle()

    def call(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return self.world(*arguments)


@pytest.fixture
def runc(tmp_path: Path) -> Iterator[Runc]:
    for program in (RUNC, BUSYBOX):
        if not Path(program).exists():
            pytest.skip(f"{program} is not installed")
    oracle = Runc(tmp_path)
    yield oracle
    oracle.call("delete", "--force", "c1")


def status(runtime: Runtime) -> str:
    done = runtime.call("state", "c1")
    if done.returncode != 0:
        return ABSENT
    document: dict[str, str] = json.loads(done.stdout)
    return document["status"]


def settled(runtime: Runtime, wanted: str) -> str:
    """The status, once it is `wanted` or will not be."""
    deadline = time.monotonic() + 2
    while (found := status(runtime)) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def bring(runtime: Runtime, state: str) -> None:
    if state == ABSENT:
        return
    steps = [["create", "--bundle", runtime.bundle(), "c1"]]
    if state in ("running", "paused", "stopped"):
        steps.append(["start", "c1"])
    if state == "paused":
        steps.append(["pause", "c1"])
    if state == "stopped":
        steps.append(["kill", "c1", str(int(signal.SIGKILL))])
    for step in steps:
        done = runtime.call(*step)
        assert done.returncode == 0, done
    assert settled(runtime, state) == state


def outcome(runtime: Runtime, verb: str, state: str, expected: str = "") -> Outcome:
    bring(runtime, state)
    places = {"ID": "c1", "BUNDLE": runtime.bundle() if verb == "create" else ""}
    done = runtime.call(*(places.get(one, one) for one in VERBS[verb]))
    if expected:
        return done.returncode == 0, settled(runtime, expected)
    if verb.startswith("kill"):
        return done.returncode == 0, settled(runtime, "stopped")
    return done.returncode == 0, status(runtime)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_in_a_state(verb: str, state: str, world: World, runc: Runc) -> None:
    theirs = outcome(runc, verb, state)
    ours = outcome(Sealrun(world), verb, state, expected=theirs[1])
    if (verb, state) in DIFFERENCES:
        assert ours != theirs, "it is no difference (any more): take it from the list"
    else:
        assert ours == theirs
