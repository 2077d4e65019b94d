"""A registry that lies, stalls, floods and tampers: each time one clear error, and nothing is left."""

import gzip
import json
import random
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from fixtures import encryption, layers
from fixtures.pulling import Puller
from sealrun_agent.errors import AgentError, VerifyError
from sealrun_agent.image import retry
from sealrun_agent.image.pull import Image, ImagePolicy
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode, Phase
from simulators import registry as simulators
from simulators.registry import Answer, Request, Simulator, blob_path, manifest_path

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)
CONTENT = random.Random(1).randbytes(200_000) + b"content " * 10_000
TAR = layers.tar([layers.directory("etc"), layers.file("etc/file", CONTENT)])
OTHER = layers.tar([layers.file("other", b"other " * 10_000)])
BLOB = layers.compress(TAR, "gzip")


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    return Puller(tmp_path / "store", [PEM])


def pulled(puller: Puller, simulator: Simulator, reference: str, **policy: Any) -> Image:
    wishes = {"insecure_unpinned_keys": True, **policy}  # pins have a test of their own
    return puller(reference, ImagePolicy((simulator.address,), **wishes))


def refused(puller: Puller, simulator: Simulator, reference: str, **policy: Any) -> AgentError:
    """The error of a pull that must fail, and leave nothing."""
    wishes = {"insecure_unpinned_keys": True, **policy}
    return puller.refused(reference, ImagePolicy((simulator.address,), **wishes))


def test_the_simulator_can_be_right(puller: Puller, simulator: Simulator) -> None:
    image = pulled(puller, simulator, simulator.publish([TAR, OTHER]))
    assert (Path(image.layers[0]) / "etc/file").read_bytes() == CONTENT
    assert (Path(image.layers[1]) / "other").is_file()
    assert puller.keys_asked == 0
    assert image.digest == layers.digest(simulator.answers[manifest_path("1")].body)


# --- manifests -------------------------------------------------------------------------------------


def test_another_manifest_than_the_digest_asked_for(puller: Puller, simulator: Simulator) -> None:
    simulator.publish([TAR])
    wanted = layers.digest(b"something else")
    simulator.answers[manifest_path(wanted)] = simulator.answers[manifest_path("1")]
    name = f"{simulator.address}/{simulators.REPOSITORY}"
    for reference in (f"{name}@{wanted}", f"{name}:1@{wanted}"):
        error = refused(puller, simulator, reference)
        assert (error.code, error.phase) == (ErrorCode.DIGEST_MISMATCH, Phase.VERIFY)
    assert set(simulator.paths()) == {manifest_path(wanted)}


def test_a_rolled_back_tag_where_the_policy_pins_a_digest(
    puller: Puller, simulator: Simulator
) -> None:
    reference = simulator.publish([TAR])
    pin = f"{reference.rpartition(':')[0]}@{layers.digest(b'the newer manifest')}"
    error = refused(puller, simulator, reference, allowed=(pin,))
    assert error.code is ErrorCode.IMAGE_NOT_ALLOWED
    assert simulator.paths() == [manifest_path("1")]


def test_an_image_that_is_not_allowed_causes_no_traffic(
    puller: Puller, simulator: Simulator
) -> None:
    error = refused(puller, simulator, simulator.publish([TAR]), allowed=("r.example/a",))
    assert error.code is ErrorCode.IMAGE_NOT_ALLOWED
    assert simulator.requests == []


@pytest.mark.parametrize("length", [-1, None])
def test_a_manifest_over_the_limit(
    puller: Puller, simulator: Simulator, length: int | None
) -> None:
    reference = simulator.publish([TAR])
    body = b" " * (limits.MANIFEST_BYTES + 1)
    simulator.answers[manifest_path("1")] = Answer(body, length=length)
    assert refused(puller, simulator, reference).code is ErrorCode.LIMIT_EXCEEDED


def test_a_manifest_without_end(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[manifest_path("1")] = Answer(b" " * 65536, endless=True)
    assert refused(puller, simulator, reference).code is ErrorCode.LIMIT_EXCEEDED


@pytest.mark.parametrize(
    ("head", "again"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"A: b\r\n"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n1;", b"x"),
    ],
    ids=["interim responses", "trailers", "a chunk's extension"],
)
def test_what_is_no_body_has_an_end(
    puller: Puller,
    simulator: Simulator,
    monkeypatch: pytest.MonkeyPatch,
    head: bytes,
    again: bytes,
) -> None:
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    reference = simulator.publish([TAR])
    simulator.answers[manifest_path("1")] = Answer(again * 1000, raw=head, endless=True)
    error = refused(puller, simulator, reference)
    assert error.code is ErrorCode.REGISTRY_PROTOCOL
    assert "got more than 65536 bytes" in str(error)


def test_a_body_of_very_many_chunks(puller: Puller, simulator: Simulator) -> None:
    """Their sizes are no headers: together they may be longer than those."""
    reference = simulator.publish([TAR])
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = (BLOB[start : start + 5] for start in range(0, len(BLOB), 5))
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    simulator.answers[blob_path(BLOB)] = Answer(raw=head + chunks + b"0\r\n\r\n")
    pulled(puller, simulator, reference)


def _index(digest: str) -> bytes:
    platform = {"os": "linux", "architecture": layers.ARCHITECTURE}
    entry = {"digest": digest, "size": 1, "mediaType": simulators.INDEX_TYPE, "platform": platform}
    return json.dumps(
        {"schemaVersion": 2, "mediaType": simulators.INDEX_TYPE, "manifests": [entry]}
    ).encode()


def test_indexes_of_indexes(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    digest = layers.digest(simulator.answers[manifest_path("1")].body)
    for depth in range(1, limits.INDEX_DEPTH + 2):
        digest = simulator.manifest(_index(digest), "1", content_type=simulators.INDEX_TYPE)
        if depth <= limits.INDEX_DEPTH:
            pulled(Puller(puller.root.with_name(str(depth))), simulator, reference)
    assert refused(puller, simulator, reference).code is ErrorCode.LIMIT_EXCEEDED


def test_an_index_that_names_itself(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    claimed = layers.digest(b"itself")
    loop = Answer(_index(claimed), headers={"Content-Type": simulators.INDEX_TYPE})
    simulator.answers[manifest_path("1")] = simulator.answers[manifest_path(claimed)] = loop
    assert refused(puller, simulator, reference).code is ErrorCode.DIGEST_MISMATCH


def test_a_manifest_that_is_an_index_too(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR], change=lambda document: document.update(manifests=[]))
    assert refused(puller, simulator, reference).code is ErrorCode.MANIFEST_INVALID


def test_manifests_of_other_things(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    for body, content_type in ((b"<html>", "text/html"), (b"{}", simulators.MANIFEST_TYPE)):
        simulator.manifest(body, "1", content_type=content_type)
        assert refused(puller, simulator, reference).code is ErrorCode.MANIFEST_INVALID
    simulator.manifest(b'{"schemaVersion":2}', "1", content_type="application/x-wheel")
    assert refused(puller, simulator, reference).code is ErrorCode.MEDIA_TYPE_UNSUPPORTED


def test_another_configuration(puller: Puller, simulator: Simulator) -> None:
    config = layers.config([TAR])
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(config)] = Answer(config.replace(b"linux", b"linuX"))
    assert refused(puller, simulator, reference).code is ErrorCode.DIGEST_MISMATCH
    simulator.answers[blob_path(config)] = Answer(config + b" ")
    assert refused(puller, simulator, reference).code is ErrorCode.DIGEST_MISMATCH
    assert blob_path(BLOB) not in simulator.paths()


# --- blobs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        Answer(BLOB[:-1] + b"x"),
        Answer(b"\0" * len(BLOB)),
        Answer(BLOB[:-1]),
        Answer(BLOB + b"x"),
        Answer(BLOB * 1000, length=None),
        Answer(BLOB, endless=True),
        Answer(gzip.compress(TAR, 1)),
        Answer(b""),
    ],
    ids=["changed", "zeros", "short", "long", "longer", "endless", "recompressed", "empty"],
)
def test_other_bytes_than_the_digest_says(
    puller: Puller, simulator: Simulator, answer: Answer
) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = answer
    error = refused(puller, simulator, reference)
    assert error.code is ErrorCode.DIGEST_MISMATCH
    assert layers.digest(BLOB) in str(error)


def test_a_blob_that_is_always_cut(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = Answer(BLOB, cut=100)
    error = refused(puller, simulator, reference)
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
    assert simulator.address in str(error)
    assert len(simulator.requests) < 15


def _ranged(request: Request, size: int) -> Answer:
    """What a registry with ranges says, `size` bytes at a time before the connection is cut."""
    asked = request.headers.get("range")
    if asked is None:
        return Answer(BLOB, cut=size)
    start = int(asked.removeprefix("bytes=").removesuffix("-"))
    content_range = {"Content-Range": f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}"}
    return Answer(BLOB[start:], 206, content_range, cut=size)


def test_a_cut_blob_is_continued(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    third = len(BLOB) // 3 + 1
    simulator.answers[blob_path(BLOB)] = lambda request: _ranged(request, third)
    pulled(puller, simulator, reference)
    ranges = [request.headers.get("range") for request in simulator.requests[2:]]
    assert ranges == [None, f"bytes={third}-", f"bytes={2 * third}-"]


def test_a_cut_blob_of_a_registry_without_ranges(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    cuts = iter([100, 200])
    simulator.answers[blob_path(BLOB)] = lambda _: Answer(BLOB, cut=next(cuts, None))
    image = pulled(puller, simulator, reference)
    assert (Path(image.layers[0]) / "etc/file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    "answer",
    [
        Answer(BLOB, 206, {"Content-Range": f"bytes 0-{len(BLOB) - 1}/{len(BLOB)}"}),
        Answer(BLOB, 206),
        Answer(b"", 416),
        Answer(b"", 204),
    ],
)
def test_another_range(puller: Puller, simulator: Simulator, answer: Answer) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = lambda request: (
        answer if "range" in request.headers else Answer(BLOB, cut=100)
    )
    assert refused(puller, simulator, reference).code is ErrorCode.REGISTRY_PROTOCOL


def test_swapped_layers(puller: Puller, simulator: Simulator) -> None:
    """The manifest's layers in another order than the configuration's diff_ids."""
    reference = simulator.publish(
        [TAR, OTHER], change=lambda document: document["layers"].reverse()
    )
    assert refused(puller, simulator, reference).code is ErrorCode.DIGEST_MISMATCH


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
def test_another_tar_than_the_diff_id(
    puller: Puller, simulator: Simulator, compression: str
) -> None:
    blob = layers.compress(OTHER, compression)
    reference = simulator.publish([TAR], compression=compression, blobs=[blob])
    error = refused(puller, simulator, reference)
    assert error.code is ErrorCode.DIGEST_MISMATCH
    assert layers.digest(TAR) in str(error)


def test_a_later_layer_that_fails_takes_the_earlier_ones_with_it(
    puller: Puller, simulator: Simulator
) -> None:
    blobs = [BLOB, layers.compress(TAR, "gzip")]
    reference = simulator.publish([TAR, OTHER], blobs=blobs)
    assert refused(puller, simulator, reference).code is ErrorCode.DIGEST_MISMATCH
    assert simulator.paths().count(blob_path(BLOB)) == 2


@pytest.mark.parametrize("compression", ["gzip", "zstd"])
def test_bombs(
    puller: Puller, simulator: Simulator, compression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "LAYER_TAR_BYTES", 20 << 20)
    bomb = layers.tar([layers.file(str(number), bytes(5 << 20)) for number in range(8)])
    reference = simulator.publish([bomb], compression=compression)
    error = refused(puller, simulator, reference)
    assert error.code is ErrorCode.LIMIT_EXCEEDED
    assert "20971520" in str(error)


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ([layers.file("../outside", b"x")], ErrorCode.LAYER_UNSAFE),
        ([layers.file("a/../../outside", b"x")], ErrorCode.LAYER_UNSAFE),
        ([layers.link("link", "../../outside")], ErrorCode.LAYER_UNSAFE),
        ([layers.file(".wh...")], ErrorCode.LAYER_UNSAFE),
        (
            [layers.symlink("up", "../.."), layers.link("link", "up/outside")],
            ErrorCode.LAYER_MALFORMED,
        ),
        ([layers.file("x"), layers.file("x/y")], ErrorCode.LAYER_MALFORMED),
        ([layers.member("odd", b"Q")], ErrorCode.LAYER_MALFORMED),
    ],
)
def test_tars_that_lead_out(
    puller: Puller, simulator: Simulator, members: list[layers.Member], code: ErrorCode
) -> None:
    outside = puller.root / "outside"
    outside.write_text("untouched")
    lowest = layers.tar([layers.directory("d")])
    assert refused(puller, simulator, simulator.publish([lowest, layers.tar(members)])).code is code
    assert outside.read_text() == "untouched"
    assert outside.stat().st_nlink == 1


def test_a_symlink_out_of_the_layer_leads_nowhere(
    puller: Puller, simulator: Simulator, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    tar = layers.tar(
        [
            layers.symlink("link", str(tmp_path / "outside")),
            layers.file("link/file", b"x"),
            layers.device("link/device", tarfile.CHRTYPE, 1, 3),
        ]
    )
    image = pulled(puller, simulator, simulator.publish([tar]))
    assert list((tmp_path / "outside").iterdir()) == []
    inside = Path(image.layers[0]) / str(tmp_path / "outside").lstrip("/")
    assert (inside / "file").read_bytes() == b"x"


# --- encrypted layers ------------------------------------------------------------------------------


def sealed(
    simulator: Simulator,
    damage: Callable[[bytes], bytes] = lambda ciphertext: ciphertext,
    *,
    compression: str = "gzip",
    key: rsa.RSAPrivateKey = KEY,
    **public: Any,
) -> str:
    """Offer an encrypted image whose ciphertext was changed before the manifest was written, so that
    every digest fits."""
    blob, annotations = encryption.encrypted(layers.compress(TAR, compression), key, **public)
    return simulator.publish(
        [TAR], compression=compression, blobs=[damage(blob)], annotations=[annotations]
    )


def test_an_encrypted_layer(puller: Puller, simulator: Simulator) -> None:
    image = pulled(puller, simulator, sealed(simulator))
    assert (Path(image.layers[0]) / "etc/file").read_bytes() == CONTENT
    assert puller.keys_asked == 1
    pulled(puller, simulator, sealed(simulator))
    assert puller.keys_asked == 1  # the layer is there, no key is needed


def test_a_decrypted_layer_below_another_program(puller: Puller, simulator: Simulator) -> None:
    """It is here, and its diff_id is no secret: an image that the tenant did not pin does not get it."""
    pulled(puller, simulator, sealed(simulator))
    plain = simulator.publish([TAR, OTHER])
    with pytest.raises(VerifyError, match="do not name its digest") as caught:
        pulled(puller, simulator, plain, insecure_unpinned_keys=False)
    assert caught.value.code is ErrorCode.IMAGE_NOT_ALLOWED
    again = sealed(simulator)
    with pytest.raises(VerifyError, match="do not name its digest"):
        pulled(puller, simulator, again, insecure_unpinned_keys=False)
    pulled(puller, simulator, simulator.publish([OTHER]), insecure_unpinned_keys=False)


def _flip(position: int) -> Callable[[bytes], bytes]:
    def damage(ciphertext: bytes) -> bytes:
        changed = bytearray(ciphertext)
        changed[position] ^= 1
        return bytes(changed)

    return damage


@pytest.mark.parametrize("compression", ["", "gzip", "zstd"])
@pytest.mark.parametrize(
    "damage",
    [_flip(0), _flip(100_000), _flip(-1), lambda c: c[:-1], lambda c: c + b"\0", lambda _: b""],
    ids=["first", "middle", "last", "short", "long", "empty"],
)
def test_tampered_ciphertext(
    puller: Puller, simulator: Simulator, damage: Callable[[bytes], bytes], compression: str
) -> None:
    error = refused(puller, simulator, sealed(simulator, damage, compression=compression))
    assert (error.code, error.phase) == (ErrorCode.LAYER_TAMPERED, Phase.DECRYPT)


def test_another_hmac(puller: Puller, simulator: Simulator) -> None:
    reference = sealed(simulator, hmac=encryption.b64(bytes(32)))
    assert refused(puller, simulator, reference).code is ErrorCode.LAYER_TAMPERED


def test_an_unauthenticated_cipher(puller: Puller, simulator: Simulator) -> None:
    reference = sealed(simulator, cipher="AES_256_CTR")
    assert refused(puller, simulator, reference).code is ErrorCode.ENCRYPTION_INVALID


def test_an_encrypted_layer_that_is_called_plain(puller: Puller, simulator: Simulator) -> None:
    blob, _ = encryption.encrypted(BLOB, KEY)
    reference = simulator.publish([TAR], blobs=[blob])
    assert refused(puller, simulator, reference).code is ErrorCode.LAYER_MALFORMED
    assert puller.keys_asked == 0


def test_a_plain_layer_that_is_called_encrypted(puller: Puller, simulator: Simulator) -> None:
    _, annotations = encryption.encrypted(BLOB, KEY)
    reference = simulator.publish([TAR], annotations=[annotations])
    assert refused(puller, simulator, reference).code is ErrorCode.LAYER_TAMPERED


def test_wrong_and_missing_keys_cost_no_traffic(puller: Puller, simulator: Simulator) -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    reference = sealed(simulator, key=other)
    assert refused(puller, simulator, reference).code is ErrorCode.KEY_WRONG
    puller.keys = []
    assert refused(puller, simulator, reference).code is ErrorCode.KEY_NOT_CONFIGURED
    assert not [path for path in simulator.paths() if path.count("/blobs/") and path != blob_path(
        layers.config([TAR]))]  # fmt: skip


def test_a_tar_that_leads_out_is_no_better_encrypted(puller: Puller, simulator: Simulator) -> None:
    tar = layers.tar([layers.file("../outside", b"x")])
    blob, annotations = encryption.encrypted(layers.compress(tar, "gzip"), KEY)
    reference = simulator.publish([tar], blobs=[blob], annotations=[annotations])
    assert refused(puller, simulator, reference).code is ErrorCode.LAYER_UNSAFE


def test_what_the_broker_says_passes_through(puller: Puller, simulator: Simulator) -> None:
    class BrokerSaysNo(AgentError):
        phase = Phase.ATTEST

    def no() -> list[bytes]:
        raise BrokerSaysNo(ErrorCode.KEY_DENIED, "denied")

    reference = sealed(simulator)
    puller.keys = type("Denied", (), {"__iter__": no, "__len__": lambda _: no()})()
    error = refused(puller, simulator, reference)
    assert (error.code, error.phase) == (ErrorCode.KEY_DENIED, Phase.ATTEST)


# --- silence ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [manifest_path("1"), blob_path(BLOB), "/token"])
def test_a_slow_drip_is_ended(
    puller: Puller, simulator: Simulator, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(limits, "HTTP_SECONDS", 1.0)
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    reference = simulator.publish([TAR])
    if what == "/token":
        simulator.guard(f'Bearer realm="http://{simulator.address}/token"', lambda _: False)
    simulator.answers[what] = Answer(b" " * 1000, drip=0.05, length=len(BLOB))
    start = time.monotonic()
    error = refused(puller, simulator, reference)
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
    assert "slowly" in str(error)
    assert (layers.digest(BLOB) in str(error)) is ("/blobs/" in what)
    assert time.monotonic() - start < 30


def test_silence_is_ended(
    puller: Puller, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HTTP_SECONDS", 0.3)
    monkeypatch.setattr(retry, "ATTEMPTS", 1)
    reference = simulator.publish([TAR])
    simulator.answers[manifest_path("1")] = Answer(b"  ", drip=3)
    error = refused(puller, simulator, reference)
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
    assert "timed out" in str(error)
