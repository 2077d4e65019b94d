"""Which mounts are volumes of the guest's own: the engines' conventions, and the annotation."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from fixtures import containers
from sealrun_protocol.init_data import Host
from sealrun_protocol.volume import Volume
from sealrun_runtime import namespaces, sharing, volumes
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.oci_config import IdMapping, Mount

IMAGE = "registry.test/app:1"
KUBELET = "kubelet/pods/0f-1/volumes/kubernetes.io~empty-dir/cache"
PODMAN = f"storage/volumes/{'5' * 64}/_data"
PODMAN_SECRETS = "storage/overlay-containers/c1/userdata/run/secrets"

CONTAINERD = f"io.containerd.grpc.v1.cri/containers/{'a' * 64}/volumes/{'b' * 64}"


def container(*mounts: tuple[Path, str], **members: Any) -> ContainerSpec:
    binds = tuple(
        Mount(destination=place, source=str(source), type="bind", options=("rbind",))
        for source, place in mounts
    )
    return containers.spec(**{"mounts": binds} | members)


def made(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir(parents=True)
    return path


@pytest.mark.parametrize(
    ("name", "copy_up"),
    [(KUBELET, False), (PODMAN, True), (CONTAINERD, True), (PODMAN_SECRETS, False)],
)
def test_what_engines_make_for_a_container(tmp_path: Path, name: str, copy_up: bool) -> None:
    source = made(tmp_path, name)
    source.chmod(0o2777)
    given = container((source, "/data"))
    found = volumes.find(given, IMAGE, None, alone=True)
    owner = {"uid": os.getuid(), "gid": os.getgid()}
    assert found == {0: Volume(name=str(source), mode=0o2777, copy_up=copy_up, **owner)}
    assert sharing.plan(given, IMAGE, own=found).names == ()
    assert volumes.find(given, "", None, alone=True) == {}, "the root is the host's as well"
    (source / "file").touch()
    assert volumes.find(given, IMAGE, None, alone=True) == {}, "something is there"
    (line,) = volumes.noted(given, [0]).left_out
    assert "/data is shared with the host: its directory there is not empty" in line


@pytest.mark.parametrize(
    "name",
    [
        "volumes/named/_data",
        f"volumes/{'5' * 63}/_data",
        f"volumes/{'5' * 64}/_data/below",
        "pods/1/volumes/kubernetes.io~secret/key",
        "pods/1/volumes/kubernetes.io~empty-dir/cache/below",
        "srv",
    ],
)
def test_what_is_anything_else_is_shared(tmp_path: Path, name: str) -> None:
    given = container((made(tmp_path, name), "/data"))
    assert volumes.find(given, IMAGE, None, alone=True) == {}
    assert sharing.plan(given, IMAGE).shared == (0,)
    assert volumes.noted(given, [0]).left_out == ()


def test_the_annotation_names_places(tmp_path: Path) -> None:
    full = made(tmp_path, "full")
    (full / "file").touch()
    named = made(tmp_path, "volumes/named/_data")
    other = made(tmp_path, "other")
    annotation = {volumes.ANNOTATION: "/full/, /named"}
    given = container(
        *((full, "/full"), (named, "/named"), (other, "/other")), annotations=annotation
    )
    found = volumes.find(given, IMAGE, None, alone=True)
    assert {index: volume.copy_up for index, volume in found.items()} == {0: False, 1: True}
    assert set(volumes.find(given, "", None, alone=True)) == {0, 1}, "whatever the root is"
    assert sharing.plan(given, IMAGE, own=found).shared == (2,)


def test_a_place_that_is_none_is_an_error_but_in_a_pod(tmp_path: Path) -> None:
    annotation = {volumes.ANNOTATION: "/data,/daat"}
    given = container((made(tmp_path, "x"), "/data"), annotations=annotation)
    with pytest.raises(InvalidRequest, match="nothing is mounted at /daat"):
        volumes.find(given, IMAGE, None, alone=True)
    assert set(volumes.find(given, IMAGE, None, alone=False)) == {0}


def test_an_emptydir_with_empty_directories_is_the_guest_s_and_one_with_a_link_is_not(
    tmp_path: Path,
) -> None:
    """kubelet makes those for a subPath."""
    source = made(tmp_path, KUBELET)
    made(source, "a/b")
    given = container((source, "/data"))
    assert set(volumes.find(given, IMAGE, None, alone=True)) == {0}
    (source / "a/link").symlink_to("b")
    assert volumes.find(given, IMAGE, None, alone=True) == {}


class Subpath:
    """A part of a pod's emptyDir, mounted as kubelet does it."""

    def __init__(self, directory: Path) -> None:
        self.volume = made(directory, KUBELET)
        self.volume.chmod(0o2770)
        self.place = made(directory, "kubelet/pods/0f-1/volume-subpaths/cache/app/0")
        self.mounted: list[Path] = []

    def mount(self, path: Path) -> None:
        namespaces.mount(str(path), str(self.place), "", namespaces.MS_BIND)
        self.mounted.append(self.place)

    def memory(self) -> None:
        namespaces.mount("tmpfs", str(self.volume), "tmpfs", 0)
        self.mounted.append(self.volume)

    def find(self, image: str = IMAGE, **members: Any) -> dict[int, Volume]:
        given = container((self.volume, "/all"), (self.place, "/part"), **members)
        return volumes.find(given, image, None, alone=False)


@pytest.fixture
def subpath(tmp_path: Path) -> Iterator[Subpath]:
    made = Subpath(tmp_path)
    yield made
    for place in reversed(made.mounted):
        namespaces.detach(str(place))


@pytest.mark.root
@pytest.mark.parametrize("memory", [False, True])
@pytest.mark.parametrize("name", ["a", "a/b c", "a\\b\n", "a\u2028b\v\f\r\x85c"])
def test_a_part_of_an_emptydir_is_one_of_the_guest_s(
    subpath: Subpath, name: str, memory: bool
) -> None:
    if memory:
        subpath.memory()
    subpath.mount(made(subpath.volume, name))
    whole, part = subpath.find().values()
    assert whole.subpath == ""
    assert part == msgspec.structs.replace(whole, subpath=name)
    assert (part.name, part.memory) == (str(subpath.volume), memory)
    assert subpath.find("") == {}, "the root is the host's as well"
    named = subpath.find("", annotations={volumes.ANNOTATION: "/part"})
    assert named == {1: part}


@pytest.mark.root
def test_a_part_of_an_emptydir_with_files_is_shared_as_the_whole(subpath: Subpath) -> None:
    subpath.mount(made(subpath.volume, "a"))
    (subpath.volume / "file").touch()
    assert subpath.find() == {}


@pytest.mark.root
@pytest.mark.parametrize("what", ["nothing", "elsewhere", "removed", "the whole", "another disk"])
def test_a_part_of_which_nobody_knows_where_it_is_is_refused(
    subpath: Subpath, tmp_path: Path, what: str
) -> None:
    directory = made(subpath.volume, "a")
    if what == "elsewhere":
        subpath.mount(made(tmp_path, "a"))
    elif what == "removed":
        subpath.mount(directory)
        directory.rmdir()
    elif what == "the whole":
        subpath.mount(subpath.volume)
    elif what == "another disk":
        namespaces.mount("tmpfs", str(subpath.place), "tmpfs", 0)
        subpath.mounted.append(subpath.place)
    with pytest.raises(
        InvalidRequest, match=r"\$\.mounts\[1\]: cannot tell which part of the emptyDir"
    ):
        subpath.find()


def test_parts_of_other_volumes_are_shared(tmp_path: Path) -> None:
    made(tmp_path, KUBELET)
    other = made(tmp_path, "kubelet/pods/0f-1/volume-subpaths/other/app/0")
    assert volumes.find(container((other, "/data")), IMAGE, None, alone=False) == {}


def test_where_kubelet_reads_last_words_is_the_guest_s_where_it_may_not_be_shared(
    tmp_path: Path,
) -> None:
    log = made(tmp_path, "kubelet/pods/0f-1/containers/app") / "0a1b2c3d"
    log.touch()
    log.chmod(0o666)
    given = container((log, "/dev/termination-log"))
    tenant = Host()
    own = {0: Volume(name=str(log.parent), file=True, mode=0o666)}
    assert volumes.find(given, IMAGE, tenant, alone=False) == own
    assert volumes.find(given, IMAGE, None, alone=False) == {}, "kubelet can read it"
    assert volumes.find(given, "", tenant, alone=False) == {}
    allowed = Host(insecure_shared_directories=("/dev/termination-log",))
    assert volumes.find(given, IMAGE, allowed, alone=False) == {}
    log.write_text("something")
    assert volumes.find(given, IMAGE, tenant, alone=False) == {}
    log.unlink()
    log.symlink_to("/dev/null")
    assert volumes.find(given, IMAGE, tenant, alone=False) == {}
    log.unlink()
    assert volumes.find(given, IMAGE, tenant, alone=False) == {}


def test_a_file_is_no_volume(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    annotation = {volumes.ANNOTATION: "/data"}
    given = container((tmp_path / "file", "/data"), annotations=annotation)
    with pytest.raises(InvalidRequest, match="is no directory"):
        volumes.find(given, IMAGE, None, alone=True)
    gone = container((tmp_path / "gone", "/data"), annotations=annotation)
    with pytest.raises(InvalidRequest, match="it does not exist"):
        volumes.find(gone, IMAGE, None, alone=True)


def test_owners_are_called_as_in_the_container_s_user_namespace(tmp_path: Path) -> None:
    source = made(tmp_path, PODMAN)
    mine = IdMapping(container_id=3, host_id=os.getuid(), size=1)
    others = IdMapping(container_id=0, host_id=7_000_000, size=9)
    given = container((source, "/data"), uid_mappings=(others, mine), gid_mappings=(others,))
    volume = volumes.find(given, IMAGE, None, alone=True)[0]
    assert (volume.uid, volume.gid) == (3, 65534)


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """As kubelet makes one with medium: Memory."""
    path = made(tmp_path, KUBELET)
    namespaces.mount("tmpfs", str(path), "tmpfs", 0)
    yield path
    namespaces.detach(str(path))


@pytest.mark.root
def test_what_is_in_the_host_s_memory_is_in_the_guest_s(memory: Path) -> None:
    volume = volumes.find(container((memory, "/data")), IMAGE, None, alone=True)[0]
    assert (volume.memory, volume.size) == (True, 0), "as much as the kernel gives one"
    os.system(f"mount -o remount,size=3m {memory}")
    volume = volumes.find(container((memory, "/data")), IMAGE, None, alone=True)[0]
    assert (volume.memory, volume.size) == (True, 3 << 20)
