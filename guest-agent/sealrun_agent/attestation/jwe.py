"""JSON Web Encryption of KBS's answers: flattened form, opening only (kbs-protocol, 3.2 and 3.3).

ECDH-ES+A256KW (RFC 7518, 4.6, empty apu and apv) or RSA-OAEP-256, as the guest's key is, and A256GCM.
The received text of the protected header is authenticated as it is: to serialize it again would make
another text of it.

`cryptography` is imported where it is used: its import is felt in an emulated guest.
"""

from typing import TYPE_CHECKING, Final

import msgspec
from sealrun_protocol.decoding import from_json

from sealrun_agent.jose import (
    CONTENT_ENCRYPTION,
    CONTENT_KEY_BYTES,
    KEY_AGREEMENT,
    EphemeralKey,
    JweInvalid,
    agreed_content_key,
    decode,
)
from sealrun_agent.wipe import wipe

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

RSA_KEY_TRANSPORT: Final = "RSA-OAEP-256"


class _Header(msgspec.Struct, frozen=True):
    alg: str
    enc: str
    epk: EphemeralKey | None = None
    apu: str = ""
    apv: str = ""
    zip: str = ""
    crit: tuple[str, ...] = ()


class _Jwe(msgspec.Struct, frozen=True):
    protected: str
    encrypted_key: str
    iv: str
    ciphertext: str
    tag: str
    aad: str = ""


def open_jwe(text: bytes, key: "EllipticCurvePrivateKey | RSAPrivateKey") -> bytes:
    """The plaintext. Raises JweInvalid."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        jwe = from_json(text, _Jwe)
        header = from_json(decode(jwe.protected), _Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JweInvalid(f"it is not a flattened JWE: {error}") from error
    elliptic = isinstance(key, EllipticCurvePrivateKey)
    _check(jwe, header, KEY_AGREEMENT if elliptic else RSA_KEY_TRANSPORT)
    iv, tag, wrapped = decode(jwe.iv), decode(jwe.tag), decode(jwe.encrypted_key)
    if len(iv) != 12 or len(tag) != 16:
        raise JweInvalid("its iv is not 12 bytes or its tag not 16 bytes long")
    if isinstance(key, EllipticCurvePrivateKey):
        content_key = _agreed(header, wrapped, key)
    else:
        content_key = _transported(wrapped, key)
    if content_key is None:
        raise JweInvalid("its key is not wrapped for this VM")
    if len(content_key) != CONTENT_KEY_BYTES:
        raise JweInvalid("its content key is not 32 bytes long")
    try:
        return AESGCM(content_key).decrypt(
            iv, decode(jwe.ciphertext) + tag, jwe.protected.encode("ascii")
        )
    except InvalidTag as error:
        raise JweInvalid("its authentication tag does not match") from error
    finally:
        wipe((content_key,))


def _check(jwe: _Jwe, header: _Header, algorithm: str) -> None:
    if header.alg != algorithm or header.enc != CONTENT_ENCRYPTION:
        raise JweInvalid(
            f"it is encrypted with {header.alg[:40]!a} and {header.enc[:40]!a},"
            f" not {algorithm} and {CONTENT_ENCRYPTION}"
        )
    if header.apu or header.apv or header.zip or header.crit or jwe.aad:
        raise JweInvalid("it asks for members that KBS does not use")


def _agreed(header: _Header, wrapped: bytes, key: "EllipticCurvePrivateKey") -> bytes | None:
    if header.epk is None:
        raise JweInvalid("it has no ephemeral key")
    return agreed_content_key(header.epk, wrapped, key)


def _transported(wrapped: bytes, key: "RSAPrivateKey") -> bytes | None:
    from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
    from cryptography.hazmat.primitives.hashes import SHA256

    try:
        return key.decrypt(wrapped, OAEP(MGF1(SHA256()), SHA256(), None))
    except ValueError:
        return None
