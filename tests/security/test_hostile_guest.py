"""A guest kernel that uses what it may write to as bait: names, links and modes that the host, or whoever
cleans up on it, might follow out of the share."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.shim import SECONDS, Shim, running
from sealrun_runtime.oci_config import Mount
from sealrun_runtime.shim import shared_tree
from simulators import virtiofs_guest as kernel

pytestmark = [pytest.mark.root, pytest.mark.virtiofsd]
SECRET = "outside of every share"
APART = "Invalid cross-device link|Read-only file system"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Two directories to share, and one beside them that never is."""
    for name in ("one/sub", "two", "beside"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one/file").write_text("one")
    (tmp_path / "two/file").write_text("two")
    (tmp_path / "beside/secret").write_text(SECRET)
    return tmp_path


@contextmanager
def shared(place: Path) -> Iterator[tuple[Shim, kernel.Guest]]:
    """A container with `one` to write to and `two` to read, in the eyes of its kernel."""
    mounts = tuple(
        Mount(
            destination=f"/{name}", source=str(place / name), type="bind", options=("rbind", mode)
        )
        for name, mode in (("one", "rw"), ("two", "ro"))
    )
    with running(place / "run", image="registry.test/app:1", rootfs="/none", mounts=mounts) as shim:
        with shim.guest() as guest, kernel.Guest(str(shim.path / shared_tree.SOCKET)) as fuse:
            create = shim.create()
            guest.create()
            create.ok()
            yield shim, fuse


def untouched(place: Path) -> None:
    """What was not to be written to is as it was."""
    assert os.listdir(place / "beside") == ["secret"]
    assert (place / "beside/secret").read_text() == SECRET
    assert os.listdir(place / "two") == ["file"]
    file = (place / "two/file").stat()
    assert (file.st_nlink, stat.S_IMODE(file.st_mode)) == (1, 0o644)


def test_the_tree_has_what_the_config_names_and_nothing_else(place: Path) -> None:
    with shared(place) as (_, fuse):
        assert fuse.names(kernel.ROOT) == {b"c1"}
        assert fuse.names(fuse.walk("c1").number) == {b"0", b"1"}
        assert fuse.names(fuse.walk("c1/0").number) == {b"file", b"sub"}
        assert fuse.names(fuse.walk("c1/1").number) == {b"file"}


def test_a_hard_link_and_a_rename_do_not_cross_shares(place: Path) -> None:
    """A second name in the share to write to would make the read-only one's file writable."""
    with shared(place) as (_, fuse):
        one, two = fuse.walk("c1/0"), fuse.walk("c1/1")
        target = fuse.walk("file", two.number)
        fuse.walk("sub", one.number)  # of what a guest never looked up the server knows nothing
        with pytest.raises(OSError, match=APART):
            fuse.link(target.number, one.number, b"hard")
        with pytest.raises(OSError, match=APART):
            fuse.link(fuse.walk("file", one.number).number, two.number, b"hard")
        with pytest.raises(OSError, match=APART):
            fuse.rename(two.number, b"file", one.number, b"moved")
        with pytest.raises(OSError, match=APART):
            fuse.rename(one.number, b"sub", two.number, b"sub")
        # Within one share it is what a container does every day.
        fuse.link(fuse.walk("file", one.number).number, one.number, b"hard")
    assert (place / "one/file").stat().st_nlink == 2
    untouched(place)


def test_a_directory_that_becomes_a_link_leads_nowhere(place: Path) -> None:
    """The guest holds the directory, moves it away, and puts a link to the host's in its place."""
    with shared(place) as (_, fuse):
        one = fuse.walk("c1/0")
        held = fuse.walk("sub", one.number)
        fuse.rename(one.number, b"sub", one.number, b"moved")
        fuse.walk("file", one.number)
        link = fuse.symlink(one.number, b"sub", str(place / "beside").encode())
        for attempt in (
            lambda: fuse.lookup(link.number, b"secret"),
            lambda: fuse.create(link.number, b"new"),
            lambda: fuse.mkdir(link.number, b"new"),
            lambda: fuse.unlink(link.number, b"secret"),
            lambda: fuse.rename(one.number, b"file", link.number, b"file"),
            lambda: fuse.lookup(one.number, b"sub/secret"),
        ):
            with pytest.raises(OSError):
                attempt()
        fuse.create(held.number, b"inside")
    assert os.listdir(place / "one/moved") == ["inside"]
    assert os.readlink(place / "one/sub") == str(place / "beside")
    untouched(place)


def test_the_end_of_a_sandbox_follows_no_bait(place: Path) -> None:
    """Links to the outside, a setuid file, a directory nobody may enter: delete takes the shim's own
    state away, and of what was shared nothing."""
    with shared(place) as (shim, fuse):
        one = fuse.walk("c1/0")
        outside = str(place / "beside").encode()
        fuse.symlink(one.number, b"c1", outside)
        fuse.symlink(one.number, b"share", outside + b"/secret")
        node, _ = fuse.create(one.number, b"setuid", 0o755)
        fuse.chmod(node.number, 0o4755)
        fuse.mkdir(one.number, b"closed", 0)
        shim.delete(force=True).ok()
        shim.process.wait(SECONDS)
        shim.directory.clear()
        shim.directory.remove()
        assert not shim.path.exists()
    assert sorted(os.listdir(place / "one")) == ["c1", "closed", "file", "setuid", "share", "sub"]
    assert (place / "one/setuid").stat().st_mode & stat.S_ISUID, "a container's, as under runc"
    untouched(place)
