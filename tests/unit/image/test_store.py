"""Layers appear at once or not at all; root file systems are made of them and go without a trace."""

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import layers
from sealrun_agent.errors import PullError, StartError
from sealrun_agent.image.layer import unpack
from sealrun_agent.image.manifest import ImageConfig, RootFs
from sealrun_agent.image.store import Image, Store
from sealrun_protocol.errors import ErrorCode

pytestmark = pytest.mark.root

IDS = tuple("sha256:" + str(n) * 64 for n in range(1, 6))
CONFIG = ImageConfig("amd64", "linux", RootFs(()))


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs, as in the guest."""
    directory = tmp_path / "store"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", "-R", str(directory)], check=True)


def listed(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")} - {
        "layers", "staging", "containers"
    }  # fmt: skip


def image(store: Store, *tars: list[layers.Member]) -> Image:
    """An image of layers that are unpacked as in a pull."""
    with store.claim(IDS[: len(tars)]) as claim:
        for number, members in enumerate(tars):
            directory = claim.stage(number)
            unpack(iter([layers.tar(members)]), directory, claim.below(number), "x")
        return Image("r.example/a:1", IDS[0], CONFIG, claim.publish())


def test_layers_appear_when_they_are_published(root: Path) -> None:
    store = Store(str(root))
    with store.claim(IDS[:2]) as claim:
        assert not claim.present(0)
        first = Path(claim.stage(0))
        (first / "file").write_text("x")
        assert claim.below(1) == [str(first)]
        claim.stage(1)
        assert os.listdir(root / "layers") == []
        published = claim.publish()
    assert published == tuple(str(root / "layers" / i.removeprefix("sha256:")) for i in IDS[:2])
    assert (Path(published[0]) / "file").read_text() == "x"
    assert os.listdir(root / "staging") == []
    with store.claim(IDS[:3]) as claim:
        assert [claim.present(n) for n in range(3)] == [True, True, False]
        assert claim.below(2) == list(published)


def test_what_is_not_published_is_removed(root: Path) -> None:
    store = Store(str(root))
    with pytest.raises(RuntimeError), store.claim(IDS[:1]) as claim:
        (Path(claim.stage(0)) / "deep/er").mkdir(parents=True)
        raise RuntimeError
    assert listed(root) == set()


def test_a_layer_is_filled_by_one_pull_while_others_wait(root: Path) -> None:
    store = Store(str(root))
    filled: list[str] = []
    begun = threading.Barrier(2)

    def pull(ids: tuple[str, ...]) -> None:
        begun.wait()
        with store.claim(ids) as claim:
            for number, chain_id in enumerate(ids):
                if not claim.present(number):
                    claim.stage(number)
                    filled.append(chain_id)
            claim.publish()

    threads = [
        threading.Thread(target=pull, args=(ids,)) for ids in ((IDS[0], IDS[1]), (IDS[0], IDS[2]))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(filled) == sorted(IDS[:3])


def test_no_space_for_the_first_directory(tmp_path: Path) -> None:
    directory = tmp_path / "full"
    directory.mkdir()
    options = "nr_inodes=4"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
    try:
        store = Store(str(directory))
        with pytest.raises(PullError) as caught, store.claim(IDS):
            pass
        assert caught.value.code is ErrorCode.NO_SPACE
    finally:
        subprocess.run(["umount", str(directory)], check=True)


def test_a_root_file_system_is_the_union_of_the_layers(root: Path) -> None:
    store = Store(str(root))
    pulled = image(
        store,
        [
            layers.directory(".", mode=0o751, mtime=5),
            layers.file("a", b"1"),
            layers.file("d/x", b"1"),
            layers.file("d/y", b"1"),
            layers.file("o/hidden"),
            layers.directory("replaced/by"),
        ],
        [
            layers.file(".wh.a"),
            layers.file("d/.wh.y"),
            layers.file("d/z", b"2"),
            layers.directory("o"),
            layers.file("o/.wh..wh..opq"),
            layers.file("replaced", b"file"),
        ],
    )
    rootfs = Path(store.mount(pulled.layers, "one"))
    assert {str(path.relative_to(rootfs)) for path in rootfs.rglob("*")} == {
        "d", "d/x", "d/z", "o", "replaced"
    }  # fmt: skip
    assert stat.S_IMODE(rootfs.stat().st_mode) == 0o751
    (rootfs / "d/x").write_text("changed")
    other = Path(store.mount(pulled.layers, "two"))
    assert (other / "d/x").read_text() == "1"
    store.unmount("one")
    store.unmount("two")
    assert {name for name in listed(root) if not name.startswith("layers/")} == set()


def test_an_opaque_root_hides_all_that_is_below(root: Path) -> None:
    store = Store(str(root))
    pulled = image(
        store,
        [layers.file("below")],
        [layers.file(".wh..wh..opq"), layers.file("new")],
        [layers.file("newer")],
    )
    rootfs = Path(store.mount(pulled.layers, "one"))
    assert sorted(os.listdir(rootfs)) == ["new", "newer"]
    store.unmount("one")


def test_as_many_layers_as_an_image_may_have(root: Path) -> None:
    store = Store(str(root))
    directories = []
    for number in range(256):
        directory = root / "layers" / f"{number:064x}"
        directory.mkdir()
        (directory / str(number)).touch()
        directories.append(str(directory))
    here = Path.cwd()
    rootfs = Path(store.mount(directories, "c" * 64))
    assert len(os.listdir(rootfs)) == 256
    assert Path.cwd() == here
    store.unmount("c" * 64)


def test_an_image_without_layers(root: Path) -> None:
    store = Store(str(root))
    rootfs = Path(store.mount((), "one"))
    assert os.listdir(rootfs) == []
    (rootfs / "writable").touch()
    store.unmount("one")


def test_unmounting_what_is_in_use_or_gone(root: Path) -> None:
    store = Store(str(root))
    rootfs = Path(store.mount(image(store, [layers.file("f", b"1")]).layers, "one"))
    with (rootfs / "f").open("rb") as file:
        store.unmount("one")
        assert file.read() == b"1"
    store.unmount("one")
    store.unmount("never")


def test_names_of_containers(root: Path) -> None:
    store = Store(str(root))
    pulled = image(store, [layers.file("f")])
    for name in ("", ".", "..", "../x", "a/b", "a\0b"):
        with pytest.raises(StartError) as caught:
            store.mount(pulled.layers, name)
        assert caught.value.code is ErrorCode.SPEC_REFUSED
        with pytest.raises(StartError):
            store.unmount(name)
    store.mount(pulled.layers, "one")
    with pytest.raises(StartError) as twice:
        store.mount(pulled.layers, "one")
    assert twice.value.code is ErrorCode.CONTAINER_EXISTS
    store.unmount("one")


def test_a_mount_that_fails_leaves_nothing(root: Path) -> None:
    store = Store(str(root))
    with pytest.raises(StartError, match="cannot mount") as caught:
        store.mount((str(root / "layers/missing"),), "one")
    assert caught.value.code is ErrorCode.RUNTIME_FAILED
    assert listed(root) == set()
