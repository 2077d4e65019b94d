"""Cleaning of names, and removal of trees however deep."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.image.tree import OutsideError, clean, remove_tree


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a", b"a"),
        (b"/a/b/", b"a/b"),
        (b"./a", b"a"),
        (b"a//b", b"a/b"),
        (b"a/./b/.", b"a/b"),
        (b"a/../b", b"b"),
        (b".", b""),
        (b"/", b""),
        (b"a/..", b""),
        (b"..a/b..", b"..a/b.."),
        (b"\xff/.b", b"\xff/.b"),
    ],
)
def test_clean(name: bytes, expected: bytes) -> None:
    assert clean(name) == expected


@pytest.mark.parametrize("name", [b"..", b"../a", b"/..", b"a/../..", b"./../a", b"a/b/../../../c"])
def test_names_that_lead_out(name: bytes) -> None:
    with pytest.raises(OutsideError):
        clean(name)


@given(st.text(alphabet="ab./", max_size=30).map(str.encode))
def test_clean_names_are_clean(name: bytes) -> None:
    try:
        cleaned = clean(name)
    except OutsideError:
        assert b".." in name
        return
    assert clean(cleaned) == cleaned
    assert not cleaned.startswith(b"/")
    assert not {b"", b".", b".."} & set(cleaned.split(b"/") if cleaned else ())


def removed(parent: Path, name: str) -> None:
    fd = os.open(parent, os.O_RDONLY)
    try:
        remove_tree(fd, name.encode())
    finally:
        os.close(fd)
    assert not (parent / name).exists()


def test_a_tree_of_everything_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    top = tmp_path / "top"
    for name in ("1", "2/1", "2/2/3", "3"):
        (top / name).mkdir(parents=True)
        (top / name / "file").write_text("x")
    (top / "2/link").symlink_to(outside)
    os.mkfifo(top / "3/fifo")
    (top / os.fsdecode(b"\xff")).mkdir()
    removed(tmp_path, "top")
    assert (outside / "kept").read_text() == "kept"


def test_a_tree_deeper_than_any_path_is_removed(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 20, dir_fd=fd)
        deeper = os.open("d" * 20, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    removed(tmp_path, "d" * 20)


def test_a_symlink_is_not_a_tree(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(NotADirectoryError):
        removed(tmp_path, "link")
    assert (tmp_path / "real").is_dir()
