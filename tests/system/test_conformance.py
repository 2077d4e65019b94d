"""What a container in a real VM sees, beside runc on this host: few boots, many questions.

tests/component/test_conformance.py asks the same one by one, and of crun too. Here the guest's own
kernel answers, and its control groups have controllers.
"""

import json
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fixtures import conformance, oci, probe
from fixtures import workload as workloads
from fixtures.conformance import Case, Exec

pytestmark = [pytest.mark.vm, pytest.mark.registry, pytest.mark.root]

ALIVE = "\nexec /bin/sleep 100000\n"
# What differs from kernel to kernel, and with what is on a machine.
BY_RULE = {("try", "open a device that is not a container's")}
KERNEL_S = BY_RULE | {("device", "/dev/core")}


def together(name: str, *cases: Case, **changes: Any) -> tuple[Case, set[tuple[str, ...]]]:
    """One container for several cases, and what may differ."""
    config: dict[str, Any] = {}
    for case in cases:
        config = conformance.merged(config, case.changes)
    listed = set().union(*(case.differences for case in cases))
    return Case(name, conformance.merged(config, changes)), listed


EVERYTHING, EVERY_DIFFERENCE = together(
    "mounts, devices, names, sysctl, seccomp and limits",
    conformance.MOUNTED,
    conformance.DEVICED,
    linux={
        "resources": conformance.LIMITS | {"devices": [{"allow": True, "access": "rwm"}]},
    },
)
USERS, USERS_DIFFERENCE = together(
    "a user of a user namespace, with a read-only root",
    conformance.USERS,
    conformance.READ_ONLY,
    conformance.PROCESS,
)


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("conformance")


@pytest.fixture(scope="module")
def runtimes(
    directory: Path, busybox_annotations: workloads.Annotations
) -> Iterator[tuple[oci.Runtime, oci.Runtime]]:
    """sealrun and runc."""
    binary = shutil.which("sealrun")
    assert binary, "sealrun is not installed: run tests/run"
    ours = oci.Runtime("sealrun", binary, directory / "sealrun-root", busybox_annotations)
    theirs = oci.oracle("runc", directory)
    yield ours, theirs
    ours.clean()
    theirs.clean()


def start(
    runtime: oci.Runtime, directory: Path, name: str, changes: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """A container `name` whose program probes and stays: its bundle, and its configuration."""
    rootfs = oci.busybox_tree(directory / f"{runtime.name}-{name}-rootfs")
    made = oci.bundle(directory / f"{runtime.name}-{name}", rootfs, "", runtime.annotations)
    config = json.loads((made / "config.json").read_text())
    config["linux"]["cgroupsPath"] = oci.own_group(directory, f"{runtime.name}-{name}")
    config = conformance.merged(config, changes)
    command = probe.command(config)
    command[2] += ALIVE
    config["process"]["args"] = command
    oci.edit(made, config)
    created = runtime.create(made, name)
    assert created.ok, f"{runtime.name}: {created.stderr}"
    started = runtime("start", name)
    assert started.ok, f"{runtime.name}: {started.stderr}"
    return made, config


def report(made: Path, config: Mapping[str, Any], seconds: float = 120) -> probe.Report:
    """What the probe said; it takes some seconds in an emulated VM."""
    deadline = time.monotonic() + seconds
    while b"\nend\t" not in (output := (made / "stdout").read_bytes()):
        assert time.monotonic() < deadline, (output, (made / "errors").read_text())
        time.sleep(0.2)
    return probe.settled(probe.parse(output), config)


def both(
    runtimes: tuple[oci.Runtime, oci.Runtime], directory: Path, name: str, case: Case
) -> list[probe.Difference]:
    started = [start(runtime, directory, name, case.changes) for runtime in runtimes]
    ours, theirs = [report(made, config) for made, config in started]
    return probe.differences(ours, theirs)


def unlisted(
    found: list[probe.Difference],
    listed: set[tuple[str, ...]],
    kernel_s: set[tuple[str, str]] = KERNEL_S,
) -> str:
    return "\n".join(
        str(one)
        for one in found
        if ("runc", one.topic, one.subject) not in listed
        and (one.topic, one.subject) not in kernel_s
    )


@pytest.fixture(scope="module")
def everything(
    runtimes: tuple[oci.Runtime, oci.Runtime], directory: Path
) -> list[probe.Difference]:
    """The container `c1` of both runtimes, and what differs in it."""
    return both(runtimes, directory, "c1", EVERYTHING)


def test_mounts_devices_names_sysctl_seccomp_and_limits(everything: list[probe.Difference]) -> None:
    assert not unlisted(everything, EVERY_DIFFERENCE)


@pytest.mark.parametrize(
    "case", [case for case in conformance.EXECS if case.telling], ids=lambda case: case.name
)
def test_programs_that_are_executed(
    case: Exec,
    everything: list[probe.Difference],
    runtimes: tuple[oci.Runtime, oci.Runtime],
    tmp_path: Path,
) -> None:
    command = probe.command({"linux": {}})
    words = [*case.options, "c1", *command]
    if case.process is not None:
        path = tmp_path / "process.json"
        path.write_text(json.dumps({**case.process, "args": command, "terminal": False}))
        words = ["--process", str(path), "c1"]
    config = {"linux": {}, "process": case.process or {}, "mounts": []}
    reports = []
    for runtime in runtimes:
        done = runtime("exec", *words)
        assert done.ok, f"{runtime.name}: {done.stderr}"
        reports.append(probe.settled(probe.parse(done.stdout), config))
    listed = {tuple(what) for name, *what in conformance.exec_differences() if name == case.name}
    assert not unlisted(probe.differences(*reports), listed | EVERY_DIFFERENCE)


def test_a_user_namespace_and_a_read_only_root(
    runtimes: tuple[oci.Runtime, oci.Runtime], directory: Path
) -> None:
    assert not unlisted(both(runtimes, directory, "c2", USERS), USERS_DIFFERENCE)


def test_rules_for_devices(runtimes: tuple[oci.Runtime, oci.Runtime], directory: Path) -> None:
    found = both(runtimes, directory, "c3", conformance.RULES)
    assert not unlisted(found, set(), kernel_s=KERNEL_S - BY_RULE)
