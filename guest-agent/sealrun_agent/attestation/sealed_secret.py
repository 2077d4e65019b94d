"""Sealed secrets: values that only an attested guest can open, in the form of CoCo's data hub
(kbs-protocol, 11).

    sealed.HEADER.PAYLOAD.SIGNATURE      a compact JWS, ES256

Rules, in order:

1. The header's `kid` is the URI of a public key (JWK, P-256) in the tenant's broker, and that key signed
   header and payload. An unsigned secret is none.
2. The payload is a secret of version 0.1.0, of provider `kbs`.
3. `vault`: the value is the resource `name`.
4. `envelope`: `encrypted_key` is opened by AES-256-GCM with the resource `key_id` (32 bytes) and the iv in
   `annotations`, and `encrypted_data` with that key and `iv`. CoCo defines this form for the key services
   of clouds only; with `kbs` it is ours.

5. Where its annotations have `io.sealrun.place`, it is opened there and nowhere else: under a variable of
   that name, or in a file of that path. An extension of ours that CoCo's data hub passes over. Without it
   a signature says who sealed a value, not where it belongs: the host can exchange two of one tenant's.
"""

import binascii
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import AttestError
from sealrun_agent.jose import JweInvalid, decode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

PREFIX: Final = b"sealed."
VERSION: Final = "0.1.0"
_PROVIDER: Final = "kbs"
_KEY_BYTES: Final = 32
_IV_BYTES: Final = 12
_COORDINATE_BYTES: Final = 32

Resource = Callable[[str], bytes]
"""The content of a kbs:/// URI. Raises AttestError."""


class _Header(msgspec.Struct, frozen=True):
    alg: str
    kid: str
    crit: tuple[str, ...] = ()


class _Jwk(msgspec.Struct, frozen=True):
    kty: str
    crv: str
    x: str
    y: str


class _Placed(msgspec.Struct, frozen=True, rename={"place": "io.sealrun.place"}):
    place: str | None = None


class _Kind(msgspec.Struct, frozen=True):
    version: str
    type: str
    provider: str
    annotations: _Placed = _Placed()


class _Vault(msgspec.Struct, frozen=True):
    name: str


class _Annotations(msgspec.Struct, frozen=True):
    iv: str


class _Envelope(msgspec.Struct, frozen=True):
    key_id: str
    encrypted_key: str
    encrypted_data: str
    wrap_type: str
    iv: str
    annotations: _Annotations


class _Invalid(Exception):
    """The text says why, in one line."""


def unseal(text: bytes, place: str, resource: Resource) -> bytes:
    """The value, which stands at `place`. Raises AttestError: SEAL_INVALID, and what `resource` raises."""
    try:
        if len(text) > limits.SEALED_SECRET_BYTES:
            raise _Invalid(f"it is longer than {limits.SEALED_SECRET_BYTES} bytes")
        payload = _signed_payload(text.removeprefix(PREFIX), resource)
        kind = from_json(payload, _Kind)
        if kind.version != VERSION or kind.provider != _PROVIDER:
            raise _Invalid(f"it is not of version {VERSION} and provider {_PROVIDER}")
        if kind.annotations.place not in (None, place):
            raise _Invalid(f"it is for another place than {place[:200]!a}")
        if kind.type == "vault":
            return resource(from_json(payload, _Vault).name)
        if kind.type == "envelope":
            return _open(from_json(payload, _Envelope), resource)
        raise _Invalid(f"its type {kind.type[:40]!a} is neither vault nor envelope")
    except (_Invalid, JweInvalid, ValueError, RecursionError) as error:
        raise AttestError(
            ErrorCode.SEAL_INVALID, f"cannot open a sealed secret: {error}"
        ) from error


def _signed_payload(text: bytes, resource: Resource) -> bytes:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
    from cryptography.hazmat.primitives.hashes import SHA256

    parts = text.decode("ascii").strip().split(".")
    if len(parts) != 3:
        raise _Invalid("it is not a signed one")
    header = from_json(decode(parts[0]), _Header)
    if header.alg != "ES256" or header.crit:
        raise _Invalid(f"it is signed with {header.alg[:40]!a}, not ES256")
    signature = decode(parts[2])
    if len(signature) != 2 * _COORDINATE_BYTES:
        raise _Invalid("its signature is not one of ES256")
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    key = _verification_key(resource(header.kid))
    try:
        key.verify(encode_dss_signature(r, s), f"{parts[0]}.{parts[1]}".encode(), ECDSA(SHA256()))
    except InvalidSignature:
        raise _Invalid("its signature does not match") from None
    return decode(parts[1])


def _verification_key(content: bytes) -> "EllipticCurvePublicKey":
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicNumbers

    jwk = from_json(content, _Jwk)
    if jwk.kty != "EC" or jwk.crv != "P-256":
        raise _Invalid("its signer's key is not one of P-256")
    x, y = (int.from_bytes(decode(coordinate), "big") for coordinate in (jwk.x, jwk.y))
    return EllipticCurvePublicNumbers(x, y, SECP256R1()).public_key()


def _open(secret: _Envelope, resource: Resource) -> bytes:
    if secret.wrap_type != "A256GCM":
        raise _Invalid(f"it is wrapped with {secret.wrap_type[:40]!a}, not A256GCM")
    sealing_key = resource(secret.key_id)
    if len(sealing_key) != _KEY_BYTES:
        raise _Invalid(f"its sealing key is not {_KEY_BYTES} bytes long")
    key = _decrypted(sealing_key, secret.annotations.iv, secret.encrypted_key)
    if len(key) != _KEY_BYTES:
        raise _Invalid(f"its key is not {_KEY_BYTES} bytes long")
    return _decrypted(key, secret.iv, secret.encrypted_data)


def _decrypted(key: bytes, iv: str, data: str) -> bytes:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = _base64(iv)
    if len(nonce) != _IV_BYTES:
        raise _Invalid(f"its iv is not {_IV_BYTES} bytes long")
    try:
        return AESGCM(key).decrypt(nonce, _base64(data), None)
    except InvalidTag:
        raise _Invalid("it was changed, or sealed with another key") from None


def _base64(text: str) -> bytes:
    return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
