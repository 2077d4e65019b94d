"""A pod as CRI-O makes it, through a real conmon: with and without an infra container, probes, updates,
attached programs and endings. runc is the oracle.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from component import test_sandbox_on_simulator as alone
from component.test_sandbox_on_simulator import wait_until
from fixtures import netns, oci, pods
from fixtures.crio import Crio, lines

pytestmark = pytest.mark.root

program, runtime = alone.program, alone.runtime  # fixtures
SERVICE = "trap 'echo asked; exit 3' TERM; echo up; while :; do sleep 0.1; done"
PROCESS = {
    "user": {"uid": 0, "gid": 0},
    "env": ["PATH=/bin:/usr/bin:/usr/sbin", "OF=probe"],
    "cwd": "/bin",
}


@pytest.fixture(params=["runc", "sealrun"])
def crio(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Crio]:
    if request.param == "sealrun":
        yield Crio(request.getfixturevalue("runtime"), tmp_path)
        return
    oracle = oci.oracle("runc", tmp_path)
    yield Crio(oracle, tmp_path)
    oracle.clean()


@pytest.fixture
def pod(crio: Crio, tmp_path: Path) -> Iterator[pods.Pod]:
    rootfs = oci.busybox_tree(tmp_path / "rootfs")
    with netns.empty() as network:
        engine = pods.Engine("cri-o", ("/bin/sleep", "1000"), pods.CRIO.infra, pods.CRIO.member)
        yield pods.Pod(crio.runtime, engine, tmp_path, rootfs, network=network.path)


def create(crio: Crio, pod: pods.Pod, name: str, script: str, *options: str) -> int:
    infra = name == pod.id
    marks = (pod.engine.infra if infra else pod.engine.member)(pod.id)
    args = list(pod.engine.pause) if infra else ["/bin/sh", "-c", script]
    group = {"cgroupsPath": oci.own_group(crio.directory, f"{crio.runtime.name}-{name}")}
    changes = {"hostname": "pod"} if infra else {}
    terminal = "-t" in options
    bundle = pod.bundle(name, args, marks, linux=group, **changes)
    if terminal:
        config = oci.read(bundle)
        oci.edit(bundle, {"process": {**config["process"], "terminal": True}})
    crio.runtime.started.insert(0, name)
    pid = crio.create(bundle, name, *options)
    assert crio.runtime("start", name).ok
    return pid


def process(*args: str) -> dict[str, object]:
    return {**PROCESS, "args": list(args)}


@pytest.mark.parametrize("infra", [True, False], ids=["infra", "no-infra"])
def test_a_pod(crio: Crio, pod: pods.Pod, infra: bool) -> None:
    runtime = crio.runtime
    if infra:
        pod.infra_pid = create(crio, pod, pod.id, "")
    create(crio, pod, "web", SERVICE)
    wait_until(lambda: "up" in lines(crio.log("web")))
    create(crio, pod, "job", "echo out; echo err >&2; exit 9")
    assert crio.exit_code("job") == 9
    assert sorted(lines(crio.log("job")).split()) == ["err", "out"]
    assert runtime.wait_for("job", "stopped")["pid"] == 0

    script = "echo $OF; pwd; exit 6"
    assert crio.exec_sync("web", process("sh", "-c", script), "one") == (6, "probe\n/bin\n")
    code, said = crio.exec_sync("web", process("/no/such/program"), "two")
    assert code == -1, said

    file = crio.directory / "attached.json"
    file.write_text(json.dumps(process("sh", "-c", "cat; exit 4")))
    attached = runtime("exec", "--process", str(file), "web", stdin=b"streamed\n")
    assert (attached.status, attached.stdout) == (4, b"streamed\n")

    updated = runtime("update", "--resources", "-", "web", stdin=b"{}")
    assert updated.ok, updated.stderr
    assert runtime("pause", "web").ok
    assert (runtime.state("web") or {})["status"] == "paused"
    assert runtime("resume", "web").ok
    assert runtime("kill", "web", "15").ok
    assert crio.exit_code("web") == 3
    assert "asked" in lines(crio.log("web"))
    assert runtime("delete", "--force", "web").ok
    assert runtime("delete", "--force", "job").ok
    if infra:
        assert runtime("kill", pod.id, "KILL").ok
        assert crio.exit_code(pod.id) == 137
        assert runtime("delete", "--force", pod.id).ok
    assert not runtime("state", "web").ok


def test_a_terminal_and_a_program_that_is_missing(crio: Crio, pod: pods.Pod) -> None:
    create(crio, pod, "tty", "[ -t 0 ] && [ -t 1 ] && echo a terminal; exit 2", "-t")
    assert crio.exit_code("tty") == 2
    assert lines(crio.log("tty")).strip() == "a terminal"
    marks = pod.engine.member(pod.id)
    bundle = pod.bundle("missing", ["/no/such/program"], marks)
    crio.runtime.started.insert(0, "missing")
    with pytest.raises((AssertionError, subprocess.TimeoutExpired), match=r"(?i)no such file"):
        crio.create(bundle, "missing")
