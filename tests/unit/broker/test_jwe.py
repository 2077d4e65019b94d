"""What the stock client needs byte-exact: the protected header; and which keys are sealed for."""

import json
import re

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from sealrun_broker import base64url
from sealrun_broker.jwe import KeyInvalid, recipient, seal

RSA_KEY = rsa.generate_private_key(65537, 2048)


def ec_jwk(curve: ec.EllipticCurve, name: str) -> dict[str, str]:
    numbers = ec.generate_private_key(curve).public_key().public_numbers()
    size = (curve.key_size + 7) // 8
    return {
        "kty": "EC",
        "crv": name,
        "alg": "ECDH-ES+A256KW",
        "x": base64url.encode(numbers.x.to_bytes(size, "big")),
        "y": base64url.encode(numbers.y.to_bytes(size, "big")),
    }


def rsa_jwk(key: rsa.RSAPrivateKey) -> dict[str, str]:
    numbers = key.public_key().public_numbers()
    return {
        "kty": "RSA",
        "alg": "RSA-OAEP-256",
        "n": base64url.encode(numbers.n.to_bytes((key.key_size + 7) // 8, "big")),
        "e": "AQAB",
    }


P256 = ec_jwk(ec.SECP256R1(), "P-256")


@pytest.mark.parametrize(
    ("jwk", "size"), [(P256, 43), (ec_jwk(ec.SECP521R1(), "P-521"), 88)], ids=["P-256", "P-521"]
)
def test_the_header_of_an_ec_key_is_exact(jwk: dict[str, str], size: int) -> None:
    jwe = json.loads(seal(b"x", recipient(jwk)))
    assert list(jwe) == ["protected", "encrypted_key", "iv", "ciphertext", "tag"]
    header = base64url.decode(jwe["protected"]).decode()
    coordinate = f"[A-Za-z0-9_-]{{{size}}}"
    assert re.fullmatch(
        r'\{"alg":"ECDH-ES\+A256KW","enc":"A256GCM","epk":'
        rf'\{{"crv":"{jwk["crv"]}","kty":"EC","x":"{coordinate}","y":"{coordinate}"\}}\}}',
        header,
    )
    assert len(base64url.decode(jwe["encrypted_key"])) == 40
    assert len(base64url.decode(jwe["iv"])) == 12
    assert len(base64url.decode(jwe["tag"])) == 16


def test_an_rsa_key() -> None:
    jwe = json.loads(seal(b"plaintext", recipient(rsa_jwk(RSA_KEY))))
    assert base64url.decode(jwe["protected"]) == b'{"alg":"RSA-OAEP-256","enc":"A256GCM"}'
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    content_key = RSA_KEY.decrypt(base64url.decode(jwe["encrypted_key"]), oaep)
    data = base64url.decode(jwe["ciphertext"]) + base64url.decode(jwe["tag"])
    iv = base64url.decode(jwe["iv"])
    assert AESGCM(content_key).decrypt(iv, data, jwe["protected"].encode()) == b"plaintext"


def test_nothing_is_used_twice() -> None:
    first, second = (json.loads(seal(bytes(32), recipient(P256))) for _ in range(2))
    assert not set(first.values()) & set(second.values())


@pytest.mark.parametrize(
    "jwk",
    [
        {},
        {"kty": "oct", "k": "AAAA"},
        {**P256, "crv": "P-384"},
        {**P256, "crv": "secp256k1"},
        {**P256, "alg": "ECDH-ES"},
        {name: value for name, value in P256.items() if name != "alg"},
        {**P256, "x": P256["y"]},
        {**P256, "x": "AA"},
        {**P256, "x": "", "y": ""},
        {**P256, "x": "A" * 43, "y": "A" * 43},
        {**P256, "x": P256["x"] + "="},
        {**P256, "x": "é"},
        {**P256, "é": "x"},
        {**P256, **{f"x{number}": "" for number in range(12)}},
        {**rsa_jwk(RSA_KEY), "alg": "RSA1_5"},
        {**rsa_jwk(RSA_KEY), "e": "Aw"},
        {**rsa_jwk(RSA_KEY), "n": "AQAB"},
        {**rsa_jwk(RSA_KEY), "n": "_" * 4096},
    ],
)
def test_keys_that_nothing_is_sealed_for(jwk: dict[str, str]) -> None:
    with pytest.raises(KeyInvalid) as caught:
        recipient(jwk)
    assert "\n" not in str(caught.value)
