"""Several layers at once: their order where it matters, and their common end where one fails."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from fixtures import layers
from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image.filling import LAYERS_AT_ONCE, Filling
from sealrun_agent.image.manifest import Descriptor, Layer, Manifest
from sealrun_agent.image.store import Store
from sealrun_agent.image.stream import CHUNK_BYTES, Chunks
from sealrun_protocol.errors import ErrorCode

pytestmark = pytest.mark.root

LARGE = bytes(3 << 20)
SECONDS = 20
Gate = Callable[[], None]


class Source:
    """Blobs from memory. before: what is done before a blob's last chunk. asked: digests, in order."""

    asked: list[str]

    def __init__(self, blobs: Mapping[str, bytes], before: Mapping[str, Gate]) -> None:
        self.blobs, self.before, self.asked = blobs, before, []
        self.closed = 0

    def blob(self, descriptor: Descriptor, what: str) -> Chunks:
        self.asked.append(descriptor.digest)
        data = self.blobs[descriptor.digest]
        starts = range(0, len(data), CHUNK_BYTES)
        for start in starts:
            if start == starts[-1]:
                self.before.get(descriptor.digest, lambda: None)()
            yield data[start : start + CHUNK_BYTES]

    def second_chance(self, descriptor: Descriptor) -> bool:
        return False

    def is_cached(self, descriptor: Descriptor) -> bool:
        return False

    def close(self) -> None:
        self.closed += 1


def threads() -> list[str]:
    """Ours that are alive; a test before this one may have left others in this process."""
    alive = [thread.name for thread in threading.enumerate()]
    return [name for name in alive if name in ("layer", "ahead")]


def fill(
    directory: Path, tars: list[bytes], before: Mapping[int, Gate], wrong: int | None = None
) -> tuple[list[Path], Source]:
    """Fill and publish; before: by a layer's number; wrong: the layer with another diff_id."""
    digests = [layers.digest(tar) for tar in tars]
    described = [Descriptor(one, len(tar)) for one, tar in zip(digests, tars, strict=True)]
    manifest = Manifest(described[0], tuple(Layer(one, "", False) for one in described))
    source = Source(
        dict(zip(digests, tars, strict=True)), {digests[n]: gate for n, gate in before.items()}
    )
    diff_ids = list(digests)
    if wrong is not None:
        diff_ids[wrong] = layers.digest(b"")
    with Store(str(directory)).claim(digests) as claim:
        filling = Filling(manifest, diff_ids, {}, claim, lambda *_: None)
        filling.run(range(len(tars)), source, lambda: source)
        return [Path(layer) for layer in claim.publish()], source


def waiting_for(event: threading.Event) -> Gate:
    def wait() -> None:
        assert event.wait(SECONDS)

    return wait


def test_a_layer_waits_for_what_it_needs_of_a_lower_one(tmp_path: Path) -> None:
    """The upper layer's blob is there first; its link leads to what comes at the lower one's end."""
    upper_fetched = threading.Event()
    lower = layers.tar([layers.directory("d", mode=0o711), layers.file("padding", LARGE),
                        layers.file("d/file", b"1", mode=0o640)])  # fmt: skip
    upper = layers.tar([layers.file("padding", LARGE), layers.link("d/link", "d/file")])
    filled, source = fill(
        tmp_path, [lower, upper], {0: waiting_for(upper_fetched), 1: upper_fetched.set}
    )
    link = filled[1] / "d/link"
    assert (link.read_bytes(), link.stat().st_mode & 0o777, link.stat().st_nlink) == (
        b"1",
        0o640,
        2,
    )
    assert (filled[1] / "d").stat().st_mode & 0o777 == 0o711
    assert source.closed == 1  # the second one; the first is the caller's


def test_so_many_at_once_and_lowest_first(tmp_path: Path) -> None:
    tars = [layers.tar([layers.file(str(n), LARGE)]) for n in range(LAYERS_AT_ONCE + 2)]
    together = threading.Barrier(LAYERS_AT_ONCE)
    gates = {number: lambda: together.wait(SECONDS) and None for number in range(LAYERS_AT_ONCE)}
    filled, source = fill(tmp_path, tars, gates)
    assert len(filled) == len(tars)
    at_first = {layers.digest(tar) for tar in tars[:LAYERS_AT_ONCE]}
    assert set(source.asked[:LAYERS_AT_ONCE]) == at_first
    assert threads() == []


def test_small_layers_need_no_other_connection(tmp_path: Path) -> None:
    tars = [layers.tar([layers.file(str(n), b"1")]) for n in range(4)]
    _, source = fill(tmp_path, tars, {})
    assert source.asked == [layers.digest(tar) for tar in tars]
    assert source.closed == 0


@pytest.mark.parametrize("wrong", [0, 1])
def test_a_layer_that_fails_ends_the_others(wrong: int, tmp_path: Path) -> None:
    """The other one's last chunk comes later: it is abandoned there."""
    tars = [layers.tar([layers.file(str(n), LARGE)]) for n in range(2)]
    with pytest.raises(VerifyError) as caught:
        fill(tmp_path, tars, {1 - wrong: lambda: time.sleep(0.5)}, wrong)
    assert caught.value.code is ErrorCode.DIGEST_MISMATCH
    assert layers.digest(tars[wrong]) in str(caught.value)
    assert threads() == []
    assert [*tmp_path.glob("staging/*"), *tmp_path.glob("layers/*")] == []


def test_whatever_goes_wrong_in_a_thread_is_raised(tmp_path: Path) -> None:
    def no() -> None:
        raise PullError(ErrorCode.REGISTRY_UNREACHABLE, "cut")

    tars = [layers.tar([layers.file(str(n), LARGE)]) for n in range(3)]
    with pytest.raises(PullError, match="cut"):
        fill(tmp_path, tars, {2: no})
    assert threads() == []
