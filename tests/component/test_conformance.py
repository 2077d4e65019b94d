"""What a container sees, through the whole of sealrun but a VM, beside runc and crun on this host."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from component import test_sandbox_on_simulator as simulator
from fixtures import conformance, oci, probe
from fixtures.conformance import Case

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


def run(runtime: oci.Runtime, directory: Path, case: Case) -> probe.Report:
    """What the probe reports from a container of the case."""
    rootfs = oci.busybox_tree(directory / f"{runtime.name}-rootfs")
    bundle = oci.bundle(directory / runtime.name, rootfs, "", runtime.annotations)
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    config["linux"]["resources"] = {}  # where cgroup v2 has no controllers here, none can be set
    config = conformance.merged(config, case.changes)
    config["process"]["args"] = probe.command(config)
    path.write_text(json.dumps(config))
    created = runtime.create(bundle, "c1")
    assert created.ok, f"{runtime.name}: {created.stderr}"
    started = runtime("start", "c1")
    assert started.ok, f"{runtime.name}: {started.stderr}"
    runtime.wait_for("c1", "stopped")
    return probe.settled(probe.parse((bundle / "stdout").read_bytes()), config, groups=False)


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
