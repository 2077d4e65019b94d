"""The sandbox's cgroup in this machine's own hierarchies, and that nothing of it stays."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.shim import Shim, alive, running, terminate, wait
from sealrun_runtime import leftovers, store
from sealrun_runtime.shim.cgroup import Cgroup, Hierarchy, hierarchies

pytestmark = pytest.mark.root


@pytest.fixture
def where() -> list[Hierarchy]:
    found = hierarchies(Path("/proc/self/mountinfo").read_text())
    assert found, "this machine has no cgroup hierarchy that can be written"
    return found


@pytest.fixture
def parent(where: list[Hierarchy]) -> Iterator[str]:
    """A path that nobody else uses."""
    name = f"/sealrun_test_{uuid.uuid4().hex[:8]}"
    yield name
    for one in where:
        for directory, _, _ in os.walk(one.mount + name, topdown=False):
            os.rmdir(directory)


@contextmanager
def created(tmp_path: Path, path: str) -> Iterator[Shim]:
    with running(tmp_path, cgroups_path=path) as shim, shim.guest() as guest:
        request = shim.create()
        guest.create()
        request.ok()
        yield shim


def members(directory: str) -> set[int]:
    return {int(line) for line in Path(directory, "cgroup.procs").read_text().split()}


def test_shim_vmm_and_stand_in_are_in_it(
    tmp_path: Path, where: list[Hierarchy], parent: str
) -> None:
    with created(tmp_path, f"{parent}/c1") as shim:
        assert shim.stdio is not None
        everybody = {shim.process.pid, shim.vmm, shim.stdio.stand_in.pid}
        for one in where:
            assert members(f"{one.mount}{parent}/c1") == everybody
        noted = shim.directory.read(store.CGROUPS).decode().split()
        assert noted == [f"{one.mount}{parent}{tail}" for one in where for tail in ("", "/c1")]
        shim.delete(force=True).ok()
        assert shim.gone() == 0
        assert not any(os.path.exists(one.mount + parent) for one in where)


def test_the_engines_cgroup_beside_ours_stays(
    tmp_path: Path, where: list[Hierarchy], parent: str
) -> None:
    with created(tmp_path, f"{parent}/c1") as shim:
        for one in where:
            os.mkdir(f"{one.mount}{parent}/conmon")
        shim.delete(force=True).ok()
        shim.process.wait(20)
        for one in where:
            assert os.listdir(one.mount + parent)
            assert os.path.isdir(f"{one.mount}{parent}/conmon")
            assert not os.path.exists(f"{one.mount}{parent}/c1")


def test_a_failed_create_leaves_nothing(
    tmp_path: Path, where: list[Hierarchy], parent: str
) -> None:
    with running(tmp_path, cgroups_path=f"{parent}/c1", boot_timeout=1) as shim:
        assert shim.create().error().kind == "boot-failed"
        assert shim.gone() == 0
        assert not any(os.path.exists(one.mount + parent) for one in where)


def test_what_a_killed_shim_leaves_can_be_removed_without_it(
    tmp_path: Path, where: list[Hierarchy], parent: str
) -> None:
    with created(tmp_path, f"{parent}/c1") as shim:
        vmm = shim.vmm
        terminate(shim.process.pid)
        shim.process.wait()
        assert shim.code() == 137
        wait(lambda: not alive(vmm))
        leftovers.remove(shim.directory, patience=0)
        assert not any(os.path.exists(one.mount + parent) for one in where)


def test_a_path_that_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    with running(tmp_path, cgroups_path="/a/../../../tmp/x") as shim:
        error = shim.create().error()
        assert error.kind == "host-unfit"
        assert "cannot use the cgroup path" in error.text
        assert shim.gone() == 0


def test_without_a_path_nothing_is_made(tmp_path: Path) -> None:
    with created(tmp_path, "") as shim:
        here = Path("/proc/self/cgroup").read_text()
        assert Path(f"/proc/{shim.process.pid}/cgroup").read_text() == here
        assert shim.directory.read(store.CGROUPS) == b""


def test_two_vms_of_one_pod_have_cgroups_of_their_own(
    tmp_path: Path, where: list[Hierarchy], parent: str
) -> None:
    """A pod that is restarted has, for a while, two in the cgroup of its infra container: the first to
    go takes nothing from the second, and the second leaves nothing."""
    infra = f"{parent}/infra"
    cgroups = []
    for name in ("first", "second"):
        directory = store.make_container(str(tmp_path / "root"), name)
        cgroup = Cgroup(directory, where, f"{infra}/sealrun-{name}", own=2)
        cgroup.make()
        cgroups.append((cgroup, directory))
    for cgroup, directory in cgroups:
        cgroup.remove()
        leftovers.remove(directory, patience=0)
        still = [one.mount for one in where if os.path.exists(one.mount + infra)]
        assert still == ([one.mount for one in where] if cgroup is cgroups[0][0] else [])
