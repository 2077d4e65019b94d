"""What zstd's windows cost: small ones of several layers at once, large ones of one layer at a time."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from fixtures import layers
from fixtures.pulling import Puller
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol.errors import ErrorCode
from simulators.registry import Simulator

NOISE = random.Random(5).randbytes(3_000_000)  # so that each layer has a connection and threads


def packed(data: bytes, window_log: int) -> bytes:
    """One frame with a window of 2^window_log bytes, whose length is not said before."""
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=window_log)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    return compressor.compress(data) + compressor.flush()


def test_layers_with_large_windows_come_one_after_the_other(
    puller: Puller, simulator: Simulator
) -> None:
    tars = [layers.tar([layers.file(str(n), NOISE)]) for n in range(4)]
    blobs = [packed(tar, 27 if n % 2 else 22) for n, tar in enumerate(tars)]
    reference = simulator.publish(tars, compression="zstd", blobs=blobs)
    image = puller(reference, ImagePolicy((simulator.address,)))
    for number, layer in enumerate(image.layers):
        assert (Path(layer) / str(number)).read_bytes() == NOISE


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_a_layer_that_fails_lets_go_of_its_window(
    puller: Puller, simulator: Simulator, wrong: int
) -> None:
    """The others wait for it, and the image after this one."""
    good = [layers.tar([layers.file(str(n), NOISE)]) for n in range(3)]
    tars = list(good)
    tars[wrong] = layers.tar([layers.file("../outside"), layers.file("x", NOISE)])
    blobs = [packed(tar, 24) for tar in tars]
    reference = simulator.publish(tars, compression="zstd", blobs=blobs)
    policy = ImagePolicy((simulator.address,))
    assert puller.refused(reference, policy).code is ErrorCode.LAYER_UNSAFE
    blobs = [packed(tar, 24) for tar in good]
    assert puller(simulator.publish(good, compression="zstd", blobs=blobs), policy)


def test_a_later_frame_has_no_larger_window_than_the_first_lets_expect(
    puller: Puller, simulator: Simulator
) -> None:
    """Else layers that began small could all grow."""
    tar = layers.tar([layers.file("file", NOISE)])
    blob = packed(tar[:1000], 20) + packed(tar[1000:], 27)
    reference = simulator.publish([tar], compression="zstd", blobs=[blob])
    error = puller.refused(reference, ImagePolicy((simulator.address,)))
    assert error.code is ErrorCode.LAYER_MALFORMED
    words = (
        "more than 8 MiB behind a first frame with a smaller one: compress it again, as one frame"
    )
    assert words in str(error)


def test_a_window_that_is_too_large_is_named(puller: Puller, simulator: Simulator) -> None:
    """RFC 8878, 3.1.1.1: a frame that says nothing but its window, of 256 MiB; its blocks are never reached."""
    blob = b"\x28\xb5\x2f\xfd\x00" + bytes([(28 - 10) << 3]) + bytes(64)
    reference = simulator.publish([layers.tar([])], compression="zstd", blobs=[blob])
    error = puller.refused(reference, ImagePolicy((simulator.address,)))
    assert error.code is ErrorCode.LAYER_MALFORMED
    words = "it has a zstd window of more than 128 MiB: compress it again without --long"
    assert words in str(error)


MEASURED = """
import re, sys, threading
from pathlib import Path
from sealrun_agent.image.stream import CHUNK_BYTES, decompressed

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def chunks(path):
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk

def read(path):
    together.wait()
    sys.stderr.write(f"{sum(map(len, decompressed(chunks(path), 'zstd', 'x')))}\\n")

small, large = sys.argv[1:]
for path in (small, large):
    together = threading.Barrier(3)
    before = peak()
    threads = [threading.Thread(target=read, args=(path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(peak() - before)
"""


def test_three_layers_take_one_large_window_or_three_small_ones(tmp_path: Path) -> None:
    """In MiB, beyond what an agent takes anyway; large is 128 MiB, the most that is taken."""
    size, arguments = 160 << 20, []
    for window_log in (23, 27):
        path = tmp_path / str(window_log)
        path.write_bytes(packed(bytes(size), window_log))
        arguments.append(str(path))
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *arguments],
        capture_output=True, check=True, text=True, env={**os.environ, "PYTHONPATH": path},
    )  # fmt: skip
    assert done.stderr.split() == [str(size)] * 6
    small, large = (int(grown) / 1024 for grown in done.stdout.split())
    assert 3 * 8 <= small < 3 * (8 + 3)
    assert 128 - 3 * 8 - 3 * 3 < large < 128 + 3 * 3
