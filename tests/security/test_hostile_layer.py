"""Layers that want the agent's memory, or a way out: an error that says so, within bounds."""

import itertools
import os
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import layers
from fixtures.layers import Member
from sealrun_agent.errors import VerifyError
from sealrun_agent.image.layer import unpack
from sealrun_agent.image.tree import remove_tree
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

pytestmark = pytest.mark.root

MIB = 1 << 20


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[Path]:
    """A directory that is emptied by us: pytest cannot remove what is very deep."""
    directory = tmp_path / "layer"
    directory.mkdir()
    yield directory
    parent = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    remove_tree(parent, b"layer")
    os.close(parent)


def headers(members: Iterator[Member]) -> Iterator[bytes]:
    """A tar without end, of members without data."""
    for info, _ in members:
        yield info.tobuf(tarfile.PAX_FORMAT)


def names(kind: str) -> Iterator[Member]:
    """Names that each are to be remembered whole, though they have most of their bytes in common."""
    prefix = "/".join(["p" * 200] * 15)
    for number in itertools.count():
        if kind == "directories":
            yield layers.directory(f"{prefix}/{number}")
        elif kind == "links":
            yield layers.link(f"l{number}", f"nowhere/{prefix}/{number}")
        else:
            yield layers.file(f"{number}/" + "d/" * 1900 + "f")


def refused(chunks: Iterator[bytes], directory: Path, peak_bytes: int) -> VerifyError:
    """The error; the agent's memory grew by no more than that."""
    tracemalloc.start()
    try:
        with pytest.raises(VerifyError) as caught:
            unpack(chunks, str(directory), [], "layer x")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < peak_bytes
    assert str(caught.value).isprintable()
    return caught.value


@pytest.mark.parametrize("kind", ["directories", "links", "parents"])
def test_names_to_remember(kind: str, layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tar of a few megabytes may cost is disk, not the agent's memory."""
    monkeypatch.setattr(limits, "LAYER_NAMES_BYTES", 2 * MIB)
    error = refused(headers(names(kind)), layer, 10 * MIB)
    assert error.code is ErrorCode.LIMIT_EXCEEDED
    assert "names" in str(error)


def test_tiny_files_take_disk_and_no_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LAYER_ENTRIES", 5000)
    endless = (layers.file(str(number)) for number in itertools.count())
    error = refused(headers(endless), tmp_path, 1 * MIB)
    assert (error.code, len(os.listdir(tmp_path))) == (ErrorCode.LIMIT_EXCEEDED, 5000)


MEASURED = """
import os, re, sys, tarfile, time
from sealrun_agent.image.layer import unpack

COUNT, directory = int(sys.argv[1]), sys.argv[2]

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

def chunks():
    header = bytearray(tarfile.TarInfo("0000000").tobuf(tarfile.USTAR_FORMAT))
    for first in range(0, COUNT, 1000):
        chunk = b""
        for number in range(first, first + 1000):
            header[:7] = b"%07d" % number
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\\0 " % sum(header)
            chunk += header
        yield bytes(chunk)

before, began = peak(), time.process_time()
unpack(chunks(), directory, [], "layer x")
seconds, grown = time.process_time() - began, peak() - before
print(len(os.listdir(directory)), grown, seconds)
"""


def test_tiny_files_without_number(tmp_path: Path) -> None:
    """They cost inodes, which the scratch disk bounds; of the agent's memory nothing that grows with them,
    and some 25 µs of a processor each."""
    files = 100_000
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "nr_inodes=0", "tmpfs", str(tmp_path)], check=True
    )
    try:
        path = os.pathsep.join(entry for entry in sys.path if entry)
        done = subprocess.run(
            [sys.executable, "-c", MEASURED, str(files), str(tmp_path)],
            capture_output=True, check=True, text=True, env={**os.environ, "PYTHONPATH": path},
        )  # fmt: skip
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    count, kib, seconds = map(float, done.stdout.split())
    assert count == files
    assert kib < 4 * 1024
    assert seconds < 60


def test_a_sparse_map_without_end(tmp_path: Path) -> None:
    """Format 1.0 has its map before the data, of any length."""
    pairs = b"".join(b"%d\n0\n" % number for number in range(300_000))
    data = (b"300000\n" + pairs).ljust(8 * MIB, b"\0")
    fields = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "1"}
    tar = layers.tar([layers.file("f", data, pax_headers=fields)])
    error = refused(iter([tar]), tmp_path, 4 * MIB)
    assert error.code is ErrorCode.LAYER_MALFORMED


def test_a_sparse_file_takes_what_its_data_takes(tmp_path: Path) -> None:
    """Its size is not a reason to refuse it: there is nothing in it."""
    fields = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": f"{1 << 35},5",
        "GNU.sparse.size": str(1 << 36),
    }  # fmt: skip
    tar = layers.tar([layers.file("f", b"there", pax_headers=fields)])
    unpack(iter([tar]), str(tmp_path), [], "layer x")
    status = (tmp_path / "f").stat()
    assert (status.st_size, status.st_blocks < 100) == (1 << 36, True)


@pytest.mark.parametrize(
    "name", [b"a\0b", b"\xff\xfe\xc0\xaf", b"..\xc0\xaf..\xc0\xafx", "\u202egpj".encode()]
)
def test_names_that_are_no_text(name: bytes, tmp_path: Path) -> None:
    """A name is bytes: what Linux takes is kept as it is, and no byte of it reaches a terminal raw."""
    record = b" path=" + name + b"\n"
    record = b"%d" % (len(record) + 2) + record
    info, _ = layers.file("x")
    info.type, info.size = b"x", len(record)
    tar = info.tobuf(tarfile.USTAR_FORMAT) + record.ljust(512, b"\0")
    tar += layers.tar([layers.file("x", b"1")])
    if b"\0" in name:
        assert refused(iter([tar]), tmp_path, MIB).code is ErrorCode.LAYER_MALFORMED
    else:
        unpack(iter([tar]), str(tmp_path), [], "layer x")
        assert os.listdir(os.fsencode(tmp_path)) == [name]
        ends_early = refused(iter([tar[:-10_000]]), tmp_path / ".", MIB)
        assert ends_early.code is ErrorCode.LAYER_MALFORMED
