"""Resources encrypted for a client's key: flattened JWE, built by hand (kbs-protocol, 3.2 and 3.3).

The stock client parses the protected header and serializes it again to get the associated data:
`alg` first, `enc` second, the rest sorted, no spaces. No JOSE package writes it so.
"""

import hashlib
import os
from collections.abc import Mapping
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from sealrun_broker import base64url, bounds

_CURVES: Final[Mapping[str, ec.EllipticCurve]] = {"P-256": ec.SECP256R1(), "P-521": ec.SECP521R1()}
_ECDH: Final = "ECDH-ES+A256KW"
_RSA: Final = "RSA-OAEP-256"
_RSA_BITS: Final = (2048, 4096)

Recipient = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


class KeyInvalid(Exception):
    """A JWK that nothing can be encrypted for; the text says why, in one line."""


def recipient(jwk: Mapping[str, str]) -> Recipient:
    """The public key of a `tee-pubkey` (kbs-protocol, 2.3). Raises KeyInvalid."""
    # All members are hashed into the report data, whose canonical form is ours for ASCII names only.
    if len(jwk) > bounds.KEY_MEMBERS or not all(name.isascii() for name in jwk):
        raise KeyInvalid("tee-pubkey has members that no JWK has")
    try:
        if jwk["kty"] == "EC":
            return _ec_key(jwk)
        if jwk["kty"] == "RSA":
            return _rsa_key(jwk)
    except KeyError as error:
        raise KeyInvalid(f"tee-pubkey has no member {error.args[0]}") from error
    except ValueError as error:
        raise KeyInvalid("tee-pubkey is not a public key") from error
    raise KeyInvalid("tee-pubkey is neither an EC nor an RSA key")


def seal(plaintext: bytes, key: Recipient) -> bytes:
    """The JWE's JSON text."""
    content_key = os.urandom(32)
    if isinstance(key, rsa.RSAPublicKey):
        header = b'{"alg":"RSA-OAEP-256","enc":"A256GCM"}'
        wrapped = key.encrypt(content_key, padding.OAEP(padding.MGF1(SHA256()), SHA256(), None))
    else:
        ephemeral = ec.generate_private_key(key.curve)
        header = _ecdh_header(ephemeral.public_key())
        wrapped = aes_key_wrap(_wrapping_key(ephemeral.exchange(ec.ECDH(), key)), content_key)
    protected = base64url.encode(header)
    iv = os.urandom(12)
    sealed = AESGCM(content_key).encrypt(iv, plaintext, protected.encode())
    return msgspec.json.encode(
        {
            "protected": protected,
            "encrypted_key": base64url.encode(wrapped),
            "iv": base64url.encode(iv),
            "ciphertext": base64url.encode(sealed[:-16]),
            "tag": base64url.encode(sealed[-16:]),
        }
    )


def _ec_key(jwk: Mapping[str, str]) -> ec.EllipticCurvePublicKey:
    curve = _CURVES.get(jwk["crv"])
    if curve is None or jwk["alg"] != _ECDH:
        raise KeyInvalid(f"tee-pubkey is not of {' or '.join(_CURVES)} for {_ECDH}")
    x, y = base64url.decode(jwk["x"]), base64url.decode(jwk["y"])
    if {len(x), len(y)} != {_coordinate_bytes(curve)}:
        raise KeyInvalid("tee-pubkey has coordinates of another length than its curve")
    numbers = ec.EllipticCurvePublicNumbers(
        int.from_bytes(x, "big"), int.from_bytes(y, "big"), curve
    )
    return numbers.public_key()


def _rsa_key(jwk: Mapping[str, str]) -> rsa.RSAPublicKey:
    if jwk["alg"] != _RSA:
        raise KeyInvalid(f"tee-pubkey is not for {_RSA}")
    n, e = (int.from_bytes(base64url.decode(jwk[name]), "big") for name in ("n", "e"))
    if not _RSA_BITS[0] <= n.bit_length() <= _RSA_BITS[1] or e != 65537:
        raise KeyInvalid("tee-pubkey is not an RSA key of 2048 to 4096 bits with e = 65537")
    return rsa.RSAPublicNumbers(e, n).public_key()


def _coordinate_bytes(curve: ec.EllipticCurve) -> int:
    return (curve.key_size + 7) // 8


def _ecdh_header(public: ec.EllipticCurvePublicKey) -> bytes:
    """The exact text: members in this order, no spaces."""
    size = _coordinate_bytes(public.curve)
    name = next(name for name, curve in _CURVES.items() if curve.name == public.curve.name)
    numbers = public.public_numbers()
    x = base64url.encode(numbers.x.to_bytes(size, "big"))
    y = base64url.encode(numbers.y.to_bytes(size, "big"))
    epk = f'{{"crv":"{name}","kty":"EC","x":"{x}","y":"{y}"}}'
    return f'{{"alg":"{_ECDH}","enc":"A256GCM","epk":{epk}}}'.encode()


def _wrapping_key(shared: bytes) -> bytes:
    """Concat KDF with empty apu and apv, 256 bits (RFC 7518, 4.6)."""
    info = len(_ECDH).to_bytes(4, "big") + _ECDH.encode() + bytes(8) + (256).to_bytes(4, "big")
    return hashlib.sha256(b"\0\0\0\1" + shared + info).digest()
