"""What the JSON Web Encryption of images and that of key brokers have in common (RFC 7515 to 7518).

base64url without padding, and the key agreement ECDH-ES+A256KW. Everything about which headers are
obeyed stands with those who read them: image/jwe.py and attestation/jwe.py.

`cryptography` is imported where it is used: its import is felt in an emulated guest.
"""

import binascii
import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from sealrun_agent.wipe import wipe

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

CONTENT_ENCRYPTION: Final = "A256GCM"
CONTENT_KEY_BYTES: Final = 32
KEY_AGREEMENT: Final = "ECDH-ES+A256KW"
CURVES: Final = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}


class JweInvalid(Exception):
    """Not a JWE that is supported, or not one for this key; the text says why, in one line."""


class EphemeralKey(msgspec.Struct, frozen=True):
    """The header's `epk`: the sender's public key, a JWK."""

    kty: str
    crv: str
    x: str
    y: str


def encode(data: bytes) -> str:
    """base64url without padding (RFC 7515, appendix C)."""
    standard = binascii.b2a_base64(data, newline=False).rstrip(b"=")
    return standard.translate(bytes.maketrans(b"+/", b"-_")).decode()


def decode(text: str) -> bytes:
    """base64url without padding. Raises JweInvalid."""
    try:
        data = text.encode("ascii")
        if data.translate(None, b"+/=") != data:
            raise JweInvalid("it is not base64url without padding")
        standard = data.translate(bytes.maketrans(b"-_", b"+/"))
        return binascii.a2b_base64(standard + b"=" * (-len(data) % 4), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise JweInvalid("it is not base64url without padding") from error


def agreed_content_key(
    epk: EphemeralKey,
    encrypted_key: bytes,
    key: "EllipticCurvePrivateKey",
    apu: bytes = b"",
    apv: bytes = b"",
) -> bytes | None:
    """The content key by ECDH-ES+A256KW (RFC 7518, 4.6); None where it is not wrapped for `key`.

    Raises JweInvalid where `epk` is no point of the key's curve."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDH, EllipticCurvePublicNumbers
    from cryptography.hazmat.primitives.keywrap import InvalidUnwrap, aes_key_unwrap

    if epk.kty != "EC" or epk.crv != CURVES.get(key.curve.name):
        raise JweInvalid(f"its ephemeral key is not of the curve {CURVES.get(key.curve.name)}")
    x, y = (int.from_bytes(decode(coordinate), "big") for coordinate in (epk.x, epk.y))
    try:
        public = EllipticCurvePublicNumbers(x, y, key.curve).public_key()
    except ValueError as error:
        raise JweInvalid("its ephemeral key is not a point of its curve") from error
    shared = key.exchange(ECDH(), public)
    # Concat KDF of NIST SP 800-56A: 256 bits are one round of SHA-256.
    info = b"".join(
        len(part).to_bytes(4, "big") + part for part in (KEY_AGREEMENT.encode(), apu, apv)
    ) + (256).to_bytes(4, "big")
    wrapping_key = hashlib.sha256(b"\0\0\0\1" + shared + info).digest()
    try:
        return aes_key_unwrap(wrapping_key, encrypted_key)
    except (InvalidUnwrap, ValueError):
        return None
    finally:
        wipe((shared, wrapping_key))
