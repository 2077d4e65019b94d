"""The host's content-addressed cache: what gets a name in it, what goes, and who waits for whom."""

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sealrun_runtime.cache.store import Cache, CacheFailed, is_abandoned, is_digest

KIB = 1024
HALF_FILLED = """
import sys, time
from sealrun_runtime.cache.store import Cache
with Cache(sys.argv[1], 1 << 20).fill(sys.argv[2], 2048) as filling:
    filling.write(bytes(1024))
    print("half", flush=True)
    time.sleep(600)
"""


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def put(cache: Cache, data: bytes, used: float | None = None) -> str:
    name = digest(data)
    with cache.fill(name, len(data)) as filling:
        assert filling is not None
        filling.write(data)
        filling.complete()
    if used is not None:
        os.utime(cache.path(name), (used, used))
    return name


def got(cache: Cache, name: str) -> bytes | None:
    fd = cache.open(name)
    if fd is None:
        return None
    with open(fd, "rb") as file:
        return file.read()


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file())


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(str(tmp_path), 10 * KIB)


def test_what_was_put_in_comes_out(cache: Cache, tmp_path: Path) -> None:
    name = put(cache, b"content")
    assert got(cache, name) == b"content"
    assert files(tmp_path) == [name.removeprefix("sha256:")]
    assert (tmp_path / "sha256").stat().st_mode & 0o777 == 0o700


def test_what_is_large_is_checked_too(tmp_path: Path) -> None:
    cache = Cache(str(tmp_path), 1 << 24)
    data = os.urandom(3 << 20)
    assert got(cache, put(cache, data)) == data
    with pytest.raises(CacheFailed, match="came as"):
        with cache.fill(digest(b"other"), len(data)) as filling:
            assert filling is not None
            filling.write(data)
            filling.complete()
    assert len(files(tmp_path)) == 1


@pytest.mark.parametrize("data", [b"contenT", b"content and more", b"cont", b""])
def test_what_is_not_what_it_is_called_leaves_nothing(
    cache: Cache, tmp_path: Path, data: bytes
) -> None:
    name = digest(b"content")
    with pytest.raises(CacheFailed), cache.fill(name, 7) as filling:
        assert filling is not None
        filling.write(data)
        filling.complete()
    assert got(cache, name) is None
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "sha256:..", f"sha256:{'A' * 64}", ""])
def test_only_digests_are_names(cache: Cache, name: str) -> None:
    assert not is_digest(name)
    with pytest.raises(CacheFailed):
        cache.open(name)


def test_the_least_recently_used_goes_first(cache: Cache) -> None:
    old, older = put(cache, b"1" * 4 * KIB, used=200), put(cache, b"2" * 4 * KIB, used=100)
    got(cache, older)  # now it is the younger one
    new = put(cache, b"3" * 4 * KIB)
    assert [entry.digest for entry in cache.entries()] == [older, new]
    assert got(cache, old) is None
    assert cache.size() == 8 * KIB


def test_what_is_larger_than_the_cache_evicts_nobody(cache: Cache) -> None:
    put(cache, b"1")
    with pytest.raises(CacheFailed, match="and the cache"), cache.fill(digest(b""), 11 * KIB):
        pass
    assert len(cache.entries()) == 1


def test_a_reader_goes_on_when_its_blob_is_evicted(cache: Cache) -> None:
    name = put(cache, b"content")
    fd = cache.open(name)
    assert fd is not None
    cache.prune(0)
    with open(fd, "rb") as file:
        assert file.read() == b"content"
    assert cache.size() == 0


def test_a_blob_is_filled_by_one_only(cache: Cache, tmp_path: Path) -> None:
    name = digest(b"content")
    with cache.fill(name, 7) as first:
        assert first is not None
        with Cache(str(tmp_path), 10 * KIB).fill(name, 7) as second:
            assert second is None
        first.write(b"content")
        fd = cache.open_growing(name)
        assert fd is not None and not is_abandoned(fd)
        first.complete()
    assert is_abandoned(fd)
    assert os.pread(fd, 100, 0) == b"content"
    os.close(fd)
    with cache.fill(name, 7) as third:
        assert third is None
    assert files(tmp_path) == [name.removeprefix("sha256:")]


@pytest.fixture
def dying(tmp_path: Path) -> Iterator[str]:
    """A blob that a process which was killed meanwhile had half of."""
    name = digest(bytes(2 * KIB))
    command = [sys.executable, "-c", HALF_FILLED, str(tmp_path), name]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        process.kill()
    yield name


def test_what_a_killed_process_left_is_filled_anew(cache: Cache, dying: str) -> None:
    assert cache.size() == KIB
    fd = cache.open_growing(dying)
    assert fd is not None and is_abandoned(fd)
    os.close(fd)
    assert put(cache, bytes(2 * KIB)) == dying


def test_what_a_killed_process_left_is_pruned(cache: Cache, dying: str, tmp_path: Path) -> None:
    assert cache.prune(10 * KIB) == KIB
    assert files(tmp_path) == []


def test_what_is_being_filled_is_not_pruned(cache: Cache) -> None:
    with cache.fill(digest(b"content"), 7) as filling:
        assert filling is not None
        filling.write(b"cont")
        assert cache.prune(0) == 0
        filling.write(b"ent")
        filling.complete()
    assert got(cache, digest(b"content")) == b"content"


def test_a_look_at_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    with path.open() as one, path.open() as other:
        assert is_abandoned(one.fileno())
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.root
def test_a_full_disk_takes_the_place_of_what_is_old(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], check=True)
    try:
        cache = Cache(str(tmp_path), 1 << 20)
        old = put(cache, b"1" * 40 * KIB)
        new = put(cache, b"2" * 40 * KIB)
        assert got(cache, old) is None
        assert got(cache, new) == b"2" * 40 * KIB
        data = b"3" * 80 * KIB
        with pytest.raises(OSError, match="No space"), cache.fill(digest(data), len(data)) as fill:
            assert fill is not None
            fill.write(data)
        assert files(tmp_path) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
