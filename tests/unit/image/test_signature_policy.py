"""policy.json, payloads and identities: read, refused, and nothing but our error comes out."""

import base64
import json

import pytest
from fixtures.hostile import a_value, bounded, changed, spliced
from fixtures.signing import ecdsa_key, payload, pem, sign
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.errors import VerifyError
from sealrun_agent.image.identity import MATCH_REPO_DIGEST_OR_EXACT, Identity
from sealrun_agent.image.openpgp import NotSigned, dearmored
from sealrun_agent.image.reference import parse as parse_reference
from sealrun_agent.image.signature import Sigstore, Subject, check_sigstore
from sealrun_agent.image.signature_policy import Accept, Reject, Signed, parse
from sealrun_protocol.errors import ErrorCode

DIGEST = "sha256:" + "1" * 64
KEY_DATA = base64.b64encode(b"key").decode()
SIGSTORE = {"type": "sigstoreSigned", "keyData": KEY_DATA, "signedIdentity": {"type": "matchRepository"}}  # fmt: skip
GPG = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "kbs:///a/b/c"}
POLICY = {
    "default": [{"type": "reject"}],
    "transports": {
        "docker": {"r.example": [SIGSTORE], "*.corp.example": [GPG], "": [{"type": "reject"}, GPG]},
        "dir": {"/tmp": [{"type": "insecureAcceptAnything"}]},
    },
}
KEY = ecdsa_key()
# Made by skopeo 1.18.0.
MADE_BY_SKOPEO = Sigstore(
    b"""{"critical":{"identity":{"docker-reference":"127.0.0.1:5055/bb:sig"},"image":{"docker-manifest-digest":"sha256:82234c4c9692eb22f8d361c5959d2b81d2fd3d0d7cb7f14b99908f33d8795ff6"},"type":"cosign container image signature"},"optional":{"creator":"containers/image 5.34.2","timestamp":1795414740}}""",
    "MEYCIQD13uUY6f5Y6jiMsnA0qlZxB45rLjIdAJeUvRBYuHR66gIhAL1lyez2Qi1Ji3HyB64ZMId8yNJfp0BBvtmpVgVU0xYT",
)
SKOPEO_KEY = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEO7jqo9HpscP+QVsV2he1gleopy6V
erWcr22x+yzdd/7vPoZgNCovkoqbHdnHTAoi3pDw9FVXprzUapYE98lriw==
-----END PUBLIC KEY-----
"""
SKOPEO_DIGEST = "sha256:82234c4c9692eb22f8d361c5959d2b81d2fd3d0d7cb7f14b99908f33d8795ff6"


def test_reads() -> None:
    policy = parse(json.dumps(POLICY).encode())
    (found,) = policy.of(parse_reference("r.example/a:1"))
    assert isinstance(found, Signed)
    assert (found.openpgp, found.identity.kind) == (False, "matchRepository")
    (found,) = policy.of(parse_reference("x.y.corp.example:5000/a:1"))
    assert isinstance(found, Signed)
    assert (found.openpgp, found.identity) == (True, MATCH_REPO_DIGEST_OR_EXACT)
    assert policy.of(parse_reference("corp.example/a:1"))[0] == Reject()
    bare = parse(b'{"default":[{"type":"insecureAcceptAnything"}]}')
    assert bare.of(parse_reference("r.example/a")) == (Accept(),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON"),
        ("[]", "the policy is not an object"),
        ("{}", "default is missing"),
        ('{"default":[]}', "at least one"),
        ('{"default":[{"type":"reject"}],"default":[{"type":"reject"}]}', "twice"),
        ('{"default":[{"type":"reject"}],"transport":{}}', "unknown member 'transport'"),
        ('{"default":[{"type":"reject","x":1}]}', "unknown member 'x'"),
        ('{"default":[{"type":"accept"}]}', "unknown requirement"),
        ('{"default":[{"type":"signedBy","keyData":"AA=="}]}', "keyType is missing"),
        ('{"default":[{"type":"signedBy","keyType":"X509","keyData":"AA=="}]}', "not GPGKeys"),
        ('{"default":[{"type":"signedBy","keyType":"GPGKeys"}]}', "exactly one of"),
        ('{"default":[{"type":"sigstoreSigned","keyData":"AA==","keyPath":"kbs:///a/b/c"}]}', "exactly one"),
        ('{"default":[{"type":"sigstoreSigned","keyPath":"/etc/key"}]}', "names a file"),
        ('{"default":[{"type":"sigstoreSigned","keyData":"!"}]}', "not base64"),
        ('{"default":[{"type":"sigstoreSigned","fulcio":{}}]}', "fulcio: signatures without keys"),
        ('{"default":[{"type":"sigstoreSigned","keyData":"AA==","rekorPublicKeyData":"x"}]}', "rekor"),
        ('{"default":[{"type":"signedBaseLayer"}]}', "unknown requirement"),
        ('{"default":[{"type":"sigstoreSigned","keyData":"AA==","signedIdentity":{"type":"x"}}]}', "signedIdentity"),
        ('{"default":[{"type":"sigstoreSigned","keyData":"AA==","signedIdentity":{"type":"exactReference","dockerReference":"r.example/a"}}]}', "whole reference"),
        ('{"default":[{"type":"sigstoreSigned","keyData":"AA==","signedIdentity":{"type":"remapIdentity","prefix":"a"}}]}', "signedPrefix is missing"),
        ("[" * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_policies_that_are_refused(text: str, said: str) -> None:
    with pytest.raises(VerifyError, match=said) as caught:
        parse(text.encode())
    assert caught.value.code is ErrorCode.SIGNATURE_POLICY_INVALID


@bounded
@given(
    changed(POLICY).map(lambda d: json.dumps(d).encode())
    | spliced(json.dumps(POLICY).encode())
    | changed(SIGSTORE).map(lambda r: json.dumps({"default": [r]}).encode())
    | st.binary(max_size=40)
)
def test_any_policy_is_read_or_refused(text: bytes) -> None:
    try:
        policy = parse(text)
        assert policy.of(parse_reference("r.example/a/b:1"))
    except VerifyError as error:
        assert error.code is ErrorCode.SIGNATURE_POLICY_INVALID
        assert str(error).isprintable()


@bounded
@given(
    spliced(payload("r.example/a:1", DIGEST)) | a_value.map(lambda v: json.dumps(v).encode()),
    st.text(max_size=20) | st.none(),
)
def test_any_payload_is_refused_in_our_words(data: bytes, signature: str | None) -> None:
    subject = Subject(parse_reference("r.example/a:1"), DIGEST, MATCH_REPO_DIGEST_OR_EXACT)
    try:
        check_sigstore(Sigstore(data, signature or sign(KEY, data)), pem(KEY), subject)
    except NotSigned as error:
        assert str(error).isprintable()
    else:
        signed = json.loads(data)["critical"]
        assert signed["image"]["docker-manifest-digest"] == DIGEST
        assert signed["identity"]["docker-reference"] == "r.example/a:1"


def test_a_signature_of_skopeo_s() -> None:
    def check(reference: str, digest: str, key: bytes = SKOPEO_KEY) -> None:
        subject = Subject(parse_reference(reference), digest, MATCH_REPO_DIGEST_OR_EXACT)
        check_sigstore(MADE_BY_SKOPEO, key, subject)

    check("127.0.0.1:5055/bb:sig", SKOPEO_DIGEST)
    for reference, digest, key, said in (
        ("127.0.0.1:5055/bb:other", SKOPEO_DIGEST, SKOPEO_KEY, "does not accept"),
        ("127.0.0.1:5055/bb:sig", DIGEST, SKOPEO_KEY, "not for this digest"),
        ("127.0.0.1:5055/bb:sig", SKOPEO_DIGEST, pem(KEY), "not by the policy's key"),
    ):
        with pytest.raises(NotSigned, match=said):
            check(reference, digest, key)


@given(st.text(max_size=60))
def test_any_signed_name_is_compared(name: str) -> None:
    for kind in ("matchExact", "matchRepoDigestOrExact", "matchRepository"):
        Identity(kind).matches(parse_reference("r.example/a:1"), name)


def test_a_digest_is_matched_by_any_tag_of_the_repository() -> None:
    image = parse_reference(f"r.example/a:5@{DIGEST}")
    assert MATCH_REPO_DIGEST_OR_EXACT.matches(image, "r.example/a:1")
    assert not MATCH_REPO_DIGEST_OR_EXACT.matches(image, "r.example/a")
    assert not MATCH_REPO_DIGEST_OR_EXACT.matches(image, "r.example/b:1")


def test_armor() -> None:
    block = b"-----BEGIN PGP PUBLIC KEY BLOCK-----\r\nVersion: x\r\n\r\nYWJj\r\n=abcd\r\n-----END PGP PUBLIC KEY BLOCK-----\n"
    assert dearmored(block * 2) == b"abcabc"
    assert dearmored(b"\x98binary") == b"\x98binary"
    with pytest.raises(NotSigned):
        dearmored(block.replace(b"YWJj", b"Y!"))
