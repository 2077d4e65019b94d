"""What a container sees, through the whole of sealrun but a VM, beside runc and crun on this host."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from component import test_sandbox_on_simulator as simulator
from fixtures import conformance, oci, probe
from fixtures.conformance import Case, Exec

pytestmark = pytest.mark.root

program = simulator.program
runtime = simulator.runtime

ORACLES = ("runc", "crun")


@pytest.fixture
def oracles(tmp_path: Path) -> Iterator[dict[str, oci.Runtime]]:
    made = {name: oci.oracle(name, tmp_path) for name in ORACLES}
    yield made
    for one in made.values():
        one.clean()


def bundle(runtime: oci.Runtime, directory: Path, changes: conformance.Changes) -> Path:
    """A bundle of `runc spec`'s configuration with these changes."""
    rootfs = oci.busybox_tree(directory / f"{runtime.name}-rootfs")
    made = oci.bundle(directory / runtime.name, rootfs, "", runtime.annotations)
    config = json.loads((made / "config.json").read_text())
    config["linux"]["cgroupsPath"] = oci.own_group(directory, runtime.name)
    config["linux"]["resources"] = {}  # where cgroup v2 has no controllers here, none can be set
    return oci.edit(made, conformance.merged(config, changes))


def start(runtime: oci.Runtime, made: Path) -> None:
    created = runtime.create(made, "c1")
    assert created.ok, f"{runtime.name}: {created.stderr}"
    started = runtime("start", "c1")
    assert started.ok, f"{runtime.name}: {started.stderr}"


def run(runtime: oci.Runtime, directory: Path, case: Case) -> probe.Report:
    """What the probe reports from a container of the case."""
    made = bundle(runtime, directory, case.changes)
    config = json.loads((made / "config.json").read_text())
    config["process"]["args"] = probe.command(config)
    oci.edit(made, config)
    start(runtime, made)
    runtime.wait_for("c1", "stopped")
    return probe.settled(probe.parse((made / "stdout").read_bytes()), config, groups=False)


@pytest.mark.parametrize("case", conformance.CASES, ids=lambda case: case.name)
def test_a_container_sees_what_it_sees_elsewhere(
    case: Case,
    runtime: oci.Runtime,
    oracles: dict[str, oci.Runtime],
    tmp_path: Path,
) -> None:
    ours = run(runtime, tmp_path, case)
    found = {}
    for name, oracle in oracles.items():
        for one in probe.differences(ours, run(oracle, tmp_path, case)):
            found[name, one.topic, one.subject] = one
    unlisted = [str(found[key]) for key in found if key not in case.differences]
    assert not unlisted, "\n".join(unlisted)
    listed = case.differences
    assert listed == set(found), "it is no difference (any more): take it from the documentation"


@pytest.fixture
def running(
    runtime: oci.Runtime, oracles: dict[str, oci.Runtime], tmp_path: Path
) -> list[oci.Runtime]:
    """The same container in all runtimes."""
    runtimes = [runtime, *oracles.values()]
    for one in runtimes:
        start(one, bundle(one, tmp_path, {"process": {"args": ["/bin/sleep", "1000"]}}))
    return runtimes


def execute(runtime: oci.Runtime, case: Exec, directory: Path) -> probe.Report:
    command = probe.command({"linux": {}})
    words = [*case.options, "c1", *command]
    if case.process is not None:
        path = directory / "process.json"
        path.write_text(json.dumps({**case.process, "args": command, "terminal": False}))
        words = ["--process", str(path), "c1"]
    done = runtime("exec", *words)
    assert done.ok, f"{runtime.name}: {done.stderr}"
    config = {"linux": {}, "process": case.process or {}, "mounts": []}
    return probe.settled(probe.parse(done.stdout), config, groups=False)


def test_a_program_that_is_executed_sees_what_it_sees_elsewhere(
    running: list[oci.Runtime], tmp_path: Path
) -> None:
    found = {}
    for case in conformance.EXECS:
        ours, *theirs = [execute(one, case, tmp_path) for one in running]
        for oracle, report in zip(running[1:], theirs, strict=True):
            for one in probe.differences(ours, report):
                found[case.name, oracle.name, one.topic, one.subject] = one
    listed = conformance.exec_differences()
    unlisted = [f"{key}: {found[key]}" for key in found if key not in listed]
    assert not unlisted, "\n".join(unlisted)
    assert listed == set(found), "it is no difference (any more): take it from the documentation"
