"""Signed JSON Web Tokens: ES256 and EdDSA (Ed25519), nothing else, never `none`.

The algorithm is that of the key at hand; a header that names another one is refused.
"""

import time
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)
from cryptography.hazmat.primitives.hashes import SHA256

from sealrun_broker import base64url

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey

_TOKEN_CHARACTERS: Final = 1024 * 1024  # an attestation token has the VM's event log in it
_P256_BYTES: Final = 32
_SKEW_SECONDS: Final = 60  # between the clocks of who signed and who verifies


class TokenInvalid(Exception):
    """Not a token of this key, or not valid now; the text says why, in one line."""


class _Header(msgspec.Struct, frozen=True):
    alg: str
    crit: tuple[str, ...] = ()


def sign(claims: dict[str, Any], key: PrivateKey, **header: Any) -> str:
    """The compact form. `header` is added to typ and alg."""
    return sign_text(msgspec.json.encode(claims), key, typ="JWT", **header)


def sign_text(payload: bytes, key: PrivateKey, **header: Any) -> str:
    """The compact form of a JWS over any text. `header` is added to alg."""
    alg = {"alg": _algorithm(key.public_key())}
    first = {"typ": header.pop("typ")} | alg if "typ" in header else alg
    parts = (msgspec.json.encode({**first, **header}), payload)
    signed = ".".join(map(base64url.encode, parts))
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(signed.encode())
    else:
        numbers = decode_dss_signature(key.sign(signed.encode(), ec.ECDSA(SHA256())))
        signature = b"".join(number.to_bytes(_P256_BYTES, "big") for number in numbers)
    return f"{signed}.{base64url.encode(signature)}"


def verify(token: str, key: PublicKey, now: float | None = None) -> dict[str, Any]:
    """The claims; `exp` is required. `now` is Unix time. Raises TokenInvalid."""
    if len(token) > _TOKEN_CHARACTERS or token.count(".") != 2:
        raise TokenInvalid("the token is not a signed JWT")
    signed, _, signature = token.rpartition(".")
    try:
        header = msgspec.json.decode(base64url.decode(signed.partition(".")[0]), type=_Header)
        raw = base64url.decode(signature)
        if header.alg != _algorithm(key) or header.crit:
            raise TokenInvalid(f"the token is not signed with {_algorithm(key)}")
        _verify_signature(signed.encode(), raw, key)
        claims = msgspec.json.decode(
            base64url.decode(signed.partition(".")[2]), type=dict[str, Any]
        )
    except InvalidSignature as error:
        raise TokenInvalid("the token's signature does not match") from error
    except (
        ValueError,
        RecursionError,
    ) as error:  # msgspec's and UnicodeDecodeError are ValueErrors
        raise TokenInvalid("the token is not a signed JWT") from error
    _check_time(claims, time.time() if now is None else now)
    return claims


def _algorithm(key: PublicKey) -> str:
    return "EdDSA" if isinstance(key, ed25519.Ed25519PublicKey) else "ES256"


def _verify_signature(signed: bytes, raw: bytes, key: PublicKey) -> None:
    if isinstance(key, ed25519.Ed25519PublicKey):
        key.verify(raw, signed)
        return
    if len(raw) != 2 * _P256_BYTES:
        raise InvalidSignature
    r, s = (int.from_bytes(half, "big") for half in (raw[:_P256_BYTES], raw[_P256_BYTES:]))
    key.verify(encode_dss_signature(r, s), signed, ec.ECDSA(SHA256()))


def _check_time(claims: dict[str, Any], now: float) -> None:
    expires, not_before = claims.get("exp"), claims.get("nbf", claims.get("iat", 0))
    if not isinstance(expires, int | float) or not isinstance(not_before, int | float):
        raise TokenInvalid("the token does not say when it expires")
    if now >= expires:
        raise TokenInvalid("the token has expired")
    if not_before > now + _SKEW_SECONDS:
        raise TokenInvalid("the token is not valid yet")
