"""Encrypted layers: the format's vectors, and every way in which a layer can be wrong.

Reads ../shared/reference/examples where that exists (what real skopeo wrote); skips without it.
"""

import base64
import hashlib
import hmac
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from fixtures.encryption import (
    JWE_KEYS,
    PACKET_KEYS,
    PKCS7_KEYS,
    b64,
    envelope,
    packet,
    wrapped,
)
from sealrun_agent.errors import DecryptError
from sealrun_agent.image.decrypt import (
    PUBLIC_OPTIONS,
    Keys,
    LayerKey,
    Opener,
    decrypted,
    load_keys,
)
from sealrun_agent.image.manifest import Descriptor, parse_manifest
from sealrun_protocol.errors import ErrorCode

EXAMPLES = Path(__file__).resolve().parents[4] / "shared/reference/examples"

# A self-contained vector: key 00..1f, nonce f0..ff, whose last byte carries after the first block.
PLAIN = b"sealrun test layer\n" * 3
SYMKEY = bytes(range(32))
NONCE = bytes(range(0xF0, 0x100))
CIPHERTEXT = bytes.fromhex(
    "e165ace151e3eeeb2e0c9520605e026daf2d7133944b58b31bc975552f04f2ae"
    "f50d583e661286fd19e95265fb7486ea3a1ce341b789825019"
)
HMAC = base64.b64decode("XpL74gQ0OBaUZplMcGDZZWs8DMtfuSD3H4EsLsghKco=")
PLAIN_DIGEST = "sha256:a95846ffb1e68662c08025c8cfd5838f81fcb1f86ab5bb9086feac1cbe1dea15"
KEY = LayerKey(SYMKEY, NONCE, HMAC)

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def chunked(data: bytes, size: int) -> Iterator[bytes]:
    yield from (data[start : start + size] for start in range(0, len(data), size))


def public(**change: Any) -> str:
    options = {"cipher": "AES_256_CTR_HMAC_SHA256", "hmac": b64(HMAC), "cipheroptions": {}}
    return b64(json.dumps(options | change).encode())


def private(**change: Any) -> bytes:
    options = {
        "symkey": b64(SYMKEY),
        "digest": PLAIN_DIGEST,
        "cipheroptions": {"nonce": b64(NONCE)},
    }
    return json.dumps(options | change).encode()


WRAPPED = wrapped(private(), RSA)  # what opens the layer, where the public options allow it


def descriptor(**annotations: str) -> Descriptor:
    return Descriptor("sha256:" + "0" * 64, 57, "x", annotations)


def layer_key(
    described: Descriptor, keys: Sequence[rsa.RSAPrivateKey], **resources: bytes
) -> LayerKey:
    """resources: of the broker, by tag in default/key."""
    pems = [key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys]
    found = {f"kbs:///default/key/{tag}": content for tag, content in resources.items()}
    return Opener(Keys(lambda: pems, found.__getitem__)).layer_key(described)


def code_of(annotations: dict[str, str]) -> ErrorCode:
    with pytest.raises(DecryptError) as caught:
        layer_key(descriptor(**annotations), [RSA])
    assert b64(SYMKEY) not in str(caught.value)
    return caught.value.code


@pytest.mark.parametrize("size", [1, 15, 16, 17, 57])
def test_the_vector_decrypts(size: int) -> None:
    assert b"".join(decrypted(chunked(CIPHERTEXT, size), KEY, "x")) == PLAIN


def test_the_vector_is_what_it_says() -> None:
    assert hmac.digest(SYMKEY, CIPHERTEXT, "sha256") == HMAC
    assert f"sha256:{hashlib.sha256(PLAIN).hexdigest()}" == PLAIN_DIGEST


@pytest.mark.parametrize(
    ("ciphertext", "key"),
    [
        (CIPHERTEXT[:-1] + b"\0", KEY),
        (CIPHERTEXT[:-1], KEY),
        (CIPHERTEXT + b"\0", KEY),
        (b"", KEY),
        (CIPHERTEXT, KEY._replace(hmac=bytes(32))),
    ],
)
def test_what_was_changed_is_noticed_at_the_end(ciphertext: bytes, key: LayerKey) -> None:
    with pytest.raises(DecryptError, match=r"^layer x ") as caught:
        list(decrypted(chunked(ciphertext, 16), key, "layer x"))
    assert caught.value.code is ErrorCode.LAYER_TAMPERED


def test_annotations_give_the_key() -> None:
    annotations = {PUBLIC_OPTIONS: public(), JWE_KEYS: wrapped(private(), RSA)}
    assert layer_key(descriptor(**annotations), [RSA]) == KEY


def test_several_wrapped_keys_are_tried() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    both = f"{wrapped(private(), other)},{wrapped(private(), RSA)}"
    for key in (RSA, other):
        assert layer_key(descriptor(**{PUBLIC_OPTIONS: public(), JWE_KEYS: both}), [key]) == KEY


def test_a_key_that_opens_none_is_wrong() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    annotations = {PUBLIC_OPTIONS: public(), JWE_KEYS: wrapped(private(), other)}
    assert code_of(annotations) is ErrorCode.KEY_WRONG


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {PUBLIC_OPTIONS: public()},
        {JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: "***", JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: b64(b"{}"), JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: b64(b"\xff"), JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: public(cipher="AES_256_CTR"), JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: public(cipher=""), JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: public(hmac=None), JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: public(hmac=b64(HMAC[:16])), JWE_KEYS: WRAPPED},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: "x"},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: ""},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: b64(b"{}")},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: "é"},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: wrapped(b"{}", RSA)},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: wrapped(b"\xff\xfe", RSA)},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: wrapped(private(symkey=b64(SYMKEY[:16])), RSA)},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: wrapped(private(cipheroptions={}), RSA)},
        {PUBLIC_OPTIONS: public(), JWE_KEYS: wrapped(private(cipheroptions={"nonce": ""}), RSA)},
        {PUBLIC_OPTIONS: public(), "org.opencontainers.image.enc.keys.pgp": "eA=="},
    ],
)
def test_what_cannot_be_read_is_refused(annotations: dict[str, str]) -> None:
    assert code_of(annotations) is ErrorCode.ENCRYPTION_INVALID


def test_another_scheme_is_named() -> None:
    annotations = {PUBLIC_OPTIONS: public(), "org.opencontainers.image.enc.keys.pgp": "eA=="}
    with pytest.raises(DecryptError, match="by 'pgp'"):
        layer_key(descriptor(**annotations), [RSA])


def test_keys_that_are_missing_or_no_keys() -> None:
    with pytest.raises(DecryptError) as missing:
        load_keys([])
    assert missing.value.code is ErrorCode.KEY_NOT_CONFIGURED
    with pytest.raises(DecryptError) as wrong:
        load_keys([b"my secret that is no PEM"])
    assert wrong.value.code is ErrorCode.KEY_WRONG
    assert "secret" not in str(wrong.value)


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason=f"{EXAMPLES} is not here")
def test_a_manifest_that_skopeo_wrote() -> None:
    manifest = parse_manifest((EXAMPLES / "encrypted-manifest-jwe.json").read_bytes())
    layer = manifest.layers[0]
    assert (layer.encrypted, layer.compression, layer.descriptor.size) == (True, "gzip", 1087771)
    with pytest.raises(DecryptError) as caught:  # its key is not among the examples
        layer_key(layer.descriptor, [RSA])
    assert caught.value.code is ErrorCode.KEY_WRONG
    # The counter mode of that layer, from its documented key and the first bytes of both sides.
    real = LayerKey(
        base64.b64decode("OHa4MTbh8e9MKgwc+SPjQWcJsFSxCZ2v9shxIc7JrOE="),
        base64.b64decode("1GFZYBNfR1/wTRieGbs2wA=="),
        base64.b64decode("rI0Ssckt3rBH4Ghs/kXhSXUZOjJvyNZOlVpsgGvIJyw="),
    )
    head = decrypted(iter([bytes.fromhex("2ed2b72bc8a1a85e23169ad97d9174a4")]), real, "x")
    assert next(head).hex() == "1f8b080000096e8800ffec7d7b7c14d5"


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason=f"{EXAMPLES} is not here")
def test_a_manifest_of_a_key_provider_that_skopeo_wrote() -> None:
    manifest = parse_manifest((EXAMPLES / "encrypted-manifest-keyprovider.json").read_bytes())
    with pytest.raises(DecryptError, match="its iv is not 12 bytes") as caught:
        layer_key(manifest.layers[0].descriptor, [])  # a provider for show: it encrypted nothing
    assert caught.value.code is ErrorCode.ENCRYPTION_INVALID


KEK = bytes(range(32))
KID = "kbs:///default/key/one"


def with_keys(**wrapped_keys: str) -> Descriptor:
    names = {"jwe": JWE_KEYS, "pkcs7": PKCS7_KEYS, "packet": PACKET_KEYS}
    return descriptor(
        **{PUBLIC_OPTIONS: public(), **{names[k]: value for k, value in wrapped_keys.items()}}
    )


def test_an_envelope_gives_the_key() -> None:
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    two = b64(envelope(private(), other, RSA))
    assert layer_key(with_keys(pkcs7=two), [RSA]) == KEY
    assert layer_key(with_keys(pkcs7=f"{b64(envelope(private(), other))},{two}"), [RSA]) == KEY


@pytest.mark.parametrize(
    "kid", [KID, "kbs://broker.example:8080/default/key/one", "/default/key/one"]
)
@pytest.mark.parametrize(
    "second",
    [{}, {"version": "0.1.0", "provider": "kbs", "provider_settings": {}, "annotations": {}}],
)
def test_a_packet_gives_the_key(kid: str, second: dict[str, Any]) -> None:
    """Of both versions, without a private key; which broker is asked is not the packet's to say."""
    sealed = packet(private(), KEK, kid, **second)
    assert layer_key(with_keys(packet=sealed), [], one=KEK) == KEY


def test_what_is_wrapped_in_several_ways_opens_by_each() -> None:
    jwe, sealed = wrapped(private(), RSA), packet(private(), KEK, KID)
    assert layer_key(with_keys(jwe=jwe, packet=sealed), [RSA]) == KEY
    assert layer_key(with_keys(jwe=jwe, packet=sealed), [], one=KEK) == KEY
    stranger = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    assert layer_key(with_keys(jwe=jwe, packet=sealed), [stranger], one=KEK) == KEY
    assert layer_key(with_keys(jwe="x", pkcs7=b64(envelope(private(), RSA))), [RSA]) == KEY
    with pytest.raises(DecryptError) as caught:
        layer_key(with_keys(jwe=jwe, packet=sealed), [], one=bytes(32))
    assert caught.value.code is ErrorCode.KEY_WRONG  # says more than that there is no other key


def test_each_resource_is_asked_for_once() -> None:
    asked: list[str] = []

    def resource(uri: str) -> bytes:
        asked.append(uri)
        return KEK

    opener = Opener(Keys(list, resource))
    for _ in range(3):
        assert opener.layer_key(with_keys(packet=packet(private(), KEK, KID))) == KEY
    assert asked == [KID]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kid": "http:///a/b/c"}, ErrorCode.ENCRYPTION_INVALID),
        ({"kid": "kbs:///a/../b"}, ErrorCode.ENCRYPTION_INVALID),
        ({"kid": "kbs+plugin:///a/b/c"}, ErrorCode.ENCRYPTION_INVALID),
        ({"kid": None}, ErrorCode.ENCRYPTION_INVALID),
        ({"iv": ""}, ErrorCode.ENCRYPTION_INVALID),
        ({"iv": "!"}, ErrorCode.ENCRYPTION_INVALID),
        ({"wrapped_data": ""}, ErrorCode.ENCRYPTION_INVALID),
        ({"wrap_type": "A256CTR"}, ErrorCode.ENCRYPTION_INVALID),
        ({"version": "0.2.0"}, ErrorCode.ENCRYPTION_INVALID),
        ({"provider": "aliyun"}, ErrorCode.ENCRYPTION_INVALID),
        ({"wrapped_data": b64(bytes(40))}, ErrorCode.KEY_WRONG),
    ],
)
def test_packets_that_are_refused(change: dict[str, Any], code: ErrorCode) -> None:
    sealed = packet(private(), KEK, KID, **change)
    with pytest.raises(DecryptError) as caught:
        layer_key(with_keys(packet=sealed), [RSA], one=KEK)
    assert caught.value.code is code
    assert str(caught.value).isprintable()


def test_a_packet_under_a_key_of_128_bits() -> None:
    """Which AES-GCM would open."""
    short = b"16 bytes, no key"
    with pytest.raises(DecryptError, match="is not a key of 32 bytes") as caught:
        layer_key(with_keys(packet=packet(private(), short, KID)), [], one=short)
    assert caught.value.code is ErrorCode.KEY_WRONG


def test_a_key_that_is_wrapped_too_often() -> None:
    with pytest.raises(DecryptError, match="more than 64 times"):
        layer_key(with_keys(jwe=",".join(["eA=="] * 65)), [RSA])
