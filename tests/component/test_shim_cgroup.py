"""The sandbox's cgroup in this machine's own hierarchies, and that nothing of it stays."""

import ctypes
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures import containers
from fixtures.shim import Shim, alive, running, terminate, wait
from sealrun_runtime import config, handover, leftovers, mount_table, store
from sealrun_runtime.shim import placement
from sealrun_runtime.shim.cgroup import Cgroup, Hierarchy, hierarchies
from sealrun_runtime.shim.errors import HostFailed

pytestmark = pytest.mark.root

CLONE_NEWUSER = 0x10000000  # linux/sched.h


@pytest.fixture
def where() -> list[Hierarchy]:
    found = hierarchies(mount_table.read())
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


def handed_over(cgroups_path: str) -> handover.Handover:
    """What a shim starts from, of which this is all that counts here."""
    container = containers.spec(cgroups_path=cgroups_path)
    settings = config.build(config.resolve([], {}))
    return handover.Handover(
        id="c1",
        container=container,
        image="",
        image_source="test",
        init_data=b"",
        guest_image="/none",
        config=settings,
    )


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


def test_a_user_who_may_make_no_group_goes_without_one(
    tmp_path: Path, where: list[Hierarchy], parent: str
) -> None:
    """As with runc and crun: their engine names a path that nobody handed down to them."""
    directory = store.make_container(str(tmp_path / "root"), "c1")
    os.chmod(directory.path, 0o777)
    given = handed_over(f"{parent}/c1")
    child = os.fork()
    if child == 0:
        status = 2
        try:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with pytest.raises(HostFailed, match="Permission denied"):
                placement.make(given, directory)  # not a user's engine: a machine's
            assert ctypes.CDLL(None).unshare(CLONE_NEWUSER) == 0
            status = 0 if placement.make(given, directory) is None else 1
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not any(os.path.exists(one.mount + parent) for one in where)
