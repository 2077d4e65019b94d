"""What a user sweeps away is gone, whatever runs: a pod, a container with a volume, all of Podman's storage."""

from pathlib import Path

import pytest
from fixtures import podman as podmans
from fixtures import traces
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

FOREVER = ["/bin/sh", "-c", "while :; do /bin/sleep 1; done"]


@pytest.mark.virtiofsd
@pytest.mark.parametrize(
    "sweep",
    [
        pytest.param(
            [["pod", "rm", "--force", "--all", "--time", "0"], ["rm", "-fa", "-t", "0"]], id="rm"
        ),
        pytest.param([["system", "reset", "--force"]], id="reset"),
    ],
)
def test_nothing_is_left_of_what_ran(
    tmp_path: Path, workload: workloads.Workload, sweep: list[list[str]]
) -> None:
    """In a storage of its own, so that the machine's is not touched."""
    places = {"root": "storage", "runroot": "run", "network-config-dir": "networks"}
    options = [f"--{option}={tmp_path / name}" for option, name in places.items()]
    podman = podmans.Podman(tmp_path, options=[*options, f"--volumepath={tmp_path}/volumes"])
    (tmp_path / "data").mkdir()
    address = workload.registry.address
    host = '[host]\ninsecure_shared_directories = ["/data"]'
    annotations = workloads.open_annotations(workload.plain, address, host)
    assert podman("import", "--quiet", "-", podmans.STUB, stdin=bytes(10240)).status == 0
    try:
        assert podman("pod", "create", "--name", "swept", "--network", "none").status == 0
        ran = [
            podman.start(FOREVER, annotations, "--pod", "swept"),
            podman.start(FOREVER, annotations, "--pod", "swept"),
            podman.start(FOREVER, annotations, "--volume", f"{tmp_path}/data:/data"),
        ]
        ids = podman("ps", "--all", "--quiet", "--no-trunc").stdout.decode().split()
        assert set(ran) < set(ids), "and the infra container"
        assert all(traces.of(one, podmans.STATE_ROOT) for one in ran)
        for command in sweep:
            ended = podman(*command)
            assert ended.status == 0, ended.stderr
    finally:
        podman.clean()
    for one in ids:
        traces.wait_until_gone(one, podmans.STATE_ROOT)
    left = [path.name for path in podmans.STATE_ROOT.glob("pod:*")]
    assert not left
    assert list((tmp_path / "data").iterdir()) == [], "the user's own files are the user's"
