"""Opening what a broker sealed: RFC vectors, the real broker's output, and every way to break it."""

import hashlib
import json
import os

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import aes_key_wrap
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.attestation import tee_key
from sealrun_agent.attestation.jwe import open_jwe
from sealrun_agent.jose import JweInvalid, decode, encode
from sealrun_broker import jwe as broker_jwe
from sealrun_protocol.init_data import KEYS

KEY = tee_key.generate()
PLAINTEXT = b"a key\0" * 10


def sealed() -> dict[str, str]:
    return json.loads(broker_jwe.seal(PLAINTEXT, broker_jwe.recipient(KEY.public)))


def with_header(**members: object) -> bytes:
    """A JWE whose protected header was changed and authenticated again, as a broker could."""
    jwe = sealed()
    header = {**json.loads(decode(jwe["protected"])), **members}
    ephemeral = ec.generate_private_key(ec.SECP256R1())
    numbers = ephemeral.public_key().public_numbers()
    if "epk" not in members:
        header["epk"] = {
            "kty": "EC",
            "crv": "P-256",
            "x": encode(numbers.x.to_bytes(32, "big")),
            "y": encode(numbers.y.to_bytes(32, "big")),
        }
    shared = ephemeral.exchange(ec.ECDH(), KEY.private.public_key())
    info = b"\0\0\0\x0eECDH-ES+A256KW" + bytes(8) + b"\0\0\1\0"
    content_key, iv = os.urandom(32), os.urandom(12)
    # Spaces: the received text counts, not what a serializer would make of it.
    protected = encode(json.dumps(header, indent=2).encode())
    data = AESGCM(content_key).encrypt(iv, PLAINTEXT, protected.encode())
    kek = hashlib.sha256(b"\0\0\0\1" + shared + info).digest()
    return json.dumps(
        {
            "protected": protected,
            "encrypted_key": encode(aes_key_wrap(kek, content_key)),
            "iv": encode(iv),
            "ciphertext": encode(data[:-16]),
            "tag": encode(data[-16:]),
        }
    ).encode()


def test_what_the_broker_seals() -> None:
    assert KEY.open(json.dumps(sealed()).encode()) == PLAINTEXT


def test_p521() -> None:
    private = ec.generate_private_key(ec.SECP521R1())
    data = broker_jwe.seal(PLAINTEXT, private.public_key())
    assert open_jwe(data, private) == PLAINTEXT


def test_rsa() -> None:
    key = tee_key.generate("RSA-OAEP-256")
    data = broker_jwe.seal(PLAINTEXT, broker_jwe.recipient(key.public))
    assert key.open(data) == PLAINTEXT
    assert list(key.public) == ["kty", "alg", "n", "e"]
    assert (len(decode(key.public["n"])), key.public["e"]) == (256, "AQAB")
    with pytest.raises(JweInvalid, match="not wrapped for this VM"):
        tee_key.generate("RSA-OAEP-256").open(data)
    with pytest.raises(JweInvalid, match="encrypted with 'RSA-OAEP-256'"):
        KEY.open(data)
    with pytest.raises(JweInvalid, match="encrypted with 'ECDH-ES"):
        key.open(json.dumps(sealed()).encode())
    jwe = json.loads(data)
    short = key.private.public_key().encrypt(bytes(16), OAEP(MGF1(SHA256()), SHA256(), None))
    with pytest.raises(JweInvalid, match="content key is not 32 bytes"):
        key.open(json.dumps({**jwe, "encrypted_key": encode(short)}).encode())


@pytest.mark.parametrize("kind", KEYS)
def test_every_kind_of_key(kind: str) -> None:
    key = tee_key.generate(kind)
    assert key.open(broker_jwe.seal(PLAINTEXT, broker_jwe.recipient(key.public))) == PLAINTEXT


def test_the_received_header_is_authenticated_as_it_is() -> None:
    assert KEY.open(with_header(kid="of no concern")) == PLAINTEXT


def test_the_public_half_is_a_jwk() -> None:
    assert list(KEY.public) == ["kty", "crv", "alg", "x", "y"]
    assert (KEY.public["kty"], KEY.public["crv"]) == ("EC", "P-256")
    assert KEY.public["alg"] == "ECDH-ES+A256KW"
    assert len(decode(KEY.public["x"])) == len(decode(KEY.public["y"])) == 32
    assert tee_key.generate().public != KEY.public


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"alg": "none"}, "encrypted with 'none'"),
        ({"alg": "dir"}, "encrypted with 'dir'"),
        ({"alg": "RSA1_5"}, "encrypted with 'RSA1_5'"),
        ({"enc": "A128GCM"}, "and 'A128GCM'"),
        ({"zip": "DEF"}, "members that KBS does not use"),
        ({"crit": ["b64"]}, "members that KBS does not use"),
        ({"apu": "AAAA"}, "members that KBS does not use"),
        ({"apv": "AAAA"}, "members that KBS does not use"),
        ({"epk": None}, "no ephemeral key"),
        ({"epk": 7}, "not a flattened JWE"),
        ({"epk": {"kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"}}, "not of the curve P-256"),
        ({"epk": {"kty": "OKP", "crv": "P-256", "x": "AA", "y": "AA"}}, "not of the curve P-256"),
        ({"epk": {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"}}, "not a point"),
        ({"epk": {"kty": "EC", "crv": "P-256", "x": "A" * 9999, "y": "AA"}}, "not a point"),
        ({"epk": {"kty": "EC", "crv": "P-256", "x": "", "y": ""}}, "not a point"),
        ({"epk": {"kty": "EC", "crv": "P-256", "x": "=", "y": "AA"}}, "not base64url"),
        ({"epk": dict(KEY.public)}, "not wrapped for this VM"),
    ],
)
def test_headers_that_are_not_obeyed(members: dict[str, object], said: str) -> None:
    with pytest.raises(JweInvalid, match=said):
        KEY.open(with_header(**members))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"aad": "AAAA"}, "members that KBS does not use"),
        ({"iv": "AAAA"}, "iv is not 12 bytes"),
        ({"tag": "AAAA"}, "tag not 16 bytes"),
        ({"iv": encode(bytes(12))}, "tag does not match"),
        ({"ciphertext": ""}, "tag does not match"),
        ({"encrypted_key": ""}, "not wrapped for this VM"),
        ({"encrypted_key": encode(bytes(40))}, "not wrapped for this VM"),
        ({"protected": "AAAA"}, "not a flattened JWE"),
        ({"protected": "a+/="}, "not base64url"),
        ({"ciphertext": "A"}, "not base64url"),
        ({"ciphertext": "é"}, "not base64url"),
        ({"tag": 7}, "not a flattened JWE"),
    ],
)
def test_members_that_do_not_fit(change: dict[str, object], said: str) -> None:
    with pytest.raises(JweInvalid, match=said):
        KEY.open(json.dumps({**sealed(), **change}).encode())


def test_for_another_vm() -> None:
    with pytest.raises(JweInvalid, match="not wrapped for this VM"):
        tee_key.generate().open(json.dumps(sealed()).encode())


@given(st.binary(max_size=200))
def test_base64url_there_and_back(data: bytes) -> None:
    text = encode(data)
    assert decode(text) == data
    assert not set(text) & set("+/=")
