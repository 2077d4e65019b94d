"""Signed tokens: one key, one algorithm, one lifetime."""

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st
from sealrun_broker import base64url, jwt

ED25519 = ed25519.Ed25519PrivateKey.generate()
P256 = ec.generate_private_key(ec.SECP256R1())
CLAIMS: dict[str, Any] = {"role": "admin", "iat": 1000, "exp": 2000}

# RFC 8037, appendix A: the key, and a JWS that it signed.
RFC_8037_KEY = base64url.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")
RFC_8037_JWS = (
    "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc."
    "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
)


@pytest.mark.parametrize("key", [ED25519, P256], ids=["EdDSA", "ES256"])
def test_what_was_signed_is_verified(key: jwt.PrivateKey) -> None:
    token = jwt.sign(CLAIMS, key, jwk={"a": "b"})
    assert jwt.verify(token, key.public_key(), now=1500) == CLAIMS
    header = json.loads(base64url.decode(token.partition(".")[0]))
    assert list(header) == ["typ", "alg", "jwk"]
    assert len(base64url.decode(token.rpartition(".")[2])) == 64


@pytest.mark.parametrize(
    ("now", "said"), [(2000, "has expired"), (9999, "has expired"), (900, "not valid yet")]
)
def test_only_in_its_time(now: float, said: str) -> None:
    with pytest.raises(jwt.TokenInvalid, match=said):
        jwt.verify(jwt.sign(CLAIMS, P256), P256.public_key(), now=now)


@pytest.mark.parametrize("claims", [{}, {"exp": "2000"}, {"exp": 2000, "iat": "x"}, {"exp": None}])
def test_no_time_at_all(claims: dict[str, Any]) -> None:
    with pytest.raises(jwt.TokenInvalid, match="when it expires"):
        jwt.verify(jwt.sign(claims, P256), P256.public_key(), now=1500)


@pytest.mark.parametrize("other", [ED25519, ec.generate_private_key(ec.SECP256R1())])
def test_another_key(other: jwt.PrivateKey) -> None:
    with pytest.raises(jwt.TokenInvalid):
        jwt.verify(jwt.sign(CLAIMS, other), P256.public_key(), now=1500)


def forged(header: dict[str, Any], signature: bytes) -> str:
    parts = [json.dumps(header).encode(), json.dumps(CLAIMS).encode(), signature]
    return ".".join(base64url.encode(part) for part in parts)


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "a.b",
        "a.b.c.d",
        "..",
        "é.é.é",
        forged({"alg": "none"}, b""),
        forged({"alg": "HS256"}, bytes(32)),
        forged({"alg": "ES256"}, b""),
        forged({"alg": "ES256"}, bytes(64)),
        forged({"alg": "ES256"}, b"\xff" * 64),
        forged({"alg": ["ES256"]}, bytes(64)),
        "A" * 70000 + ".A.A",
    ],
)
def test_what_nobody_signed(token: str) -> None:
    with pytest.raises(jwt.TokenInvalid):
        jwt.verify(token, P256.public_key(), now=1500)


def test_a_critical_extension_is_not_passed_over() -> None:
    token = jwt.sign(CLAIMS, P256, crit=["x"], x=1)
    with pytest.raises(jwt.TokenInvalid):
        jwt.verify(token, P256.public_key(), now=1500)


def test_the_signature_of_rfc_8037_fits_though_its_payload_is_no_token() -> None:
    key = ed25519.Ed25519PublicKey.from_public_bytes(RFC_8037_KEY)
    with pytest.raises(jwt.TokenInvalid, match="not a signed JWT"):
        jwt.verify(RFC_8037_JWS, key)
    with pytest.raises(jwt.TokenInvalid, match="signature does not match"):
        jwt.verify(RFC_8037_JWS.replace(".hgy", ".hgz"), key)


@given(st.data())
def test_any_change_is_noticed(data: st.DataObject) -> None:
    token = jwt.sign(CLAIMS, ED25519)
    place = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(st.sampled_from("ABCabc019-_."))
    changed = token[:place] + letter + token[place + 1 :]
    try:
        claims = jwt.verify(changed, ED25519.public_key(), now=1500)
    except jwt.TokenInvalid:
        return
    # The last letter of 64 bytes in base64url carries two bits that mean nothing.
    assert claims == CLAIMS
    assert changed[:-1] == token[:-1]
