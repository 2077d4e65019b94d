"""Tar reading, against the archives of tarfile, GNU tar and bsdtar, and against malformed ones."""

import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import layers
from hypothesis import given, settings
from hypothesis import strategies as st
from sealrun_agent.errors import VerifyError
from sealrun_agent.image.archive import Archive, Entry
from sealrun_protocol.errors import ErrorCode

FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    yield from (data[start : start + size] for start in range(0, len(data), size))


def read(data: bytes, size: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    archive = Archive(chunked(data, size), "layer x")
    found = [(entry, archive.read(entry.size)) for entry in archive]
    archive.drain()
    return found


def refused(data: bytes) -> str:
    with pytest.raises(VerifyError) as caught:
        read(data)
    assert caught.value.code is ErrorCode.LAYER_MALFORMED
    return str(caught.value)


def header(**change: bytes) -> bytes:
    """A valid ustar header of an empty file, but for the changed fields."""
    block = bytearray(layers.tar([layers.file("a")], tarfile.USTAR_FORMAT)[:512])
    offsets = {"name": 0, "mode": 100, "uid": 108, "size": 124, "mtime": 136, "kind": 156}
    offsets |= {"link": 157, "magic": 257, "prefix": 345, "star": 508}
    for field, value in change.items():
        block[offsets[field] : offsets[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(1024)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("size", [1, 511, 512, 513, 1 << 20])
def test_members_of_all_kinds(form: int, size: int) -> None:
    data = layers.tar(
        [
            layers.directory("d/", uid=7, gid=8, mode=0o1777),
            layers.file("d/file", b"x" * 1000, mode=0o4755),
            layers.file("d/empty"),
            layers.link("d/link", "d/file"),
            layers.symlink("d/symlink", "../file"),
            layers.device("d/char", tarfile.CHRTYPE, 5, 1),
            layers.device("d/block", tarfile.BLKTYPE, 259, 1000),
            layers.member("d/fifo", tarfile.FIFOTYPE),
        ],
        form,
    )
    entries = read(data, size)
    assert [(e.name.rstrip(b"/"), chr(e.kind)) for e, _ in entries] == [
        (b"d", "5"), (b"d/file", "0"), (b"d/empty", "0"), (b"d/link", "1"), (b"d/symlink", "2"),
        (b"d/char", "3"), (b"d/block", "4"), (b"d/fifo", "6"),
    ]  # fmt: skip
    (directory, _), (file, content) = entries[:2]
    assert (directory.uid, directory.gid, directory.mode) == (7, 8, 0o1777)
    assert (file.size, content, file.mode) == (1000, b"x" * 1000, 0o4755)
    assert file.mtime_ns == layers.MTIME * 10**9
    assert (entries[3][0].link, entries[4][0].link) == (b"d/file", b"../file")
    assert (entries[5][0].device, entries[6][0].device) == ((5, 1), (259, 1000))


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_and_links(form: int) -> None:
    name, target = "d/" + "n" * 250, "t/" * 500 + "x"
    ((entry, _),) = read(layers.tar([layers.symlink(name, target)], form))
    assert (entry.name, entry.link) == (name.encode(), target.encode())


def test_ustar_and_star_prefixes() -> None:
    ((entry, _),) = read(header(prefix=b"some/where") + END)
    assert entry.name == b"some/where/a"
    ((entry, _),) = read(header(prefix=b"p" * 131 + b"00000000000\0", star=b"tar\0") + END)
    assert entry.name == b"p" * 131 + b"/a"
    ((entry, _),) = read(header(prefix=b"ignored", magic=b"ustar  \0") + END)
    assert entry.name == b"a"


def test_names_are_bytes() -> None:
    raw = "b\udcff\udcfe/\u00e4"
    ((entry, _),) = read(layers.tar([layers.file(raw)], tarfile.GNU_FORMAT))
    assert entry.name == os.fsencode(raw)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize(("uid", "mtime"), [(2**31, 1), (4_000_000_000, 2**33 - 1), (0, -5)])
def test_numbers_that_do_not_fit_octal(form: int, uid: int, mtime: int) -> None:
    ((entry, _),) = read(layers.tar([layers.file("a", uid=uid, mtime=mtime)], form))
    assert (entry.uid, entry.mtime_ns) == (uid, mtime * 10**9)


@pytest.mark.parametrize(
    ("text", "nanoseconds"),
    [
        ("1.5", 1_500_000_000),
        ("1.123456789123", 1_123_456_789),
        ("-1.25", -1_250_000_000),
        ("7", 7_000_000_000),
    ],
)
def test_pax_times(text: str, nanoseconds: int) -> None:
    ((entry, _),) = read(layers.tar([layers.file("a", pax_headers={"mtime": text})]))
    assert entry.mtime_ns == nanoseconds


def test_pax_xattrs_keep_their_bytes() -> None:
    headers = {"SCHILY.xattr.user.a": "1\n2=3", "SCHILY.xattr.user.b": "\udcff\0x"}
    data = layers.tar([layers.file("a", pax_headers=headers), layers.file("b")])
    (first, _), (second, _) = read(data)
    assert first.xattrs == {b"user.a": b"1\n2=3", b"user.b": b"\xff\0x"}
    assert second.xattrs == {}


def test_global_headers_are_not_applied() -> None:
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer,
        mode="w",
        format=tarfile.PAX_FORMAT,
        pax_headers={"path": "evil", "uid": "9"},
    ) as archive:
        archive.addfile(tarfile.TarInfo("good"))
    ((entry, _),) = read(buffer.getvalue())
    assert (entry.name, entry.uid) == (b"good", 0)


def test_data_may_be_left_unread() -> None:
    data = layers.tar([layers.file("a", b"1" * 5000), layers.file("b", b"2")])
    archive = Archive(chunked(data, 700), "x")
    assert [entry.name for entry in archive] == [b"a", b"b"]


def test_old_files_and_directories() -> None:
    assert read(header(kind=b"\0") + END)[0][0].kind == 0x30
    assert read(header(kind=b"7") + END)[0][0].kind == 0x30
    assert read(header(kind=b"\0", name=b"d/") + END)[0][0].kind == 0x35


def test_the_size_of_what_has_no_data_is_ignored() -> None:
    data = header(kind=b"5", size=b"00000001000") + header(name=b"b") + END
    assert [entry.name for entry, _ in read(data)] == [b"a", b"b"]


def test_ends() -> None:
    one = header()
    for end in (b"", bytes(512), END, END + bytes(512 * 20), END + b"what follows is ignored"):
        assert len(read(one + end)) == 1
    assert read(b"") == []


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"x" * 512, "number"),
        (header()[:300], "ends early"),
        (header(size=b"00000000010") + b"12345", "ends early"),
        (header(kind=b"x", size=b"00000000020"), "ends early"),
        (header()[:148] + b"000000\0 " + header()[156:], "checksum"),
        (bytes(512) + header(), "zeros"),
        (header(kind=b"M"), "unknown type 'M'"),
        (header(kind=b"D"), "unknown type 'D'"),
        (header(name=b"\0"), "name"),
        (header(size=b"9"), "number"),
        (header(size=b"\xff" * 12), "-1 bytes"),
        (header(size=b"\x80" + b"\x7f" * 11), "bytes"),
        (header(uid=b"\xff" * 8), "owner"),
        (header(uid=b"\x80\0\0\0\xff\xff\xff\xff"), "owner 4294967295"),
        (header(mtime=b"\x80" + b"\x01" * 11), "time"),
        (header(kind=b"x", size=b"77777777777"), "extension header"),
        (header(kind=b"L", size=b"77777777777"), "extension header"),
        (header(kind=b"x") + END, "without an entry"),
        (header(kind=b"L", size=b"00000000001") + b"a" * 512, "without an entry"),
    ],
)
def test_malformed(data: bytes, cause: str) -> None:
    assert cause in refused(data)


def pax(records: bytes) -> bytes:
    padding = bytes(-len(records) % 512)
    return header(kind=b"x", size=b"%011o" % len(records)) + records + padding + header() + END


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"5 a=\n\n",
        b"7 a=bcd",
        b"6 abc\n",
        b"-1 a=b\n",
        b"99 a=b\n",
        b"0 a=b\n",
        b"00000000000000000000000000006 a=b\n",
        b"2 a=b\n",
        b"8 uid=x\n",
        b"9 uid=-1\n",
        b"10 size=x\n",
        b"12 mtime=1x\n",
        b"12 path=a\0b\n",
        b"15 linkpath=\0a\n",
        b"22 GNU.sparse.major=1\n",
        b"22 GNU.sparse.map=1,2\n",
    ],
)
def test_malformed_pax(records: bytes) -> None:
    refused(pax(records))


def test_an_empty_pax_value_unsets() -> None:
    ((entry, _),) = read(pax(b"13 path=evil\n" + b"8 path=\n"))
    assert entry.name == b"a"


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=posix", "--sparse-version=0.0"],
        ["--format=posix", "--sparse-version=0.1"],
        ["--format=posix", "--sparse-version=1.0"],
    ],
)
def test_sparse_files_of_gnu_tar(options: list[str], tmp_path: Path) -> None:
    source = tmp_path / "sparse"
    with source.open("wb") as file:
        for number in range(30):  # more than one extension block
            file.seek(number * 200_000)
            file.write(b"%d" % number * 3000)
        file.truncate(7_000_000)
    (tmp_path / "after").write_bytes(b"after")
    data = subprocess.run(
        ["tar", "-C", str(tmp_path), "--sparse", *options, "-cf", "-", "sparse", "after"],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    assert len(data) < 1_000_000
    archive = Archive(chunked(data, 10_000), "x")
    entries = iter(archive)
    entry = next(entries)
    assert (entry.name, entry.real_size) == (b"sparse", 7_000_000)
    assert entry.segments is not None
    out = bytearray(entry.real_size)
    for offset, length in entry.segments:
        out[offset : offset + length] = archive.read(length)
    assert bytes(out) == source.read_bytes()
    assert (next(entries).name, archive.read(5)) == (b"after", b"after")
    assert next(entries, None) is None


@pytest.mark.skipif(not shutil.which("bsdtar"), reason="bsdtar is not installed")
def test_archives_of_bsdtar(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 60)
    directory.mkdir()
    (directory / ("n" * 80)).write_bytes(b"x" * 10_000)
    (tmp_path / "link").symlink_to("n")
    for form in ("ustar", "pax", "gnutar"):
        data = subprocess.run(
            ["bsdtar", "-C", str(tmp_path), "--format", form, "-cf", "-", "."],
            check=True, capture_output=True,
        ).stdout  # fmt: skip
        names = {entry.name: content for entry, content in read(data)}
        assert names[b"./" + b"d" * 60 + b"/" + b"n" * 80] == b"x" * 10_000


@settings(max_examples=300)
@given(st.data())
def test_any_damage_is_read_or_refused(data: st.DataObject) -> None:
    original = layers.tar(
        [
            layers.file("a" * 150, b"1" * 700, pax_headers={"SCHILY.xattr.user.x": "y"}),
            layers.symlink("s", "t" * 120),
        ]
    )
    damaged = bytearray(original)
    for _ in range(data.draw(st.integers(1, 6))):
        position = data.draw(st.integers(0, len(original) - 1))
        damaged[position] = data.draw(st.sampled_from(b"\0 0157=/xg\xff\x80"))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        read(bytes(damaged[:cut]))
    except VerifyError as error:
        assert error.code is ErrorCode.LAYER_MALFORMED


@settings(max_examples=200)
@given(st.binary(min_size=345, max_size=345), st.sampled_from(b"05SLKxg"), st.binary(max_size=600))
def test_any_header_is_read_or_refused(body: bytes, kind: int, rest: bytes) -> None:
    block = bytearray(body + bytes(167))
    block[156] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    try:
        read(bytes(block) + rest)
    except VerifyError as error:
        assert error.code is ErrorCode.LAYER_MALFORMED
