"""What a user sweeps away is gone, whatever runs: a pod, a container with a volume, all of Podman's storage."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import podman as podmans
from fixtures import traces
from fixtures import workload as workloads

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

FOREVER = ["/bin/sh", "-c", "while :; do /bin/sleep 1; done"]


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory that Podman takes as its --runroot, which may have 50 characters."""
    with tempfile.TemporaryDirectory(prefix="sweep-", dir="/run") as name:
        yield Path(name)


@pytest.mark.virtiofsd
def test_nothing_is_left_of_what_ran(
    tmp_path: Path, short: Path, workload: workloads.Workload
) -> None:
    """In a storage of its own, so that the machine's is not touched."""
    places = {"root": "storage", "network-config-dir": "networks", "volumepath": "volumes"}
    options = [f"--{option}={tmp_path / name}" for option, name in places.items()]
    podman = podmans.Podman(tmp_path, options=[*options, f"--runroot={short}"])
    (tmp_path / "data").mkdir()
    address = workload.registry.address
    host = '[host]\ninsecure_shared_directories = ["/data"]'
    annotations = workloads.open_annotations(workload.plain, address, host)
    assert podman("import", "--quiet", "-", podmans.STUB, stdin=bytes(10240)).status == 0
    try:
        assert podman("pod", "create", "--name", "swept", "--network", "none").status == 0
        for _ in range(2):
            podman.start(FOREVER, annotations, "--pod", "swept")
        pod = podman("ps", "--all", "--quiet", "--no-trunc").stdout.decode().split()
        assert len(pod) == 3, "two, and the infra container"
        single = podman.start(FOREVER, annotations, "--volume", f"{tmp_path}/data:/data")

        swept = podman("pod", "rm", "--force", "--all", "--time", "0")
        assert swept.status == 0, swept.stderr
        for one in pod:
            traces.wait_until_gone(one, podmans.STATE_ROOT)
        assert not list(podmans.STATE_ROOT.glob("pod:*"))
        assert podman("exec", single, "/bin/true").status == 0, "nobody swept this one"

        swept = podman("system", "reset", "--force")
        assert swept.status == 0, swept.stderr
        traces.wait_until_gone(single, podmans.STATE_ROOT)
    finally:
        podman.clean()
    assert list((tmp_path / "data").iterdir()) == [], "the user's own files are the user's"
