"""What the host shares with a sandbox: a real virtiofsd, a real shim, and a guest that speaks FUSE
itself, without a kernel that would keep it honest."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.shim import SECONDS, Shim, alive, running, terminate, wait
from sealrun_runtime import namespaces
from sealrun_runtime.oci_config import Mount
from sealrun_runtime.shim import shared_tree
from simulators import guest as guests
from simulators import virtiofs_guest as kernel

pytestmark = [pytest.mark.root, pytest.mark.virtiofsd]
EVERYTHING = ("create", "write", "chmod", "chown", "truncate", "touch", "setxattr", "mkdir")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A root whose path holds what options are separated by."""
    rootfs = tmp_path / "a,b\\c"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc/name").write_text("root")
    return rootfs


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    directory = tmp_path / "volume"
    (directory / "sub").mkdir(parents=True)
    (directory / "file").write_text("content")
    (tmp_path / "secret").write_text("outside of every share")
    return directory


def bind(source: Path, destination: str, *options: str) -> Mount:
    options = ("rbind", *options)
    return Mount(destination=destination, source=str(source), type="bind", options=options)


@contextmanager
def created(
    root: Path, *mounts: Mount, rootfs: Path | None = None, **members: object
) -> Iterator[tuple[Shim, kernel.Guest, guests.Guest]]:
    """A container that was created, with all that it shares, in the eyes of a guest's kernel."""
    image, path = ("", str(rootfs)) if rootfs else ("registry.test/app:1", "/none")
    with running(root, image=image, rootfs=path, mounts=mounts, **members) as shim:  # type: ignore[arg-type]
        with shim.guest() as guest, kernel.Guest(str(shim.path / shared_tree.SOCKET)) as fuse:
            create = shim.create()
            guest.create()
            create.ok()
            yield shim, fuse, guest


def servers(shim: Shim) -> list[int]:
    """The pids of virtiofsd."""
    roles = (shared_tree.ROLE.encode(), shared_tree.CONFINED_ROLE.encode())
    return [shim.processes()[role][0] for role in roles if role in shim.processes()]


def refused(fuse: kernel.Guest, node: kernel.Node, directory: kernel.Node) -> dict[str, str]:
    """What a guest gets for each way to change a file or a directory."""
    attempts = {
        "create": lambda: fuse.create(directory.number, b"new"),
        "write": lambda: fuse.open(node.number, os.O_RDWR),
        "chmod": lambda: fuse.chmod(node.number, 0o4777),
        "chown": lambda: fuse.chown(node.number, 1, 1),
        "truncate": lambda: fuse.truncate(node.number, 0),
        "touch": lambda: fuse.touch(node.number),
        "setxattr": lambda: fuse.setxattr(node.number, b"user.x", b"y"),
        "mkdir": lambda: fuse.mkdir(directory.number, b"new"),
    }
    answers = {}
    for name, attempt in attempts.items():
        with pytest.raises(OSError) as caught:
            attempt()
        answers[name] = caught.value.strerror
    return answers


def test_the_guest_sees_what_the_bundle_names_and_is_told_which(
    tmp_path: Path, bundle: Path, volume: Path
) -> None:
    mounts = (
        Mount(destination="/proc", type="proc", source="proc"),
        bind(volume, "/data"),
        bind(tmp_path / "secret", "/key", "ro"),
    )
    with created(tmp_path / "run", *mounts, rootfs=bundle) as (shim, fuse, guest):
        assert fuse.names(kernel.ROOT) == {b"c1"}
        assert fuse.names(fuse.walk("c1").number) == {b"root", b"1", b"2"}
        file = fuse.walk("c1/root/etc/name")
        assert fuse.read(file.number, fuse.open(file.number)) == b"root"
        key = fuse.walk("c1/2")
        assert stat.S_ISREG(key.mode)
        assert b"outside" in fuse.read(key.number, fuse.open(key.number))
        shared = fuse.walk("c1/1")
        assert [one.flags & kernel.SUBMOUNT for one in (shared, fuse.walk("c1/root"))] == [1, 1]
        node, handle = fuse.create(shared.number, b"from the guest")
        fuse.write(node.number, handle, b"hello")
        assert (volume / "from the guest").read_text() == "hello"
        (volume / "from the host").write_text("hi")
        node = fuse.walk("from the host", shared.number)
        assert fuse.read(node.number, fuse.open(node.number)) == b"hi"
        assert shim.annotation("root") == "bundle"
        assert "io.sealrun.image" not in shim.state()["annotations"]
        assert "the guest sees of the host: root, 1, 2" in shim.log()
        processes = servers(shim)
        assert len(processes) == 2, "one virtiofsd: whoever started it, and its confined child"
        assert all(map(alive, processes))
        guest.exit("c1", 0)
        assert shim.gone() == 0
        assert not any(map(alive, processes))


def test_the_request_to_the_guest(tmp_path: Path, bundle: Path, volume: Path) -> None:
    (tmp_path / "hosts").write_text("10.0.0.1 db")
    mounts = (bind(tmp_path / "hosts", "/etc/hosts"), bind(volume, "/data"))
    with running(tmp_path / "run", image="", rootfs=str(bundle), mounts=mounts) as shim:
        with shim.guest() as guest, kernel.Guest(str(shim.path / shared_tree.SOCKET)):
            create = shim.create()
            message = guest.create()
            create.ok()
            assert (message.image, message.shared_root, message.shared_mounts) == ("", True, (1,))
            assert message.files[0].content == b"10.0.0.1 db"


def test_an_image_without_volumes_needs_no_server(tmp_path: Path) -> None:
    with running(tmp_path) as shim, shim.guest() as guest:
        create = shim.create()
        message = guest.create()
        create.ok()
        assert (message.shared_root, message.shared_mounts) == (False, ())
        assert shim.annotation("root") == "image"
        assert servers(shim) == []


# --- a guest gone bad ----------------------------------------------------------------------------


def test_what_is_shared_read_only_is_so_for_any_guest(
    tmp_path: Path, volume: Path, bundle: Path
) -> None:
    before = sorted(os.listdir(volume))
    mounts = (bind(volume, "/ro", "ro"), bind(volume / "file", "/file", "ro"))
    with created(tmp_path / "run", *mounts, rootfs=bundle) as (_, fuse, _guest):
        read_only = dict.fromkeys(EVERYTHING, "Read-only file system")
        share = fuse.walk("c1/0")
        assert refused(fuse, fuse.walk("c1/0/file"), share) == read_only
        single = fuse.walk("c1/1")
        answers = refused(fuse, single, fuse.walk("c1"))
        assert answers == read_only
        for attempt in (
            lambda: fuse.unlink(share.number, b"file"),
            lambda: fuse.rename(share.number, b"file", share.number, b"other"),
            lambda: fuse.symlink(share.number, b"link", b"/etc/passwd"),
            lambda: fuse.link(fuse.walk("c1/0/file").number, share.number, b"hard"),
        ):
            with pytest.raises(OSError, match="Read-only file system"):
                attempt()
    assert sorted(os.listdir(volume)) == before
    assert (volume / "file").read_text() == "content"


def test_the_tree_itself_takes_nothing(tmp_path: Path, volume: Path) -> None:
    with created(tmp_path / "run", bind(volume, "/rw")) as (shim, fuse, _):
        for place in (kernel.Node(kernel.ROOT, 0, 0, 0, 0), fuse.walk("c1")):
            with pytest.raises(OSError, match="Read-only file system"):
                fuse.create(place.number, b"new")
            with pytest.raises(OSError, match="Read-only file system"):
                fuse.mkdir(place.number, b"new")
        with pytest.raises(OSError):
            fuse.rename(fuse.walk("c1").number, b"0", kernel.ROOT, b"0")
        assert os.listdir(shim.path / "share") == ["c1"]


def test_no_name_leads_out_of_the_tree(tmp_path: Path, volume: Path) -> None:
    with created(tmp_path / "run", bind(volume, "/rw")) as (shim, fuse, _):
        share, root = fuse.walk("c1/0"), fuse.lookup(kernel.ROOT, b".")
        assert root.inode == (shim.path / "share").stat().st_ino
        up = share
        for _ in range(5):
            up = fuse.lookup(up.number, b"..")
        assert up.inode == root.inode, "above the tree's root there is nothing"
        for name in (b"../secret", b"/etc/passwd", b"sub/../../secret", b""):
            with pytest.raises(OSError):
                fuse.lookup(share.number, name)
        for name in (b"../new", b"/new", b"..", b"."):
            with pytest.raises(OSError):
                fuse.create(share.number, name)
            with pytest.raises(OSError):
                fuse.rename(share.number, b"file", share.number, name)
        # A directory that leaves the share while the guest holds it leads nowhere.
        inner = fuse.walk("sub", share.number)
        (tmp_path / "elsewhere").mkdir()
        os.rename(volume / "sub", tmp_path / "elsewhere/sub")
        with pytest.raises(OSError):
            fuse.walk("../../secret", inner.number)
    assert not (tmp_path / "new").exists()
    assert (volume / "file").exists()


def test_symbolic_links_are_the_guest_s_own_business(tmp_path: Path, volume: Path) -> None:
    with created(tmp_path / "run", bind(volume, "/rw")) as (_, fuse, _guest):
        share = fuse.walk("c1/0")
        for name, target in ((b"up", b"../secret"), (b"absolute", str(tmp_path).encode())):
            link = fuse.symlink(share.number, name, target)
            assert fuse.readlink(link.number) == target
            assert stat.S_ISLNK(fuse.lookup(share.number, name).mode)
            for attempt in (
                lambda link=link: fuse.open(link.number),
                lambda link=link: fuse.open(link.number, os.O_WRONLY | os.O_TRUNC),
                lambda link=link: fuse.lookup(link.number, b"secret"),
                lambda link=link: fuse.truncate(link.number, 0),
                lambda link=link: fuse.names(link.number),
            ):
                with pytest.raises(OSError):
                    attempt()
        # The kernel of the host follows none either, where the server would ask it to.
        with pytest.raises(OSError):
            fuse.create(share.number, b"absolute/new")
    assert (tmp_path / "secret").read_text() == "outside of every share"
    assert not (tmp_path / "new").exists()


def test_device_nodes_are_neither_made_nor_opened(tmp_path: Path, volume: Path) -> None:
    os.mknod(volume / "null", 0o20666, os.makedev(1, 3))
    with created(tmp_path / "run", bind(volume, "/rw")) as (_, fuse, _guest):
        share = fuse.walk("c1/0")
        for name, kind, rdev in ((b"disk", stat.S_IFBLK, 0x800), (b"mem", stat.S_IFCHR, 0x101)):
            with pytest.raises(PermissionError):
                fuse.mknod(share.number, name, kind | 0o666, rdev)
        fuse.mknod(share.number, b"fifo", stat.S_IFIFO | 0o666)
        for name in ("null", "fifo"):
            with pytest.raises(OSError):
                fuse.open(fuse.walk(name, share.number).number, os.O_RDWR)
    made = {entry.name: entry.stat().st_mode for entry in volume.iterdir()}
    assert not [name for name, mode in made.items() if stat.S_ISBLK(mode)]
    assert [name for name, mode in made.items() if stat.S_ISCHR(mode)] == ["null"]


def test_extended_attributes_that_the_host_would_obey(tmp_path: Path, volume: Path) -> None:
    with created(tmp_path / "run", bind(volume, "/rw")) as (_, fuse, _guest):
        file = fuse.walk("c1/0/file")
        for name in (b"trusted.overlay.opaque", b"trusted.overlay.redirect", b"trusted.x"):
            with pytest.raises(OSError):
                fuse.setxattr(file.number, name, b"y")
        fuse.setxattr(file.number, b"user.mine", b"y")
    assert os.listxattr(volume / "file") == ["user.mine"]


def test_garbage_on_the_queue_ends_the_sandbox_at_worst(tmp_path: Path, volume: Path) -> None:
    with created(tmp_path / "run", bind(volume, "/rw")) as (shim, fuse, _):
        share = fuse.walk("c1/0")
        for opcode in (0, 7, 200, 0xFFFF_FFFF):
            with pytest.raises(OSError):
                fuse.call(opcode, share.number, b"")
        for node in (0, 999, 2**63, share.number + 1000):
            with pytest.raises(OSError):
                fuse.lookup(node, b"file")
        for body in (b"", b"x" * 3, b"no end"):
            with pytest.raises(OSError):
                fuse.call(14, share.number, body)
        assert fuse.walk("file", share.number).inode == (volume / "file").stat().st_ino
        assert all(map(alive, servers(shim)))


# --- how it ends ---------------------------------------------------------------------------------


def mounts_of_the_host(path: Path) -> list[str]:
    with open("/proc/self/mountinfo") as file:
        return [line for line in file if str(path) in line]


@pytest.mark.parametrize("who", ["shim", "server", "confined", "vmm", "delete", "exit"])
def test_nothing_of_it_stays(tmp_path: Path, bundle: Path, volume: Path, who: str) -> None:
    with created(tmp_path / "run", bind(volume, "/data"), rootfs=bundle) as (shim, _, guest):
        outer, confined = servers(shim)
        vmm = shim.vmm
        assert mounts_of_the_host(tmp_path) == [], "the host itself has no mount of it"
        if who == "delete":
            shim.delete(force=True).ok()
        elif who == "exit":
            guest.exit("c1", 0)
        else:
            victims = {
                "shim": shim.process.pid,
                "server": outer,
                "confined": confined,
                "vmm": vmm,
            }
            terminate(victims[who])
        assert shim.code() == (0 if who == "exit" else 137)
        wait(lambda: not any(map(alive, [outer, confined, vmm])))
        if who in ("server", "confined"):
            reason = shim.annotation("exit-reason")
            assert reason.startswith("the server of the host's directories ended")
        shim.process.wait(SECONDS)
        shim.directory.clear()
        shim.directory.remove()
        assert not shim.path.exists()
    assert mounts_of_the_host(tmp_path) == []
    assert (volume / "file").read_text() == "content"
    assert (bundle / "etc/name").read_text() == "root"


def test_a_source_that_is_unmounted_is_let_go_when_the_sandbox_ends(
    tmp_path: Path, volume: Path
) -> None:
    """The share is a mount of its own: the host may unmount the original at any time."""
    namespaces.mount("tmpfs", str(volume), "tmpfs", 0)
    (volume / "kept").write_text("still there")
    with created(tmp_path / "run", bind(volume, "/data")) as (_, fuse, _guest):
        namespaces.detach(str(volume))
        kept = fuse.walk("c1/0/kept")
        assert fuse.read(kept.number, fuse.open(kept.number)) == b"still there"
    assert (volume / "file").exists()


def test_a_vm_that_cannot_be_launched_takes_the_server_with_it(
    tmp_path: Path, volume: Path
) -> None:
    with running(tmp_path / "run", mounts=(bind(volume, "/data"),), memory=4096) as shim:
        error = shim.create().error()
        assert (error.kind, error.text) == ("host-unfit", "cannot find qemu")
        assert shim.gone() == 0
        assert not any(map(alive, servers(shim)))


def test_other_sources_than_the_bundle_s(tmp_path: Path, volume: Path) -> None:
    """The caller is trusted, but may be of another release."""
    with running(tmp_path / "run", mounts=(bind(volume, "/data"),)) as shim:
        with shim.guest() as guest, kernel.Guest(str(shim.path / shared_tree.SOCKET)):
            guest.boot()
            error = shim.create(shares=()).error()
            assert "the sources of the container's mounts are not those of its bundle" in error.text
            assert shim.gone() == 0
