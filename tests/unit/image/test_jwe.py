"""JWE opening, against an independent hand-made writer of both serializations."""

import base64
import hashlib
import json
import os
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.image.jwe import MalformedKey, load_key, open_jwe
from sealrun_agent.jose import JweInvalid

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())
P521 = ec.generate_private_key(ec.SECP521R1())
TEXT = b'{"symkey":"secret"}'


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def wrap(key: Any, content_key: bytes, alg: str) -> tuple[dict[str, Any], bytes]:
    """A recipient's header and encrypted key."""
    if isinstance(key, rsa.RSAPrivateKey):
        sha = hashes.SHA1() if alg == "RSA-OAEP" else hashes.SHA256()
        oaep = padding.OAEP(padding.MGF1(sha), sha, None)
        return {"alg": alg}, key.public_key().encrypt(content_key, oaep)
    ephemeral = ec.generate_private_key(key.curve)
    numbers = ephemeral.public_key().public_numbers()
    size = (key.curve.key_size + 7) // 8
    shared = ephemeral.exchange(ec.ECDH(), key.public_key())
    parts = [b"ECDH-ES+A256KW", b"apu", b""]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    kek = hashlib.sha256(b"\0\0\0\1" + shared + info + (256).to_bytes(4, "big")).digest()
    epk = {
        "kty": "EC",
        "crv": {256: "P-256", 521: "P-521"}[key.curve.key_size],
        "x": b64(numbers.x.to_bytes(size, "big")),
        "y": b64(numbers.y.to_bytes(size, "big")),
    }
    return {"alg": alg, "epk": epk, "apu": b64(b"apu")}, aes_key_wrap(kek, content_key)


def flattened(key: Any, alg: str, aad: str = "", **header: Any) -> dict[str, Any]:
    content_key, iv = os.urandom(32), os.urandom(12)
    recipient, encrypted_key = wrap(key, content_key, alg)
    protected = b64(json.dumps({**recipient, "enc": "A256GCM", **header}).encode())
    associated = f"{protected}.{aad}" if aad else protected  # RFC 7516, 5.1, step 14
    sealed = AESGCM(content_key).encrypt(iv, TEXT, associated.encode())
    return {
        **({"aad": aad} if aad else {}),
        "protected": protected,
        "encrypted_key": b64(encrypted_key),
        "iv": b64(iv),
        "ciphertext": b64(sealed[:-16]),
        "tag": b64(sealed[-16:]),
    }


def general(recipients: list[tuple[Any, str]]) -> dict[str, Any]:
    content_key, iv = os.urandom(32), os.urandom(12)
    protected = b64(b'{"enc":"A256GCM"}')
    sealed = AESGCM(content_key).encrypt(iv, TEXT, protected.encode())
    wrapped = [wrap(key, content_key, alg) for key, alg in recipients]
    return {
        "protected": protected,
        "recipients": [{"header": h, "encrypted_key": b64(k)} for h, k in wrapped],
        "iv": b64(iv),
        "ciphertext": b64(sealed[:-16]),
        "tag": b64(sealed[-16:]),
    }


def opened(jwe: Any, *keys: Any) -> bytes | None:
    return open_jwe(json.dumps(jwe).encode(), keys)


@pytest.mark.parametrize(
    ("key", "alg"),
    [
        (RSA, "RSA-OAEP"),
        (RSA, "RSA-OAEP-256"),
        (P256, "ECDH-ES+A256KW"),
        (P521, "ECDH-ES+A256KW"),
    ],
)
def test_opens_one_recipient(key: Any, alg: str) -> None:
    assert opened(flattened(key, alg), OTHER_RSA, key) == TEXT


def test_opens_any_of_several_recipients() -> None:
    jwe = general([(OTHER_RSA, "RSA-OAEP"), (RSA, "RSA-OAEP"), (P256, "ECDH-ES+A256KW")])
    for key in (RSA, OTHER_RSA, P256):
        assert opened(jwe, key) == TEXT
    assert opened(jwe, P521) is None


def test_what_is_authenticated_besides_the_header() -> None:
    jwe = flattened(RSA, "RSA-OAEP", b64(b"more"))
    assert opened(jwe, RSA) == TEXT
    assert opened(jwe | {"aad": b64(b"other")}, RSA) is None
    assert opened({name: jwe[name] for name in jwe if name != "aad"}, RSA) is None


def test_a_key_that_does_not_fit_opens_nothing() -> None:
    assert opened(flattened(RSA, "RSA-OAEP"), OTHER_RSA, P256) is None
    assert opened(flattened(P256, "ECDH-ES+A256KW"), RSA, P521) is None
    assert (
        opened(flattened(P256, "ECDH-ES+A256KW"), ec.generate_private_key(ec.SECP256R1())) is None
    )
    assert opened(flattened(RSA, "RSA-OAEP")) is None


@pytest.mark.parametrize("name", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_every_changed_part_is_noticed(name: str) -> None:
    jwe = flattened(RSA, "RSA-OAEP")
    raw = bytearray(base64.urlsafe_b64decode(jwe[name] + "=="))
    if name == "protected":
        raw = bytearray(bytes(raw).replace(b" ", b"\t", 1))  # another text of the same meaning
    else:
        raw[-1] ^= 1
    jwe[name] = b64(bytes(raw))
    assert opened(jwe, RSA) is None


@pytest.mark.parametrize(
    "change",
    [
        {"protected": b64(b'{"alg":"RSA-OAEP","enc":"A128GCM"}')},
        {"protected": b64(b'{"alg":"RSA-OAEP","enc":"A256GCM","zip":"DEF"}')},
        {"protected": b64(b'{"alg":"RSA-OAEP","enc":"A256GCM","crit":["b64"]}')},
        {"protected": b64(b'{"alg":"ECDH-ES+A256KW","enc":"A256GCM","epk":7}')},
        {"protected": b64(b"not json")},
        {"protected": "***"},
        {"protected": "é"},
        {"iv": b64(bytes(11))},
        {"tag": b64(bytes(12))},
        {"header": {"enc": "A256GCM"}},  # a member twice
        {"ciphertext": None},
        {"ciphertext": 7},
    ],
)
def test_malformed(change: dict[str, Any]) -> None:
    with pytest.raises(JweInvalid):
        opened(flattened(RSA, "RSA-OAEP") | change, RSA)


def test_a_point_off_the_curve_is_malformed() -> None:
    jwe = flattened(P256, "ECDH-ES+A256KW")
    header = json.loads(base64.urlsafe_b64decode(jwe["protected"] + "=="))
    header["epk"]["y"] = b64(bytes(31) + b"\1")
    with pytest.raises(JweInvalid, match="curve"):
        opened(jwe | {"protected": b64(json.dumps(header).encode())}, P256)
    del header["epk"]
    with pytest.raises(JweInvalid, match="ephemeral"):
        opened(jwe | {"protected": b64(json.dumps(header).encode())}, P256)


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_any_bytes_are_opened_or_malformed(text: bytes) -> None:
    with pytest.raises(JweInvalid):
        open_jwe(text, [RSA])


def test_keys_are_pem_without_password() -> None:
    def pem(form: serialization.PrivateFormat, encryption: Any) -> bytes:
        return RSA.private_bytes(serialization.Encoding.PEM, form, encryption)

    plain = serialization.NoEncryption()
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        assert opened(flattened(RSA, "RSA-OAEP"), load_key(pem(form, plain))) == TEXT
    locked = pem(serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x"))
    for wrong in (b"", b"not pem", locked):
        with pytest.raises(MalformedKey):
            load_key(wrong)
