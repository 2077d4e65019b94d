"""A content-addressed directory that many shims fill and read at once, and that none of them trusts
more than its disk: whoever gets bytes out of it checks them again.

    DIRECTORY/sha256/<hex>     complete; its digest was right when it came in; mtime = last use
    DIRECTORY/filling/<hex>    growing; whoever holds its lock (flock) fills it

A file is complete by rename(2) after its digest was checked and its bytes were on the disk. The lock of
a process that dies is gone with it: what it left is taken over by the next that wants the blob, or
removed. Readers read what grows while it grows. Whoever has a file open may read it to its end, though
it was evicted meanwhile.

Evicted is what was not used for the longest time: where the directory would be larger than its limit,
and where the disk is full.
"""

import errno
import fcntl
import hashlib
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

_SMALL_BYTES: Final = 1 << 20
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class CacheFailed(Exception):
    """The blob cannot be had through the cache."""


class Entry(NamedTuple):
    """A complete blob. used: seconds since 1970."""

    digest: str
    size: int
    used: float


def is_digest(text: str) -> bool:
    """Whether the cache could hold it."""
    return _DIGEST.fullmatch(text) is not None


class Filling:
    """A blob that comes in, and its lock. Made by Cache.fill; of one thread."""

    def __init__(self, cache: "Cache", digest: str, size: int, fd: int) -> None:
        self._cache, self._digest, self._size, self._fd = cache, digest, size, fd
        self._written = 0

    def write(self, data: bytes) -> None:
        """Append. Raises CacheFailed for more bytes than the blob has, OSError."""
        self._written += len(data)
        if self._written > self._size:
            raise CacheFailed(f"{self._digest} has more than {self._size} bytes")
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._cache.evict_one():
                    raise

    def complete(self) -> None:
        """It has come in. Raises CacheFailed where it is not what it is called, OSError."""
        actual = _digest_of(self._fd, self._written)
        if (self._written, actual) != (self._size, self._digest):
            raise CacheFailed(
                f"{self._digest} ({self._size} bytes) came as {actual} ({self._written} bytes)"
            )
        os.fdatasync(self._fd)
        os.rename(self._cache.growing(self._digest), self._cache.path(self._digest))


class Cache:
    """For any number of threads and processes.

    limit: bytes that all files may have together; what is being read is not counted."""

    def __init__(self, directory: str, limit: int) -> None:
        """Raises OSError where the directory cannot be made."""
        self._complete = os.path.join(directory, "sha256")
        self._filling = os.path.join(directory, "filling")
        self._limit = limit
        for path in (self._complete, self._filling):
            os.makedirs(path, 0o700, exist_ok=True)

    def path(self, digest: str) -> str:
        """Of a complete blob."""
        return os.path.join(self._complete, _name(digest))

    def growing(self, digest: str) -> str:
        """Of a blob that comes in."""
        return os.path.join(self._filling, _name(digest))

    def open(self, digest: str) -> int | None:
        """A descriptor of a complete blob, which counts as used now; None where it is not here."""
        try:
            fd = os.open(self.path(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        os.utime(fd)
        return fd

    def open_growing(self, digest: str) -> int | None:
        """A descriptor to read what is there of a blob that comes in."""
        try:
            return os.open(self.growing(digest), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None

    @contextmanager
    def fill(self, digest: str, size: int) -> Iterator[Filling | None]:
        """Bring a blob in; None where somebody else does, or has done so. What is not completed within
        the block is removed. Raises CacheFailed, OSError."""
        if size > self._limit:
            raise CacheFailed(f"{digest} has {size} bytes, and the cache {self._limit}")
        fd = os.open(self.growing(digest), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if not _locked(fd) or not _is(fd, self.growing(digest)) or self._has(digest):
                yield None
                return
            os.ftruncate(fd, 0)
            self._make_room(size)
            filling = Filling(self, digest, size, fd)
            try:
                yield filling
            finally:
                if _is(fd, self.growing(digest)):  # not completed
                    os.unlink(self.growing(digest))
        finally:
            os.close(fd)

    def entries(self) -> list[Entry]:
        """All complete blobs, the one that was not used for the longest time first."""
        found = []
        for name in os.listdir(self._complete):
            with suppress(FileNotFoundError):
                about = os.stat(os.path.join(self._complete, name))
                found.append(Entry(f"sha256:{name}", about.st_size, about.st_mtime))
        return sorted(found, key=lambda entry: entry.used)

    def size(self) -> int:
        """Bytes of all files, those that come in included."""
        total = sum(entry.size for entry in self.entries())
        for name in os.listdir(self._filling):
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(self._filling, name)).st_size
        return total

    def prune(self, limit: int) -> int:
        """Evict until at most `limit` bytes are left, and remove what dead processes left; bytes that
        became free. Raises OSError."""
        before = self.size()
        for name in os.listdir(self._filling):
            self._remove_left(os.path.join(self._filling, name))
        total = self.size()
        for entry in self.entries():
            if total <= limit:
                break
            self._evict(entry)
            total -= entry.size
        return before - self.size()

    def evict_one(self) -> bool:
        """Make some room; False where there is nothing to evict."""
        return any(self._evict(entry) for entry in self.entries())

    def _make_room(self, size: int) -> None:
        if self.size() + size > self._limit:
            self.prune(self._limit - size)

    def _evict(self, entry: Entry) -> bool:
        try:
            os.unlink(self.path(entry.digest))
        except FileNotFoundError:  # somebody else did
            return False
        return True

    def _has(self, digest: str) -> bool:
        if not os.path.exists(self.path(digest)):
            return False
        with suppress(FileNotFoundError):  # ours: it was made after the blob was complete
            os.unlink(self.growing(digest))
        return True

    def _remove_left(self, path: str) -> None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            if _locked(fd) and _is(fd, path):
                os.unlink(path)
        finally:
            os.close(fd)


def is_abandoned(fd: int) -> bool:
    """Whether nobody fills the file any more: it is complete, or will never be."""
    if not _locked(fd):
        return False
    fcntl.flock(fd, fcntl.LOCK_UN)
    return True


def _digest_of(fd: int, size: int) -> str:
    """A file's digest. A shim has no OpenSSL (shim/main.py), and what Python does without holds its lock:
    what is large, coreutils reads. Raises CacheFailed, OSError."""
    if size <= _SMALL_BYTES:
        return f"sha256:{hashlib.sha256(os.pread(fd, size, 0)).hexdigest()}"
    os.lseek(fd, 0, os.SEEK_SET)
    done = subprocess.run(["sha256sum"], stdin=fd, capture_output=True, check=False)
    if done.returncode:
        raise CacheFailed(f"sha256sum: {done.stderr.decode(errors='replace').strip()[:200]}")
    return f"sha256:{done.stdout[:64].decode()}"


def _locked(fd: int) -> bool:
    """Whether the lock could be had, and now is."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is(fd: int, path: str) -> bool:
    """Whether the path still leads to this file."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _name(digest: str) -> str:
    if not is_digest(digest):
        raise CacheFailed(f"{digest[:80]!r} is no digest")
    return digest.removeprefix("sha256:")
