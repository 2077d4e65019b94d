"""Which verb does what in which state, and what is an error: the same on runc and crun, but where
docs/runtime-spec.md lists it.

Everything is tried on a real container of each of the three runtimes; what is compared is whether the
call succeeds, and the state after it.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from component import test_sandbox_on_simulator as simulator
from fixtures import documentation, oci

pytestmark = pytest.mark.root

program = simulator.program
runtime = simulator.runtime

ABSENT = "absent"
STATES = (ABSENT, "created", "running", "paused", "stopped")
# In this order: what changes nothing comes first, so that few containers do.
VERBS: dict[str, list[str]] = {
    "state": ["state", "c1"],
    "ps": ["ps", "--format", "json", "c1"],
    "events": ["events", "--stats", "c1"],
    # Without a limit in it: cgroup v2 has no controllers here, perhaps.
    "update": ["update", "--resources", "NO LIMITS", "c1"],
    "exec": ["exec", "c1", "/bin/true"],
    "kill 0": ["kill", "c1", "0"],
    "create": ["create", "c1"],
    "start": ["start", "c1"],
    "pause": ["pause", "c1"],
    "resume": ["resume", "c1"],
    "kill": ["kill", "c1", "KILL"],
    "kill --all": ["kill", "--all", "c1", "KILL"],
    "delete": ["delete", "c1"],
    "delete --force": ["delete", "--force", "c1"],
}
Outcome = tuple[bool, str]
"""Whether the call succeeded, and the state that it left."""


class Subject:
    """A runtime with at most one container, `c1`."""

    def __init__(self, runtime: oci.Runtime, directory: Path) -> None:
        self.runtime, self.name = runtime, runtime.name
        self._directory = directory / runtime.name
        self._rootfs = oci.busybox_tree(directory / "rootfs")
        self._no_limits = directory / "no-limits.json"
        self._no_limits.write_text("{}")

    def bundle(self, script: str = "sleep 1000") -> Path:
        (self._directory / "config.json").unlink(missing_ok=True)
        bundle = oci.bundle(self._directory, self._rootfs, script, self.runtime.annotations)
        config = json.loads((bundle / "config.json").read_text())
        config["linux"]["resources"] = {}
        config["linux"]["cgroupsPath"] = oci.own_group(self._directory.parent, self.name)
        return oci.edit(bundle, config)

    def call(self, verb: str) -> oci.Outcome:
        words = VERBS[verb]
        if verb == "create":
            return self.runtime.create(self.bundle(), words[-1])
        places = {"NO LIMITS": str(self._no_limits)}
        return self.runtime(*(places.get(one, one) for one in words))

    def status(self) -> str:
        state = self.runtime.state("c1")
        return ABSENT if state is None else str(state["status"])

    def settled(self, wanted: str, seconds: float = 5) -> str:
        """The status, once it is `wanted` or will not be."""
        deadline = time.monotonic() + seconds
        while (found := self.status()) != wanted and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def bring(self, state: str) -> None:
        """A container in this state, whatever there was before."""
        self.call("delete --force")
        steps = {
            ABSENT: [],
            "created": ["create"],
            "running": ["create", "start"],
            "paused": ["create", "start", "pause"],
            "stopped": ["create", "start", "kill"],
        }[state]
        for step in steps:
            done = self.call(step)
            assert done.ok, f"{self.name} {step}: {done.stderr}"
        assert self.settled(state, 60) == state

    def outcomes(self, state: str) -> dict[str, Outcome]:
        """What every verb does to a container in this state."""
        found = {}
        for verb in VERBS:
            if self.status() != state:
                self.bring(state)
            done = self.call(verb)
            expected = "stopped" if verb in ("kill", "kill --all") and done.ok else ""
            found[verb] = (done.ok, self.settled(expected) if expected else self.status())
        return found


@pytest.fixture
def subjects(runtime: oci.Runtime, tmp_path: Path) -> Iterator[list[Subject]]:
    """sealrun, runc, crun."""
    oracles = [oci.oracle(name, tmp_path) for name in ("runc", "crun")]
    yield [Subject(one, tmp_path) for one in (runtime, *oracles)]
    for oracle in oracles:
        oracle("delete", "--force", "c1")


@pytest.mark.parametrize("state", STATES)
def test_the_verbs_in_a_state(state: str, subjects: list[Subject]) -> None:
    ours, *theirs = [subject.outcomes(state) for subject in subjects]
    found = {}
    for subject, outcomes in zip(subjects[1:], theirs, strict=True):
        for verb, outcome in outcomes.items():
            if outcome != ours[verb]:
                found[subject.name, verb] = (ours[verb], outcome)
    listed = {
        (oracle, verb.strip("`"))
        for verb, where, oracles, *_ in documentation.table(
            "docs/runtime-spec.md", "Verbs in states"
        )
        if where == state
        for oracle in oracles.split(", ")
    }
    unlisted = [f"{key}: ours, theirs: {found[key]}" for key in found if key not in listed]
    assert not unlisted, "\n".join(unlisted)
    assert listed == set(found), "it is no difference (any more): take it from the documentation"
