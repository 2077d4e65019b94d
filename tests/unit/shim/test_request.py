"""The small files of the host that travel with CreateContainer, and the size of /dev/shm."""

import os
from pathlib import Path

import msgspec
import pytest
from fixtures import containers
from sealrun_protocol import limits
from sealrun_protocol.messages import File
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.handover import Handover
from sealrun_runtime.oci_config import Mount
from sealrun_runtime.settings import Config
from sealrun_runtime.shim import request
from sealrun_runtime.shim.errors import HostFailed


def container(*mounts: Mount) -> ContainerSpec:
    return containers.spec(mounts=mounts)


def bind(source: Path, destination: str = "/etc/hosts") -> Mount:
    return Mount(destination=destination, source=str(source), type="bind")


@pytest.mark.parametrize(("asked", "told"), [("boxed", "boxed"), ("", os.uname().nodename)])
def test_who_asks_for_no_name_has_the_host_s(asked: str, told: str) -> None:
    """As with crun: --uts=host. A kernel that nobody told a name says `(none)`."""
    handover = Handover(
        id="c1",
        container=msgspec.structs.replace(container(), hostname=asked),
        image="registry.test/app:1",
        image_source="test",
        init_data=b"",
        guest_image="/nowhere",
        config=Config(),
    )
    assert request.configure_sandbox(1, handover).hostname == told


def test_a_copy_has_the_permissions_of_its_source(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    file.chmod(0o4640)
    copies = request.files(container(bind(file), bind(file), bind(tmp_path / "none")), [0])
    assert copies == {0: File(content=b"x", mode=0o640, uid=os.getuid(), gid=os.getgid())}


def test_a_file_at_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(limits.FILE_BYTES))
    one = container(bind(file))
    assert len(request.files(one, [0])[0].content) == limits.FILE_BYTES
    many = container(*[bind(file)] * (limits.FILES_BYTES // limits.FILE_BYTES + 1))
    with pytest.raises(HostFailed, match="cannot copy the container's files: they are larger"):
        request.files(many, range(len(many.mounts)))
    file.write_bytes(bytes(limits.FILE_BYTES + 1))
    with pytest.raises(HostFailed, match="is larger than"):
        request.files(one, [0])


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostFailed, match="cannot read"):
        request.files(container(bind(tmp_path / "none")), [0])


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert request.files(container(bind(fifo)), [0])[0].content == b""


def test_the_size_of_dev_shm() -> None:
    size = os.statvfs("/dev/shm")
    mount = bind(Path("/dev/shm"), "/dev/shm")
    assert request.shm_bytes(container(mount)) == size.f_blocks * size.f_frsize > 0
    assert request.shm_bytes(container(bind(Path("/none"), "/dev/shm"))) == 0
    tmpfs = Mount(destination="/dev/shm", source="shm", type="tmpfs")
    assert request.shm_bytes(container(tmpfs)) == 0
