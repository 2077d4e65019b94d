"""Makes sealed secrets for a guest (kbs-protocol, 11): signed, and either a name in the broker (`vault`) or
encrypted with a key that is in the broker (`envelope`). What opens them is the agent's
attestation/sealed_secret.py; a vault secret is also what CoCo's data hub opens.
"""

import binascii
import os
from typing import Any, Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sealrun_protocol.resource_uri import ResourceNameInvalid, parse_uri

from sealrun_broker import base64url, jwt
from sealrun_broker.errors import BrokerError

KEY_BYTES: Final = 32
_VERSION: Final = "0.1.0"
_PROVIDER: Final = "kbs"


class _Jwk(msgspec.Struct, frozen=True):
    kty: str
    crv: str
    d: str


def new_signer() -> tuple[bytes, bytes]:
    """A private and a public key as JWK, P-256; the public one becomes a resource."""
    key = ec.generate_private_key(ec.SECP256R1())
    numbers = key.private_numbers()
    x, y, d = (
        base64url.encode(number.to_bytes(32, "big"))
        for number in (numbers.public_numbers.x, numbers.public_numbers.y, numbers.private_value)
    )
    public = {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}
    return msgspec.json.encode({**public, "d": d}), msgspec.json.encode(public)


def vault(uri: str) -> dict[str, Any]:
    """The payload that names a resource. Raises BrokerError."""
    return {
        "version": _VERSION,
        "type": "vault",
        "name": checked(uri),
        "provider": _PROVIDER,
        "provider_settings": {},
        "annotations": {},
    }


def envelope(content: bytes, sealing_key: bytes, key_id: str) -> dict[str, Any]:
    """The payload that holds `content`, to be opened with the resource `key_id`, which is `sealing_key`.

    Raises BrokerError."""
    if len(sealing_key) != KEY_BYTES:
        raise BrokerError(f"cannot seal: the sealing key is not {KEY_BYTES} bytes long")
    if not content:
        raise BrokerError("cannot seal: the content is empty")
    key, iv, wrapping_iv = AESGCM.generate_key(256), os.urandom(12), os.urandom(12)
    return {
        "version": _VERSION,
        "type": "envelope",
        "provider": _PROVIDER,
        "key_id": checked(key_id),
        "encrypted_key": _base64(AESGCM(sealing_key).encrypt(wrapping_iv, key, None)),
        "encrypted_data": _base64(AESGCM(key).encrypt(iv, content, None)),
        "wrap_type": "A256GCM",
        "iv": _base64(iv),
        "provider_settings": {},
        "annotations": {"iv": _base64(wrapping_iv)},
    }


def placed(payload: dict[str, Any], place: str) -> dict[str, Any]:
    """The same for one place only: a variable's name, or a file's path. Other guests than sealrun's pass
    over it. Raises BrokerError."""
    if not place:
        raise BrokerError("cannot seal: the place is empty")
    return {**payload, "annotations": {**payload["annotations"], "io.sealrun.place": place}}


def sealed(payload: dict[str, Any], signer: bytes, kid: str) -> str:
    """The text for an environment variable or a file. signer: a private JWK; kid: the URI of its public
    half. Raises BrokerError."""
    try:
        jwk = msgspec.json.decode(signer, type=_Jwk)
        if (jwk.kty, jwk.crv) != ("EC", "P-256"):
            raise BrokerError("cannot seal: the signer's key is not one of P-256")
        value = int.from_bytes(base64url.decode(jwk.d), "big")
        key = ec.derive_private_key(value, ec.SECP256R1())
    except (ValueError, RecursionError) as error:
        raise BrokerError("cannot seal: the signer's key is not a private JWK") from error
    return "sealed." + jwt.sign_text(msgspec.json.encode(payload), key, kid=checked(kid))


def checked(uri: str) -> str:
    """A kbs:/// URI. Raises BrokerError."""
    try:
        parse_uri(uri)
    except ResourceNameInvalid as error:
        raise BrokerError(f"cannot seal: {error}") from error
    return uri


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()
