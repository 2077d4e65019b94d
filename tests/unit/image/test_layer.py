"""Unpacking one layer: what ends up on disk, and that nothing ever ends up outside."""

import os
import stat
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import layers
from fixtures.layers import Member
from fixtures.unpacking import chunked, code_of, fill, names
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image.layer import unpack
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

pytestmark = pytest.mark.root

NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # security.capability, v2


def is_whiteout(path: Path) -> bool:
    status = path.lstat()
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(path: Path) -> bool:
    return "trusted.overlay.opaque" in os.listxattr(path)


def test_metadata(tmp_path: Path) -> None:
    layer = fill(
        tmp_path / "l",
        [
            layers.directory("./", mode=0o711, uid=3, mtime=5),
            layers.directory("d", mode=0o3775, uid=1, gid=2, mtime=7),
            layers.file("d/setuid", b"x", mode=0o6755, uid=1000, gid=1001),
            layers.file(
                "d/capable",
                b"x",
                pax_headers={
                    "SCHILY.xattr.security.capability": NET_RAW.decode("latin-1"),
                    "SCHILY.xattr.user.note": "hello",
                    "mtime": "1234.5",
                },
            ),
            layers.symlink("d/symlink", "/etc/../../x", uid=5),
            layers.link("d/link", "d/setuid"),
            layers.device("d/null", tarfile.CHRTYPE, 1, 3, mode=0o666, gid=9),
            layers.device("d/disk", tarfile.BLKTYPE, 300, 70_000, mode=0o660),
            layers.member("d/fifo", tarfile.FIFOTYPE, mode=0o622),
        ],
    )
    root, d = layer.stat(), (layer / "d").stat()
    assert (stat.S_IMODE(root.st_mode), root.st_uid, root.st_mtime) == (0o711, 3, 5)
    assert (stat.S_IMODE(d.st_mode), d.st_uid, d.st_gid, d.st_mtime) == (0o3775, 1, 2, 7)
    setuid = (layer / "d/setuid").stat()
    assert (stat.S_IMODE(setuid.st_mode), setuid.st_uid, setuid.st_gid) == (0o6755, 1000, 1001)
    assert (setuid.st_nlink, setuid.st_mtime) == (2, layers.MTIME)
    assert setuid.st_ino == (layer / "d/link").stat().st_ino
    assert os.getxattr(layer / "d/capable", "security.capability")[:20] == NET_RAW
    assert os.getxattr(layer / "d/capable", "user.note") == b"hello"
    assert (layer / "d/capable").stat().st_mtime_ns == 1_234_500_000_000
    link = (layer / "d/symlink").lstat()
    assert (os.readlink(layer / "d/symlink"), link.st_uid) == ("/etc/../../x", 5)
    assert link.st_mtime == layers.MTIME
    null, disk = (layer / "d/null").stat(), (layer / "d/disk").stat()
    assert stat.S_ISCHR(null.st_mode)
    assert (null.st_rdev, stat.S_IMODE(null.st_mode), null.st_gid) == (os.makedev(1, 3), 0o666, 9)
    assert stat.S_ISBLK(disk.st_mode)
    assert disk.st_rdev == os.makedev(300, 70_000)
    assert stat.S_ISFIFO((layer / "d/fifo").stat().st_mode)
    assert stat.S_IMODE((layer / "d/fifo").stat().st_mode) == 0o622


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/../evil", "..", "d/../.."])
def test_names_that_lead_out(name: str, kind: bytes, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    members = [layers.file("f"), layers.member(name, kind, linkname="f")]
    assert code_of(tmp_path / "in/l", members) is ErrorCode.LAYER_UNSAFE
    assert not list(tmp_path.rglob("evil"))


def test_names_are_cleaned(tmp_path: Path) -> None:
    layer = fill(
        tmp_path / "l",
        [
            layers.file("/absolute", b"1"),
            layers.file("./dot//slashes/", b""),  # a directory, by its slash
            layers.file("a/../b", b"3"),
            layers.file("x/./y", b"4"),
            layers.file("...", b"5"),
        ],
    )
    assert names(layer) == {"absolute", "dot", "dot/slashes", "b", "x", "x/y", "..."}
    assert (layer / "dot/slashes").is_dir()


def test_a_hard_link_out_of_the_layer(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    for target in ("../secret", "d/../../secret"):
        assert code_of(tmp_path / target.replace("/", "_"), [layers.link("l", target)]) is (
            ErrorCode.LAYER_UNSAFE
        )
    # An absolute target is one in the layer, and through a symlink it stays there.
    members = [
        layers.symlink("up", ".."),
        layers.symlink("root", str(tmp_path)),
        layers.link("one", "up/secret"),
        layers.link("two", "root/secret"),
        layers.link("three", str(secret)),
    ]
    for member in members[2:]:
        directory = tmp_path / member[0].name
        assert code_of(directory, [*members[:2], member]) is ErrorCode.LAYER_MALFORMED
    assert secret.stat().st_nlink == 1


@pytest.mark.parametrize("target", ["/", "..", "../..", "/tmp", "../outside", "d/../../outside"])
def test_symlinks_are_followed_in_the_layer_only(target: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    marker = Path("/tmp") / f"marker-{os.getpid()}"
    layer = fill(
        tmp_path / "l",
        [layers.symlink("link", target), layers.file(f"link/{marker.name}", b"x")],
    )
    assert list(outside.iterdir()) == []
    assert not marker.exists()
    assert len([name for name in names(layer) if name.endswith(marker.name)]) == 1


def test_symlinks_as_parents(tmp_path: Path) -> None:
    layer = fill(
        tmp_path / "l",
        [
            layers.directory("usr/lib"),
            layers.symlink("lib", "usr/lib"),
            layers.file("lib/a", b"1"),
            layers.directory("lib/sub", mtime=9),
            layers.symlink("var/run", "/run"),  # nothing is there yet
            layers.file("var/run/x/pid", b"2"),
            layers.symlink("chain", "lib/../lib"),
            layers.file("chain/b", b"3"),
        ],
    )
    assert (layer / "usr/lib/a").read_bytes() == b"1"
    assert (layer / "usr/lib/sub").stat().st_mtime == 9
    assert (layer / "run/x/pid").read_bytes() == b"2"
    assert (layer / "usr/lib/b").read_bytes() == b"3"


def test_a_symlink_loop_as_a_parent(tmp_path: Path) -> None:
    members = [layers.symlink("a", "b"), layers.symlink("b", "a"), layers.file("a/x")]
    assert code_of(tmp_path / "l", members) is ErrorCode.LAYER_MALFORMED
    members = [layers.symlink("a", "a/a/missing"), layers.file("a/x")]
    assert code_of(tmp_path / "m", members) is ErrorCode.LAYER_MALFORMED


def test_a_device_is_never_written_to(tmp_path: Path) -> None:
    """A device node, then a file of the same name: the node is replaced, not opened."""
    layer = fill(
        tmp_path / "l",
        [layers.device("x", tarfile.CHRTYPE, 1, 3), layers.file("x", b"data")],
    )
    assert (layer / "x").read_bytes() == b"data"


def test_a_symlink_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    layer = fill(
        tmp_path / "l",
        [
            layers.symlink("x", str(victim)),
            layers.file("x", b"data", mode=0o600),
            layers.symlink("d", str(tmp_path)),
            layers.directory("d", mode=0o700),
            layers.file("d/inside", b"1"),
        ],
    )
    assert victim.read_text() == "untouched"
    assert not (layer / "x").is_symlink()
    assert not (layer / "d").is_symlink()
    assert not (tmp_path / "inside").exists()


def test_later_entries_replace_earlier_ones(tmp_path: Path) -> None:
    layer = fill(
        tmp_path / "l",
        [
            layers.file("f", b"1"),
            layers.link("g", "f"),
            layers.file("f", b"2"),
            layers.directory("d", mode=0o700),
            layers.file("d/kept", b"3"),
            layers.directory("d", mode=0o750, mtime=4),
            layers.directory("gone/deep/deeper"),
            layers.file("gone/deep/x", b"4"),
            layers.file("gone", b"5"),
        ],
    )
    assert (layer / "f").read_bytes() == b"2"
    assert (layer / "g").read_bytes() == b"1"
    assert (layer / "d/kept").read_bytes() == b"3"
    assert stat.S_IMODE((layer / "d").stat().st_mode) == 0o750
    assert (layer / "d").stat().st_mtime == 4
    assert (layer / "gone").read_bytes() == b"5"


def test_whiteouts(tmp_path: Path) -> None:
    lower = fill(tmp_path / "lower", [layers.file("a"), layers.file("d/b"), layers.file("e/c")])
    layer = fill(
        tmp_path / "l",
        [
            layers.file(".wh.a"),
            layers.directory("d"),
            layers.file("d/.wh..wh..opq"),
            layers.file("d/new"),
            layers.file("e/.wh.c"),
            layers.file("e/c", b"back"),
            layers.file("here"),
            layers.file(".wh.here"),
            layers.directory("dir"),
            layers.file("dir/x"),
            layers.file(".wh.dir"),
            layers.file(".wh.again"),
            layers.directory("again"),
            layers.file(".wh..wh.plnk"),
            layers.file(".wh..wh.aufs/x"),
        ],
        [lower],
    )
    assert is_whiteout(layer / "a")
    assert is_opaque(layer / "d")
    assert (layer / "e/c").read_bytes() == b"back"
    assert (layer / "here").is_file()
    assert is_opaque(layer / "dir")
    assert (layer / "dir/x").is_file()
    assert is_opaque(layer / "again")
    assert not is_opaque(layer)
    assert not (layer / ".wh..wh.plnk").exists()


def test_the_lowest_layer_hides_nothing(tmp_path: Path) -> None:
    layer = fill(
        tmp_path / "l",
        [layers.file(".wh.a"), layers.file("no/.wh.b"), layers.file("d/.wh..wh..opq")],
    )
    assert "a" not in names(layer)
    assert not any("wh" in name for name in names(layer))


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..."])
def test_whiteouts_of_nothing_or_of_parents(name: str, tmp_path: Path) -> None:
    lower = fill(tmp_path / "lower", [layers.file("d/x")])
    assert code_of(tmp_path / "l", [layers.file(name)], [lower]) is ErrorCode.LAYER_UNSAFE


def test_what_overlayfs_keeps_for_itself_cannot_be_set(tmp_path: Path) -> None:
    headers = {
        "SCHILY.xattr.trusted.overlay.redirect": "/../../etc",
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.security.selinux": "label",
    }
    layer = fill(tmp_path / "l", [layers.directory("d", pax_headers=headers)])
    assert os.listxattr(layer / "d") == []


def test_implicit_parents_are_those_of_the_layer_below(tmp_path: Path) -> None:
    one = fill(
        tmp_path / "1",
        [
            layers.directory(".", mode=0o750, gid=4, mtime=11),
            layers.directory("tmp", mode=0o1777, mtime=12),
            layers.directory("hidden", mode=0o700),
            layers.symlink("link", "tmp"),
        ],
    )
    two = fill(tmp_path / "2", [layers.file("other", b""), layers.file(".wh.hidden")], [one])
    three = fill(
        tmp_path / "3",
        [layers.file("tmp/x", b"1"), layers.file("hidden/x"), layers.file("link/x")],
        [one, two],
    )
    for layer in (two, three):
        root = layer.stat()
        assert (stat.S_IMODE(root.st_mode), root.st_gid, root.st_mtime) == (0o750, 4, 11)
    tmp = (three / "tmp").stat()
    assert (stat.S_IMODE(tmp.st_mode), tmp.st_mtime) == (0o1777, 12)
    for name in ("hidden", "link"):
        status = (three / name).stat()
        assert (stat.S_IMODE(status.st_mode), status.st_mtime) == (0o755, 0)


def test_hard_links_to_lower_layers_are_copied_up(tmp_path: Path) -> None:
    one = fill(
        tmp_path / "1",
        [
            layers.directory("d", mode=0o700),
            layers.file("d/f", b"x" * 100_000, mode=0o4711, uid=6, pax_headers={"mtime": "9.25"}),
            layers.file("gone", b"1"),
            layers.file("o/x", b"1"),
        ],
    )
    two = fill(tmp_path / "2", [layers.file(".wh.gone"), layers.file("o/.wh..wh..opq")], [one])
    three = fill(tmp_path / "3", [layers.file("new/l"), layers.link("new/l", "d/f")], [one, two])
    copied, link = (three / "d/f").stat(), (three / "new/l").stat()
    assert copied.st_ino == link.st_ino
    assert (stat.S_IMODE(copied.st_mode), copied.st_uid) == (0o4711, 6)
    assert (copied.st_mtime_ns, copied.st_size) == (9_250_000_000, 100_000)
    assert stat.S_IMODE((three / "d").stat().st_mode) == 0o700
    for number, target in enumerate(["gone", "o/x", "d", "missing", "d/f/x"]):
        directory = tmp_path / f"bad{number}"
        assert code_of(directory, [layers.link("l", target)], [one, two]) is (
            ErrorCode.LAYER_MALFORMED
        )
    hidden = [layers.file("d/.wh.f"), layers.link("l", "d/f")]
    layer = fill(tmp_path / "4", hidden, [one])
    assert is_whiteout(layer / "l")  # a link to what the layer hides is as hidden


def test_a_link_before_its_target(tmp_path: Path) -> None:
    layer = fill(tmp_path / "l", [layers.link("a", "b"), layers.file("b", b"1")])
    assert (layer / "a").stat().st_ino == (layer / "b").stat().st_ino
    layer = fill(tmp_path / "m", [layers.link("a", "b"), layers.file("a", b"1")])
    assert (layer / "a").read_bytes() == b"1"
    assert code_of(tmp_path / "n", [layers.link("a", "a")]) is ErrorCode.LAYER_MALFORMED
    assert code_of(tmp_path / "o", [layers.link("a", "/")]) is ErrorCode.LAYER_MALFORMED


def test_sparse_files_stay_sparse(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "s").open("wb") as file:
        file.write(b"head")
        file.seek(5_000_000)
        file.write(b"tail")
        file.truncate(9_000_000)
    for number, options in enumerate(["--format=gnu", "--format=posix"]):
        data = subprocess.run(
            ["tar", "-C", str(source), "-S", options, "-cf", "-", "s"],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        directory = tmp_path / str(number)
        directory.mkdir()
        unpack(chunked(data), str(directory), [], "x")
        assert (directory / "s").read_bytes() == (source / "s").read_bytes()
        assert (directory / "s").stat().st_blocks * 512 < 1_000_000


def test_roots_that_are_no_directories(tmp_path: Path) -> None:
    for number, kind in enumerate((tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE)):
        member = layers.member(".", kind, linkname="x")
        assert code_of(tmp_path / str(number), [member]) is ErrorCode.LAYER_MALFORMED


@pytest.mark.parametrize(
    "member",
    [
        layers.file("n" * 256),
        layers.file("d/" * 2047 + "xyz"),
        layers.device("x", tarfile.CHRTYPE, 1 << 13, 0),
        layers.directory("d", pax_headers={"SCHILY.xattr.unknown.space": "x"}),
        layers.file("d", pax_headers={"SCHILY.xattr.user.big": "x" * (limits.XATTR_BYTES + 1)}),
        layers.file("file/below"),
        layers.link("link", "dir"),
    ],
    ids=lambda member: member[0].name[:10],
)
def test_what_the_file_system_refuses(member: Member, tmp_path: Path) -> None:
    members = [layers.file("file"), layers.directory("dir"), member]
    assert code_of(tmp_path / "l", members) is ErrorCode.LAYER_MALFORMED


def test_too_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LAYER_ENTRIES", 3)
    fill(tmp_path / "l", [layers.file(str(n)) for n in range(3)])
    members = [layers.file(str(n)) for n in range(4)]
    assert code_of(tmp_path / "m", members) is ErrorCode.LIMIT_EXCEEDED


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB and 100 files."""
    directory = tmp_path / "small"
    directory.mkdir()
    options = "size=1m,nr_inodes=100"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)], check=True)
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_no_space_left_says_how_much_there_is(small: Path) -> None:
    with pytest.raises(PullError, match="of 1 MiB") as caught:
        fill(small / "bytes", [layers.file("big", bytes(2 << 20))])
    assert caught.value.code is ErrorCode.NO_SPACE


def test_no_files_left_says_so(small: Path) -> None:
    with pytest.raises(PullError, match="0 of 100 files") as caught:
        fill(small / "files", [layers.file(str(number)) for number in range(200)])
    assert caught.value.code is ErrorCode.NO_SPACE


_NAME = st.lists(
    st.sampled_from(["a", "b", "..", ".", ".wh.a", ".wh..wh..opq", "", "l"]), min_size=1, max_size=4
).map("/".join)
_KIND = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE]
)
_TARGET = st.sampled_from(["a", "../a", "/a", "../../outside", "..", "/", "a/b", "l/l", "b/../a"])


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(members=st.lists(st.tuples(_NAME, _KIND, _TARGET), max_size=8), lowest=st.booleans())
def test_any_sequence_of_members_stays_inside(
    members: list[tuple[str, bytes, str]], lowest: bool, tmp_path: Path
) -> None:
    """Whatever the order of names, links and kinds: only our errors, and nothing outside changes."""
    here = Path(os.path.realpath(tmp_path)) / os.urandom(8).hex()
    (here / "outside").mkdir(parents=True)
    (here / "outside/a").write_text("untouched")
    (here / "lower/a").mkdir(parents=True)
    made = [layers.member(name, kind, linkname=target) for name, kind, target in members]
    try:
        fill(here / "layer", made, [] if lowest else [here / "lower"])
    except VerifyError as error:
        assert error.code in (ErrorCode.LAYER_MALFORMED, ErrorCode.LAYER_UNSAFE)
    assert sorted(os.listdir(here)) == ["layer", "lower", "outside"]
    assert os.listdir(here / "outside") == ["a"]
    assert (here / "outside/a").read_text() == "untouched"
    assert (here / "outside/a").stat().st_nlink == 1
    assert os.listdir(here / "lower") == ["a"]
