"""The stages between a registry's bytes and a layer's tar, as generators of chunks.

Each stage pulls from the one before it and promises two things: it holds a bounded number of bytes
whatever the length of the stream, and what it promises of the whole stream it checks before it
ends. So whoever reads a chain of stages to its end knows that all checks passed; whoever stops
early knows nothing.
"""

import hashlib
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import VerifyError
from sealrun_agent.image.task import Task

CHUNK_BYTES: Final = 512 * limits.KIB
AHEAD: Final = 2  # chunks that a thread may be ahead of the next
_FRAME_HEADER_BYTES: Final = 18  # the longest of zstd
Chunks = Generator[bytes, None, None]

_large_window = threading.Lock()
"""Held by the one stream of this process whose zstd window is large."""


def ahead(chunks: Chunks) -> Chunks:
    """Let the stages before this one run in a thread of their own, at most AHEAD chunks ahead. What
    they raise is raised here. Close it before them: their thread has ended then, and whoever closes
    early may read on where it stopped, less the chunks that were on the way."""
    ready: queue.Queue[bytes | None] = queue.Queue(AHEAD)
    stopped = False

    def work() -> None:
        try:
            for chunk in chunks:
                ready.put(chunk)
                if stopped:
                    break
        finally:
            ready.put(None)

    task = Task(work, "ahead")
    chunk: bytes | None = b""
    try:
        while (chunk := ready.get()) is not None:
            yield chunk
        task.join()
    finally:
        stopped = True
        while chunk is not None:
            chunk = ready.get()
        task.wait()


def verified(chunks: Chunks, digest: str, what: str) -> Chunks:
    """Pass chunks on; at the end raise VerifyError(DIGEST_MISMATCH) unless their sha256 is `digest`."""
    sha256 = hashlib.sha256()
    for chunk in chunks:
        sha256.update(chunk)
        yield chunk
    actual = f"sha256:{sha256.hexdigest()}"
    if actual != digest:
        raise VerifyError(ErrorCode.DIGEST_MISMATCH, f"{what} is {actual}, not {digest}")


def bounded(chunks: Chunks, limit: int, what: str) -> Chunks:
    """Pass at most `limit` bytes on. Raises VerifyError(LIMIT_EXCEEDED)."""
    total = 0
    for chunk in chunks:
        total += len(chunk)
        if total > limit:
            raise VerifyError(ErrorCode.LIMIT_EXCEEDED, f"{what} is longer than {limit} bytes")
        yield chunk


def decompressed(chunks: Chunks, compression: str, what: str) -> Chunks:
    """The stages for "", "gzip" and "zstd". Raises VerifyError(LAYER_MALFORMED)."""
    if compression == "gzip":
        return _gunzipped(chunks, what)
    if compression == "zstd":
        return _unzstd(chunks, what)
    return chunks


def _gunzipped(chunks: Chunks, what: str) -> Chunks:
    """RFC 1952: members one after the other. Zero bytes after a member are padding."""
    from zlib_ng import zlib_ng as zlib

    member = zlib.decompressobj(31)
    started = False
    for chunk in chunks:
        rest = chunk
        more = False  # the last call filled its buffer, so zlib may hold output without input
        while rest or more:
            if member.eof:
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                member = zlib.decompressobj(31)
            try:
                out = member.decompress(rest, CHUNK_BYTES)
            except zlib.error as error:  # type: ignore[misc]  # its stub says less than it is
                raise _malformed(what, f"gzip: {error}") from error
            started = True
            if out:
                yield out
            more = len(out) == CHUNK_BYTES and not member.eof
            rest = member.unused_data if member.eof else member.unconsumed_tail
    if not (started and member.eof):
        raise _malformed(what, "gzip: the stream ends early")


class _Reader:
    """The file-like object that zstandard reads from."""

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._rest = b""

    def read(self, size: int) -> bytes:
        chunk = self._rest or next(self._chunks, b"")
        self._rest = chunk[size:]
        return chunk[:size]

    def begin(self) -> bytes:
        """At least a frame's header, where there is so much; it will be read again."""
        while len(self._rest) < _FRAME_HEADER_BYTES and (more := next(self._chunks, b"")):
            self._rest += more
        return self._rest


def _unzstd(chunks: Chunks, what: str) -> Chunks:
    """RFC 8878: frames one after the other. A frame that ends early is no error here: the tar that
    ends early, or its digest, tells. The first frame says whether all may have a large window."""
    import zstandard

    source = _Reader(chunks)
    with (
        _window(source.begin()) as most,
        zstandard.ZstdDecompressor(max_window_size=most).stream_reader(
            source,  # type: ignore[arg-type]  # it only calls read()
            read_size=CHUNK_BYTES,
            read_across_frames=True,
        ) as reader,
    ):
        while True:
            try:
                out = reader.read(CHUNK_BYTES)
            except zstandard.ZstdError as error:
                raise _malformed(what, _words(error, most)) from error
            if not out:
                break
            yield out


@contextmanager
def _window(begin: bytes) -> Iterator[int]:
    """The largest window, in bytes, that a stream with this begin may use. Waits for its turn where that
    is a large one."""
    import zstandard

    try:
        wanted = zstandard.get_frame_parameters(begin).window_size
    except zstandard.ZstdError:
        wanted = 0  # the decompressor will tell
    if wanted <= limits.ZSTD_SMALL_WINDOW_BYTES:
        yield limits.ZSTD_SMALL_WINDOW_BYTES
        return
    with _large_window:
        yield limits.ZSTD_WINDOW_BYTES


def _words(error: Exception, most: int) -> str:
    """What went wrong, and what to do about a window that is too large. most: as `_window` said."""
    if "too much memory" not in str(error):
        return f"zstd: {error}"
    window = f"it has a zstd window of more than {most // limits.MIB} MiB"
    if most == limits.ZSTD_WINDOW_BYTES:
        return f"{window}: compress it again without --long"
    return f"{window} behind a first frame with a smaller one: compress it again, as one frame"


def _malformed(what: str, cause: str) -> VerifyError:
    return VerifyError(ErrorCode.LAYER_MALFORMED, f"{what} cannot be decompressed: {cause}")
