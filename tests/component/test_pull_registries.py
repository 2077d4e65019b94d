"""Rate limits, blobs that are continued, and mirrors."""

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import layers
from fixtures.pulling import Puller
from sealrun_agent.errors import PullError
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.registries import parse
from simulators import registry as simulators
from simulators.registry import Answer, Request, Simulator, blob_path, manifest_path

TAR = layers.tar([layers.file("file", random.Random(3).randbytes(300_000))])
BLOB = layers.compress(TAR, "gzip")
NAME = simulators.REPOSITORY


@pytest.fixture
def mirror() -> Iterator[Simulator]:
    with simulators.serve() as simulator:
        yield simulator


def test_a_registry_that_asks_to_wait(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    manifest = simulator.answers[manifest_path("1")]
    assert isinstance(manifest, Answer)
    answers = iter([Answer(b"", 429, {"Retry-After": "1"}), manifest])
    simulator.answers[manifest_path("1")] = lambda _: next(answers)
    start = time.monotonic()
    puller(reference, ImagePolicy((simulator.address,)))
    assert time.monotonic() - start >= 1


def test_a_registry_that_asks_to_wait_for_too_long(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[manifest_path("1")] = Answer(b"", 429, {"Retry-After": "3600"})
    error = puller.refused(reference, ImagePolicy((simulator.address,)))
    assert error.code is ErrorCode.REGISTRY_BUSY
    assert f"{simulator.address} answers 429, and asks to wait 3600 s" in str(error)
    assert len(simulator.requests) == 1


class Ranges:
    """A blob that is cut after each `part` bytes. kind: how the rest is answered."""

    def __init__(self, kind: str, part: int = 100_000) -> None:
        self.kind, self.part = kind, part
        self.asked: list[Request] = []

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request)
        wanted = request.headers.get("range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": '"the-tag"'}
        if self.kind == "ignores" or not start:
            return Answer(BLOB, 200, headers, cut=start + self.part if self.cuts(start) else None)
        end, total = len(BLOB), len(BLOB)
        if self.kind in ("short", "byte"):
            end = min(end, start + (self.part if self.kind == "short" else 1))
        headers["Content-Range"] = {
            "total": f"bytes {start}-{end - 1}/{total + 1}",
            "start": f"bytes {start - 1}-{end - 1}/{total}",
            "beyond": f"bytes {start}-{end}/{total}",
            "none": "",
            "star": f"bytes {start}-{end - 1}/*",
        }.get(self.kind, f"bytes {start}-{end - 1}/{total}")
        body = BLOB[start:end]
        cut = self.part if self.kind == "cuts" and self.cuts(start) else None
        return Answer(body, 206, headers, cut=cut)

    def cuts(self, start: int) -> bool:
        return start + self.part < len(BLOB)


@pytest.mark.parametrize("kind", ["cuts", "ignores", "short", "star", "whole"])
def test_a_blob_that_is_cut_is_continued(puller: Puller, simulator: Simulator, kind: str) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = ranges = Ranges(kind)
    image = puller(reference, ImagePolicy((simulator.address,)))
    assert (Path(image.layers[0]) / "file").stat().st_size == 300_000
    assert len(ranges.asked) > 1
    assert all(request.headers["if-range"] == '"the-tag"' for request in ranges.asked[1:])
    assert "if-range" not in ranges.asked[0].headers


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("total", ErrorCode.DIGEST_MISMATCH),
        ("beyond", ErrorCode.DIGEST_MISMATCH),
        ("start", ErrorCode.REGISTRY_PROTOCOL),
        ("none", ErrorCode.REGISTRY_PROTOCOL),
        ("byte", ErrorCode.REGISTRY_PROTOCOL),
    ],
)
def test_ranges_that_lie(puller: Puller, simulator: Simulator, kind: str, code: ErrorCode) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = ranges = Ranges(kind)
    assert puller.refused(reference, ImagePolicy((simulator.address,))).code is code
    assert len(ranges.asked) < 10


def test_a_registry_that_drips_connections_is_given_up(
    puller: Puller, simulator: Simulator
) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = ranges = Ranges("cuts", part=10)
    error = puller.refused(reference, ImagePolicy((simulator.address,)))
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
    assert simulator.address in str(error)
    assert len(ranges.asked) < 10


# --- mirrors ---------------------------------------------------------------------------------------


def mirrored(simulator: Simulator, mirror: Simulator, **more: Any) -> ImagePolicy:
    entry: dict[str, Any] = {
        "prefix": "r.example/demo",
        "location": f"{simulator.address}/demo",
        "insecure": True,
        "mirror": [{"location": f"{mirror.address}/demo", "insecure": True}],
    }
    return ImagePolicy(registries=parse({"registry": [entry | more]}))


def test_a_mirror_that_lies_is_passed_over(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    for one in (simulator, mirror):
        one.publish([TAR])
    mirror.answers[blob_path(BLOB)] = Answer(bytes(len(BLOB)))
    image = puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert (Path(image.layers[0]) / "file").stat().st_size == 300_000
    assert blob_path(BLOB) in simulator.paths()


def test_a_mirror_serves(puller: Puller, simulator: Simulator, mirror: Simulator) -> None:
    mirror.publish([TAR])
    image = puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert image.reference == "r.example/demo/image:1"
    assert simulator.requests == []


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_mirror_that_has_nothing(
    puller: Puller, simulator: Simulator, mirror: Simulator, status: int
) -> None:
    simulator.publish([TAR])
    mirror.answers[manifest_path("1")] = Answer(b"", status)
    puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert mirror.requests


def test_the_registry_continues_what_a_mirror_breaks_off(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    simulator.publish([TAR])
    mirror.publish([TAR])
    mirror.answers[blob_path(BLOB)] = lambda r: (
        Answer(b"", 404) if "range" in r.headers else Answer(BLOB, cut=100_000)
    )
    simulator.answers[blob_path(BLOB)] = ranges = Ranges("whole")
    puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert [request.headers["range"] for request in ranges.asked] == ["bytes=100000-"]


def test_a_mirror_that_lies_about_a_digest_counts_as_missing(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    simulator.publish([TAR])
    manifest = simulator.answers[manifest_path("1")]
    assert isinstance(manifest, Answer)
    digest = layers.digest(manifest.body)
    mirror.answers[manifest_path(digest)] = Answer(b'{"schemaVersion":2}')
    assert puller(f"r.example/demo/image@{digest}", mirrored(simulator, mirror)).digest == digest


def test_all_that_was_tried_is_told(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    error = puller.refused("r.example/demo/image:1", mirrored(simulator, mirror))
    assert error.code is ErrorCode.IMAGE_NOT_FOUND
    assert mirror.address in str(error)
    assert simulator.address in str(error)


def test_a_blocked_registry_is_not_asked(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    policy = mirrored(simulator, mirror, blocked=True)
    assert puller.refused("r.example/demo/image:1", policy).code is ErrorCode.REGISTRY_BLOCKED
    assert simulator.requests == mirror.requests == []


def test_short_names(puller: Puller, simulator: Simulator) -> None:
    two = parse({"unqualified-search-registries": ["a.example", "b.example"]})
    with pytest.raises(PullError, match=r"'app' could be of any of 'a\.example, b\.example'"):
        puller("app:1", ImagePolicy(registries=two))
    simulator.publish([TAR])
    name = f"{simulator.address}/{NAME}"
    alias = ImagePolicy((simulator.address,), registries=parse({"aliases": {"app": name}}))
    assert puller("app:1", alias).reference == f"{name}:1"
