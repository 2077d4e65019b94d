"""The stages of a stream: what they pass on, what they refuse, and that they stay bounded."""

import gzip
import hashlib
import threading
import time
import tracemalloc
import zlib
from collections.abc import Iterable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.errors import VerifyError
from sealrun_agent.image.stream import (
    AHEAD,
    CHUNK_BYTES,
    Chunks,
    ahead,
    bounded,
    decompressed,
    verified,
)
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode


def chunked(data: bytes, size: int = 1000) -> Chunks:
    yield from (data[start : start + size] for start in range(0, len(data), size))


def every(chunks: Iterable[bytes]) -> bytes:
    return b"".join(chunks)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@given(st.binary(max_size=300), st.integers(1, 50), st.sampled_from(["", "gzip", "zstd"]))
def test_what_went_in_comes_out(data: bytes, size: int, compression: str) -> None:
    compress = {"": bytes, "gzip": gzip.compress, "zstd": zstandard.compress}[compression]
    assert every(decompressed(chunked(compress(data), size), compression, "x")) == data


@pytest.mark.parametrize("length", [CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_lengths_around_the_buffer(length: int, size: int, compression: str) -> None:
    data = b"a" * length
    packed = gzip.compress(data) if compression == "gzip" else zstandard.compress(data)
    assert every(decompressed(chunked(packed, size), compression, "x")) == data


def test_members_and_frames_one_after_the_other() -> None:
    packed = gzip.compress(b"one") + gzip.compress(b"two") + bytes(600)
    for size in (1, 5, 1000):
        assert every(decompressed(chunked(packed, size), "gzip", "x")) == b"onetwo"
    frames = zstandard.compress(b"one") + zstandard.compress(b"two")
    for size in (1, 5, 1000):
        assert every(decompressed(chunked(frames, size), "zstd", "x")) == b"onetwo"


@pytest.mark.parametrize(
    ("packed", "compression"),
    [
        (b"", "gzip"),
        (b"plain text, no gzip", "gzip"),
        (gzip.compress(b"cut" * 100, mtime=0)[:-4], "gzip"),
        (gzip.compress(b"cut" * 100, mtime=0)[:12], "gzip"),
        (gzip.compress(b"crc", mtime=0)[:-8] + bytes(8), "gzip"),
        (gzip.compress(b"x", mtime=0) + b"garbage", "gzip"),
        (zlib.compress(b"x"), "gzip"),
        (b"plain text, no zstd", "zstd"),
        (zstandard.compress(b"x") + b"garbage", "zstd"),
    ],
)
def test_what_cannot_be_decompressed(packed: bytes, compression: str) -> None:
    with pytest.raises(VerifyError) as caught:
        every(decompressed(chunked(packed), compression, "layer x"))
    assert caught.value.code is ErrorCode.LAYER_MALFORMED
    assert str(caught.value).startswith("layer x cannot be decompressed: ")


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_a_bomb_is_stopped_and_takes_no_memory(compression: str) -> None:
    compressor = zstandard.ZstdCompressor().compressobj() if compression == "zstd" else None
    deflate = zlib.compressobj(9, zlib.DEFLATED, 31)
    zeros = bytes(1 << 20)
    if compressor is not None:
        packed = every(compressor.compress(zeros) for _ in range(256)) + compressor.flush()
    else:
        packed = every(deflate.compress(zeros) for _ in range(256)) + deflate.flush()
    tracemalloc.start()
    try:
        with pytest.raises(VerifyError) as caught:
            for _ in bounded(
                decompressed(chunked(packed, CHUNK_BYTES), compression, "x"), 200 << 20, "x"
            ):
                pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert caught.value.code is ErrorCode.LIMIT_EXCEEDED
    assert peak < 8 * CHUNK_BYTES


def test_a_zstd_window_beyond_the_limit_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    assert limits.ZSTD_WINDOW_BYTES < 1 << 28
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    packed = compressor.compress(bytes(1000)) + compressor.flush()
    with pytest.raises(VerifyError) as caught:
        every(decompressed(chunked(packed), "zstd", "x"))
    assert caught.value.code is ErrorCode.LAYER_MALFORMED


def test_verified_passes_on_and_checks_at_the_end() -> None:
    assert every(verified(chunked(b"data" * 999), digest(b"data" * 999), "x")) == b"data" * 999
    stage = verified(chunked(b"data"), digest(b"else"), "layer x")
    assert next(stage) == b"data"
    with pytest.raises(VerifyError, match=r"^layer x is sha256:") as caught:
        next(stage)
    assert caught.value.code is ErrorCode.DIGEST_MISMATCH


def threads() -> list[str]:
    """Ours that are alive; a test before this one may have left others in this process."""
    return [thread.name for thread in threading.enumerate() if thread.name == "ahead"]


def test_ahead_runs_ahead_so_far_and_no_further() -> None:
    made: list[int] = []

    def source() -> Chunks:
        for number in range(20):
            made.append(number)
            yield b"%d" % number

    stage = ahead(source())
    assert next(stage) == b"0"
    deadline = time.monotonic() + 10
    while len(made) < AHEAD + 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == AHEAD + 2  # one is taken, AHEAD wait, one wants to
    assert every(stage) == b"".join(b"%d" % number for number in range(1, 20))
    assert threads() == []


def test_ahead_raises_what_the_thread_raised_at_its_place() -> None:
    stage = ahead(verified(chunked(b"data", 1), digest(b"else"), "layer x"))
    read = [next(stage) for _ in range(4)]
    assert read == [b"d", b"a", b"t", b"a"]
    with pytest.raises(VerifyError, match=r"^layer x is sha256:"):
        next(stage)
    assert threads() == []


@pytest.mark.parametrize("taken", [0, 1, 5])
def test_ahead_is_closed_at_any_time(taken: int) -> None:
    """Its thread ends, and the stages before it can be read on."""
    source = chunked(b"x" * 100, 1)
    stage = ahead(source)
    for _ in range(taken):
        next(stage)
    stage.close()
    assert threads() == []
    assert 100 - taken - AHEAD - 2 <= len(every(source)) <= 100 - taken
