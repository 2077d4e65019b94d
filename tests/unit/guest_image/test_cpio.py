"""The initramfs archive: the same tree gives the same bytes, and GNU cpio reads what was meant."""

import io
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_guest_image import cpio
from sealrun_guest_image.errors import BuildError
from sealrun_guest_image.tree import Device, Directory, File, Link, Tree

NAMES = st.text(alphabet="abcé.-_ 1", min_size=1, max_size=12).filter(
    lambda n: n not in {".", ".."}
)


def read(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """An independent reader of newc: path to (mode, data, device). Checks alignment and zeros."""
    entries = {}
    stream = io.BytesIO(archive)
    while True:
        assert stream.tell() % 4 == 0
        header = stream.read(110)
        assert header[:6] == b"070701"
        fields = [int(header[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
        _, mode, owner, group, _, time, size, _, _, major, minor, name_size, check = fields
        assert (owner, group, time, check) == (0, 0, 0, 0)
        name = stream.read(name_size)
        assert name.endswith(b"\0")
        stream.read(-stream.tell() % 4)
        data = stream.read(size)
        stream.read(-stream.tell() % 4)
        if name == b"TRAILER!!!\0":
            assert not stream.read()
            return entries
        entries[name[:-1].decode()] = (mode, data, (major, minor))


@given(st.dictionaries(NAMES, st.binary(max_size=50), max_size=8))
def test_what_goes_in_comes_out(files: dict[str, bytes]) -> None:
    tree = Tree()
    for name, data in files.items():
        tree.add(f"d/{name}", File(data, 0o640))
    expected = {f"d/{name}": (stat.S_IFREG | 0o640, data, (0, 0)) for name, data in files.items()}
    if files:
        expected["d"] = (stat.S_IFDIR | 0o755, b"", (0, 0))
    assert read(cpio.archive(tree)) == expected


def test_the_order_of_adding_does_not_matter() -> None:
    first, second = Tree(), Tree()
    entries = [("a/b", File(b"1")), ("a/c", Link("b")), ("z", Directory()), ("a-1", File(b""))]
    for path, entry in entries:
        first.add(path, entry)
    for path, entry in reversed(entries):
        second.add(path, entry)
    assert cpio.archive(first) == cpio.archive(second)


def test_a_directory_precedes_what_it_holds() -> None:
    tree = Tree()
    for path in ("usr/lib/a", "usr-x/b", "usr.d/c"):
        tree.add(path, File(b""))
    paths = list(read(cpio.archive(tree)))
    for path in paths:
        if "/" in path:
            assert paths.index(path.rpartition("/")[0]) < paths.index(path)


@pytest.mark.root
def test_gnu_cpio_reads_it(tmp_path: Path) -> None:
    tree = Tree()
    tree.add("bin/run", File(b"#!/bin/sh\n", 0o755))
    tree.add("sbin", Link("bin"))
    tree.add("tmp", Directory(0o1777))
    tree.add("dev/console", Device(5, 1, 0o600))
    command = ["cpio", "--extract", "--make-directories", "--quiet"]
    subprocess.run(command, input=cpio.archive(tree), cwd=tmp_path, check=True)
    assert (tmp_path / "bin/run").read_bytes() == b"#!/bin/sh\n"
    assert (tmp_path / "bin/run").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "sbin").readlink() == Path("bin")
    assert (tmp_path / "tmp").stat().st_mode & 0o7777 == 0o1777
    node = (tmp_path / "dev/console").stat()
    assert stat.S_ISCHR(node.st_mode)
    assert node.st_rdev == 5 << 8 | 1


@pytest.mark.parametrize("path", ["/a", "a/", "a//b", "../a", "a/../b", "./a", ""])
def test_an_unsafe_path_is_refused(path: str) -> None:
    with pytest.raises(BuildError, match="not a plain relative path"):
        Tree().add(path, File(b""))


def test_nothing_is_put_below_a_file_or_a_link() -> None:
    tree = Tree()
    tree.add("lib", Link("usr/lib"))
    with pytest.raises(BuildError, match="lib is no directory"):
        tree.add("lib/x", File(b""))


def test_links_are_followed_within_the_tree() -> None:
    tree = Tree()
    tree.add("usr/lib/libx.so.1.2", File(b"x"))
    tree.add("usr/lib/libx.so.1", Link("libx.so.1.2"))
    tree.add("usr/lib64/ld.so", Link("../lib/libx.so.1"))
    tree.add("loop", Link("/loop"))
    assert tree.file("usr/lib64/ld.so").data == b"x"
    for path in ("loop", "nowhere"):
        with pytest.raises(BuildError, match=f"cannot find {path}"):
            tree.file(path)
