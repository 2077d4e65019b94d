"""JSON Web Encryption (RFC 7516, JSON serialization), as ocicrypt writes it: opening only.

Both forms: flattened (one recipient) and general (`recipients`). Content encryption A256GCM; key
management RSA-OAEP, RSA-OAEP-256 (RFC 7518, 4.3) and ECDH-ES+A256KW (4.6). The header that names
the algorithm is part of what is authenticated, and a key is used only with algorithms of its type.
`cryptography` is imported where it is used: its import is felt in an emulated guest.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from sealrun_protocol.decoding import from_json, from_values

from sealrun_agent.jose import (
    CONTENT_ENCRYPTION,
    CONTENT_KEY_BYTES,
    CURVES,
    KEY_AGREEMENT,
    EphemeralKey,
    JweInvalid,
    agreed_content_key,
    decode,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


class MalformedKey(Exception):
    """Not a PEM private key of a supported type; the text says why."""


class _Header(msgspec.Struct, frozen=True):
    alg: str = ""
    enc: str = ""
    zip: str = ""
    crit: tuple[str, ...] = ()
    epk: EphemeralKey | None = None
    apu: str = ""
    apv: str = ""


class _Recipient(msgspec.Struct, frozen=True):
    encrypted_key: str = ""
    header: _Header = _Header()


class _Jwe(msgspec.Struct, frozen=True):
    protected: str
    iv: str
    ciphertext: str
    tag: str
    encrypted_key: str = ""
    header: _Header = _Header()
    unprotected: _Header = _Header()
    recipients: tuple[_Recipient, ...] = ()
    aad: str = ""


def load_key(pem: bytes) -> "PrivateKeyTypes":
    """A PEM private key without password, PKCS#1, PKCS#8 or SEC 1. Raises MalformedKey."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise MalformedKey("it is not a PEM private key without password") from error


def open_jwe(text: bytes, keys: Sequence["PrivateKeyTypes"]) -> bytes | None:
    """The plaintext, or None where none of the keys opens it. Raises JweInvalid."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        jwe = from_json(text, _Jwe)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JweInvalid(str(error)) from error
    protected = _header(jwe.protected)
    sealed = decode(jwe.ciphertext) + decode(jwe.tag)
    nonce = decode(jwe.iv)
    if len(nonce) != 12 or len(decode(jwe.tag)) != 16:
        raise JweInvalid("its iv is not 12 bytes or its tag not 16 bytes long")
    associated = (jwe.protected + (f".{jwe.aad}" if jwe.aad else "")).encode()
    for recipient in jwe.recipients or (_Recipient(jwe.encrypted_key, jwe.header),):
        header = _merged(protected, jwe.unprotected, recipient.header)
        for content_key in _unwrapped(header, decode(recipient.encrypted_key), keys):
            try:
                return AESGCM(content_key).decrypt(nonce, sealed, associated)
            except InvalidTag:
                continue  # an OAEP key may open to something that is not this JWE's
    return None


def _header(encoded: str) -> _Header:
    try:
        return from_json(decode(encoded), _Header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise JweInvalid(f"its protected header: {error}") from error


def _merged(*headers: _Header) -> _Header:
    """One recipient's header (RFC 7516, 4): members may stand in any of the three, once."""
    members: dict[str, object] = {}
    for header in headers:
        for name in header.__struct_fields__:
            value = getattr(header, name)
            if value:
                if name in members:
                    raise JweInvalid(f"its header names {name} twice")
                members[name] = value
    merged = from_values(members, _Header)
    if merged.enc != CONTENT_ENCRYPTION:
        raise JweInvalid(f"its content encryption is {merged.enc[:40]!a}, not A256GCM")
    if merged.zip or merged.crit:
        raise JweInvalid("its header asks for extensions that are not supported")
    return merged


def _unwrapped(
    header: _Header, encrypted_key: bytes, keys: Sequence["PrivateKeyTypes"]
) -> Iterator[bytes]:
    """What the keys make of a recipient's encrypted key: 32 bytes each."""
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    for key in keys:
        if header.alg in ("RSA-OAEP", "RSA-OAEP-256") and isinstance(key, RSAPrivateKey):
            from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
            from cryptography.hazmat.primitives.hashes import SHA1, SHA256

            sha = SHA1() if header.alg == "RSA-OAEP" else SHA256()  # noqa: S303 (RFC 7518, 4.3)
            try:
                content_key = key.decrypt(encrypted_key, OAEP(MGF1(sha), sha, None))
            except ValueError:
                continue
        elif header.alg == KEY_AGREEMENT and isinstance(key, EllipticCurvePrivateKey):
            unwrapped = _ecdh(header, encrypted_key, key)
            if unwrapped is None:
                continue
            content_key = unwrapped
        else:
            continue
        if len(content_key) == CONTENT_KEY_BYTES:
            yield content_key


def _ecdh(header: _Header, encrypted_key: bytes, key: "EllipticCurvePrivateKey") -> bytes | None:
    """The content key; None where the sender used another key or curve."""
    epk = header.epk
    if epk is None or epk.kty != "EC":
        raise JweInvalid("its header has no ephemeral key")
    if epk.crv != CURVES.get(key.curve.name):
        return None
    return agreed_content_key(epk, encrypted_key, key, decode(header.apu), decode(header.apv))
