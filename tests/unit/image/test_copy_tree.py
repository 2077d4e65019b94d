"""What a volume begins with: a copy of a part of an image, inode by inode."""

import os
import socket
from pathlib import Path

import pytest
from fixtures import inodes
from sealrun_agent.image.copy_tree import copy_from

pytestmark = pytest.mark.root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system with something at /data, and something beside it."""
    data = tmp_path / "root/data"
    (data / "sub/deeper").mkdir(parents=True)
    (data / "file").write_bytes(b"content" * 100_000)
    (data / "sub/set").write_bytes(b"")
    os.chown(data / "sub/set", 7, 8)
    (data / "sub/set").chmod(0o6751)
    os.setxattr(data / "sub/set", "user.of", b"value")
    os.link(data / "file", data / "sub/deeper/again")
    os.mkfifo(data / "fifo", 0o640)
    for name, target in (("link", "../secret"), ("absolute", "/secret"), ("dangling", "nowhere")):
        (data / name).symlink_to(target)
    os.lchown(data / "link", 3, 4)
    for path in (data / "link", data / "file", data / "sub/deeper", data / "sub", data):
        os.utime(path, ns=(1_000_000_001, 1_000_000_001), follow_symlinks=False)
    os.chown(data, 5, 6)
    data.chmod(0o2770)
    os.utime(data, ns=(2_000_000_002, 2_000_000_002))
    (tmp_path / "root/secret").write_text("beside it")
    (tmp_path / "target").mkdir()
    return tmp_path / "root"


def test_every_inode_is_the_same(root: Path) -> None:
    target = root.parent / "target"
    assert copy_from(str(root), "/data", str(target))
    inodes.assert_same(target, root / "data")
    assert inodes.description(target) == inodes.description(root / "data")
    assert (target / "file").samefile(target / "sub/deeper/again")


def test_a_link_on_the_way_leads_within_the_root(root: Path) -> None:
    (root / "to").symlink_to("/../../data")
    assert copy_from(str(root), "/to/sub", str(root.parent / "target"))
    assert sorted(os.listdir(root.parent / "target")) == ["deeper", "set"]


@pytest.mark.parametrize("place", ["/nowhere", "/data/file", "/data/file/x", "/data/dangling"])
def test_where_the_image_has_no_directory_nothing_is_done(root: Path, place: str) -> None:
    target = root.parent / "target"
    before = inodes.description(target)
    assert not copy_from(str(root), place, str(target))
    assert inodes.description(target) == before


def test_sockets_and_devices_are_left_out(root: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(root / "data/sub/socket"))
    os.mknod(root / "data/sub/null", 0o20600, os.makedev(1, 3))
    assert copy_from(str(root), "/data/sub", str(root.parent / "target"))
    assert sorted(os.listdir(root.parent / "target")) == ["deeper", "set"]


def test_deep_trees_and_wide_ones(root: Path) -> None:
    deep = root / "deep"
    names = ["directory-with-a-long-name"] * 120
    deep.joinpath(*names).mkdir(parents=True)
    for number in range(300):
        (deep / str(number)).mkdir()
    assert copy_from(str(root), "/deep", str(root.parent / "target"))
    assert (root.parent / "target").joinpath(*names).is_dir()
    assert len(os.listdir(root.parent / "target")) == 301
