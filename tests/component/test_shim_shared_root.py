"""The bundle's own root file system, shared with the VM: a real virtiofsd, a real shim."""

import os
from pathlib import Path

import pytest
from fixtures.shim import Shim, alive, running, terminate, wait
from sealrun_runtime import store
from sealrun_runtime.shim import shared_root

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        not any(os.path.exists(path) for path in shared_root.PROGRAMS), reason="no virtiofsd"
    ),
]


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    """A root whose path holds what options are separated by."""
    rootfs = tmp_path / "a,b\\c"
    rootfs.mkdir()
    return str(rootfs)


def server(shim: Shim) -> int:
    """The pid of virtiofsd."""
    wait(lambda: b"\nvmm " in b"\n" + shim.directory.read(store.PROCESSES))
    for line in shim.directory.read(store.PROCESSES).decode().splitlines():
        role, pid, _ = line.split()
        if role == shared_root.ROLE:
            return int(pid)
    raise AssertionError("no virtiofsd was recorded")


def family(pid: int) -> list[int]:
    """A process and its children: virtiofsd confines itself in a pid namespace."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait(lambda: bool(children.read_text()))
    return [pid, *map(int, children.read_text().split())]


def test_the_guest_is_told_the_share(tmp_path: Path, bundle: str) -> None:
    with running(tmp_path / "run", image="", rootfs=bundle) as shim, shim.guest() as guest:
        processes = family(server(shim))
        assert (shim.path / shared_root.SOCKET).is_socket()
        create = shim.create()
        message = guest.create()
        create.ok()
        assert (message.image, message.share) == ("", "root")
        assert shim.annotation("root") == "bundle"
        assert "io.sealrun.image" not in shim.state()["annotations"]
        start = shim.start()
        guest.start()
        start.ok()
        guest.exit("c1", 0)
        assert shim.code() == 0
        assert shim.gone() == 0
        assert not any(map(alive, processes))


def test_an_image_needs_no_share(tmp_path: Path) -> None:
    with running(tmp_path) as shim, shim.guest() as guest:
        create = shim.create()
        assert guest.create().share == ""
        create.ok()
        assert shim.annotation("root") == "image"
        assert b"virtiofsd" not in shim.directory.read(store.PROCESSES)


@pytest.mark.parametrize("who", ["shim", "server", "delete", "vmm"])
def test_nothing_of_it_stays(tmp_path: Path, bundle: str, who: str) -> None:
    with running(tmp_path / "run", image="", rootfs=bundle) as shim, shim.guest() as guest:
        processes = family(server(shim))
        vmm = next(
            int(line.split()[1])
            for line in shim.directory.read(store.PROCESSES).decode().splitlines()
            if line.startswith("vmm ")
        )
        create = shim.create()
        guest.create()
        create.ok()
        if who == "shim":
            terminate(shim.process.pid)
        elif who == "server":
            terminate(processes[0])
        elif who == "vmm":
            terminate(vmm)
        else:
            shim.delete(force=True).ok()
        assert shim.code() == 137
        wait(lambda: not any(map(alive, [*processes, vmm])))
        if who == "server":
            assert "the server of the root file system ended" in shim.annotation("exit-reason")


def test_init_data_has_to_allow_it(tmp_path: Path, bundle: str) -> None:
    text = b'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n'
    with running(tmp_path / "run", image="", rootfs=bundle, init_data=text) as shim:
        error = shim.create().error()
        assert error.kind == "host-unfit"
        assert error.text == "the init-data does not allow a root that the host shares"
        assert shim.gone() == 0


def test_a_root_that_is_not_there(tmp_path: Path) -> None:
    with running(tmp_path / "run", image="", rootfs=str(tmp_path / "none")) as shim:
        create = shim.create()
        error = create.error()
        assert "the server of the root file system ended" in error.text
        assert "none" in error.text
        assert shim.gone() == 0
