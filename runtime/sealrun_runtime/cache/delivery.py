"""From the registry through the cache to whoever wants a blob: each blob is fetched once on this host,
and goes to its first readers while it comes in.

Blocking; a thread for each reader, and one for each blob that comes in.
"""

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Final, NamedTuple

from sealrun_runtime.cache.store import Cache, CacheFailed, is_abandoned
from sealrun_runtime.cache.upstream import Upstream

LOOK_SECONDS: Final = 0.02  # between two looks at a file that grows
FILLS: Final = 3  # that a reader waits for, its own and others'
_COUNT: Final = 1 << 20

Report = Callable[[str], None]


class Blob(NamedTuple):
    """What is wanted. manifest: of the image that has it."""

    digest: str
    size: int
    manifest: str


def manifest(cache: Cache, upstream: Upstream, digest: str) -> bytes:
    """A manifest or index by digest. Raises CacheFailed, OSError."""
    fd = cache.open(digest)
    if fd is not None:
        with open(fd, "rb") as file:
            return file.read()
    document = upstream.manifest(digest)
    with cache.fill(digest, len(document)) as filling:
        if filling is not None:
            filling.write(document)
            filling.complete()
    return document


def deliver(
    cache: Cache, upstream: Upstream, blob: Blob, out: socket.socket, report: Report
) -> None:
    """Send a blob into a socket, all of it. Raises CacheFailed where that cannot be, OSError where
    nobody reads any more."""
    sent = 0
    for _ in range(FILLS):
        fd = cache.open(blob.digest)
        if fd is None:
            _begin(cache, upstream, blob, report)
            fd = cache.open(blob.digest) or cache.open_growing(blob.digest)
        if fd is not None:
            try:
                sent = _send(fd, sent, blob.size, out)
            finally:
                os.close(fd)
        if sent == blob.size:
            return
    raise CacheFailed(f"{blob.digest} could not be fetched beyond byte {sent} of {blob.size}")


def _begin(cache: Cache, upstream: Upstream, blob: Blob, report: Report) -> None:
    """Have it filled by a thread, unless somebody does; returns when there is something to read, or
    will not be."""
    begun = threading.Event()

    def fill() -> None:
        try:
            _fill(cache, upstream, blob, begun)
        except (CacheFailed, OSError) as error:
            report(f"cannot fill the cache with {blob.digest}: {error}")
        finally:
            begun.set()

    threading.Thread(target=fill, name="fill", daemon=True).start()
    begun.wait()


def _fill(cache: Cache, upstream: Upstream, blob: Blob, begun: threading.Event) -> None:
    with cache.fill(blob.digest, blob.size) as filling:
        if filling is None:
            return
        begun.set()
        with closing(upstream.blob(blob.manifest, blob.digest, blob.size)) as chunks:  # type: ignore[type-var]
            for chunk in chunks:
                filling.write(chunk)
        filling.complete()


def _send(fd: int, sent: int, size: int, out: socket.socket) -> int:
    """Send what is there and what comes; how far the file went."""
    while sent < size:
        there = min(os.fstat(fd).st_size, size)
        if there > sent:
            sent += os.sendfile(out.fileno(), fd, sent, min(_COUNT, there - sent))
        elif is_abandoned(fd):
            if os.fstat(fd).st_size <= sent:
                break
        else:
            time.sleep(LOOK_SECONDS)
    return sent


def discard(end: socket.socket) -> None:
    """Let the reader see the end."""
    with end, suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
