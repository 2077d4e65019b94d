"""`events` beside runc's: the same members, and true figures of what a program uses."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import documentation, oci, workload

pytestmark = [pytest.mark.vm, pytest.mark.root]

MIB = 1 << 20
HELD_MIB = 30
SLACK_MIB = 16  # a shell, and what the kernel needs for it
SLACK_SECONDS = 10.0  # of the runtime, which is in the group before the program is; emulated
SCRIPT = f"""
dd if=/dev/zero of=/dev/shm/held bs=1M count={HELD_MIB} 2>/dev/null
i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done
times; echo held
exec sleep 1000
"""
_TIME = re.compile(r"(\d+)m([\d.]+)s")


@pytest.fixture
def running(
    busybox_annotations: workload.Annotations, tmp_path: Path
) -> Iterator[dict[str, tuple[oci.Runtime, str]]]:
    """Both runtimes with a container of one shape, and what its program said of its time."""
    rootfs = oci.busybox_tree(tmp_path / "rootfs")
    (rootfs / "bin/dd").symlink_to("busybox")
    found = {}
    for name, annotations in (("runc", {}), ("sealrun", dict(busybox_annotations))):
        binary = shutil.which(name)
        assert binary, f"{name} is not installed: run tests/run"
        runtime = oci.Runtime(name, binary, tmp_path / name)
        bundle = oci.bundle(tmp_path / f"{name}-bundle", rootfs, SCRIPT, annotations)
        linux = oci.read(bundle)["linux"]
        linux["cgroupsPath"] = oci.own_group(bundle, name)
        oci.edit(bundle, {"linux": linux})
        said = runtime.run(bundle)
        deadline = time.monotonic() + 120
        while "held" not in said.read_text():
            assert time.monotonic() < deadline, said.read_text()
            time.sleep(0.1)
        found[name] = (runtime, said.read_text())
    yield found
    for runtime, _ in found.values():
        runtime.clean()


def test_beside_runc(running: dict[str, tuple[oci.Runtime, str]]) -> None:
    members: dict[str, set[str]] = {}
    for name, (runtime, said) in running.items():
        told = runtime("events", "--stats", "c1")
        assert told.ok, told.stderr
        event = json.loads(told.stdout)
        assert (sorted(event), event["type"], event["id"]) == (
            ["data", "id", "type"],
            "stats",
            "c1",
        )
        check_figures(event["data"], said)
        members[name] = paths(event["data"])
    table = documentation.table("docs/runtime-spec.md", "What events tells")
    listed = {(member.strip("`"), runtime) for row in table for member, runtime in [row[:2]]}
    different = {(member, "runc") for member in members["runc"] - members["sealrun"]}
    different |= {(member, "sealrun") for member in members["sealrun"] - members["runc"]}
    assert different <= listed, "which of them is there depends on the host's control groups"
    follow(running["sealrun"][0])


def check_figures(data: dict[str, Any], said: str) -> None:
    """What the program holds, and the time that it and its children said they took."""
    memory = data["memory"]
    for figure in (memory["usage"]["usage"], memory["cache"]):
        assert HELD_MIB * MIB <= figure < (HELD_MIB + SLACK_MIB) * MIB
    assert memory["usage"]["max"] >= memory["usage"]["usage"]
    assert data["pids"]["current"] == 1
    seconds = sum(60 * int(minutes) + float(rest) for minutes, rest in _TIME.findall(said))
    usage = data["cpu"]["usage"]
    assert seconds > 0
    assert seconds - 0.1 <= usage["total"] / 1e9 <= seconds + SLACK_SECONDS
    assert usage["user"] > 0


def paths(figures: dict[str, Any], above: str = "") -> set[str]:
    """The members that are not 0: to runc's readers that is the same as one that is not there. What is
    in memory.raw is the kernel's."""
    found = set()
    for name, value in figures.items():
        path = f"{above}{name}"
        if isinstance(value, dict) and path != "memory.raw":
            found |= paths(value, f"{path}.")
        elif value:
            found.add(path)
    return found


def follow(runtime: oci.Runtime) -> None:
    """At an interval, until the container ends; time only grows."""
    command = [runtime.binary, "--root", str(runtime.root), "events", "--interval", "200ms", "c1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        events = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert runtime("kill", "c1", "KILL").ok
        process.communicate(timeout=60)
    assert process.returncode == 0
    totals = [event["data"]["cpu"]["usage"]["total"] for event in events]
    assert totals == sorted(totals)
