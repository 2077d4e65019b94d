"""Encrypted layers (ocicrypt): annotations in, checked plaintext out.

Rules, in order:

1. The layer's media type ends in `+encrypted`, and its descriptor carries the public options
   (annotation …enc.pubopts) and one or more wrapped copies of the private options (…enc.keys.jwe;
   several are separated by commas, each base64 by itself).
2. The cipher is AES_256_CTR_HMAC_SHA256: AES-256 in counter mode, and HMAC-SHA256 with the same key
   over the ciphertext. Any other cipher is refused, an unauthenticated one above all.
3. The HMAC is compared at the end of the stream, in constant time. Nobody may use the layer before.
4. The private options' `digest` is not compared: it is that of the layer as skopeo *read* it, and
   skopeo compresses between reading and encrypting (docs/decisions.md). What the plaintext has to
   be says the configuration's diff_id, which is always compared.
"""

import binascii
import hashlib
import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import DecryptError
from sealrun_agent.image.jwe import MalformedKey, load_key, open_jwe
from sealrun_agent.image.manifest import Descriptor
from sealrun_agent.image.stream import Chunks
from sealrun_agent.jose import JweInvalid

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

PUBLIC_OPTIONS: Final = "org.opencontainers.image.enc.pubopts"
JWE_KEYS: Final = "org.opencontainers.image.enc.keys.jwe"
_ANY_KEYS: Final = "org.opencontainers.image.enc.keys."
CIPHER: Final = "AES_256_CTR_HMAC_SHA256"


class LayerKey(NamedTuple):
    """What opens one layer. symkey: 32 bytes; nonce: 16; hmac: 32, over the ciphertext."""

    symkey: bytes
    nonce: bytes
    hmac: bytes


class _PublicOptions(msgspec.Struct, frozen=True):
    cipher: str
    hmac: bytes  # msgspec decodes base64


class _CipherOptions(msgspec.Struct, frozen=True):
    nonce: bytes


class _PrivateOptions(msgspec.Struct, frozen=True):
    symkey: bytes
    cipheroptions: _CipherOptions


def load_keys(pems: Sequence[bytes]) -> tuple["PrivateKeyTypes", ...]:
    """Raises DecryptError(KEY_NOT_CONFIGURED, KEY_WRONG)."""
    if not pems:
        raise DecryptError(
            ErrorCode.KEY_NOT_CONFIGURED, "the image is encrypted, and no decryption key is given"
        )
    try:
        return tuple(load_key(pem) for pem in pems)
    except MalformedKey as error:
        raise DecryptError(ErrorCode.KEY_WRONG, f"cannot read a decryption key: {error}") from error


def layer_key(descriptor: Descriptor, keys: Sequence["PrivateKeyTypes"]) -> LayerKey:
    """Open the private options of a layer. Raises DecryptError(ENCRYPTION_INVALID, KEY_WRONG)."""
    what = f"layer {descriptor.digest}"
    public = _public_options(descriptor, what)
    wrapped = descriptor.annotations.get(JWE_KEYS)
    if wrapped is None:
        schemes = [n[len(_ANY_KEYS) :] for n in descriptor.annotations if n.startswith(_ANY_KEYS)]
        offered = ascii(", ".join(sorted(schemes))[:200]) if schemes else "nothing"
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID, f"{what}: its key is not wrapped by jwe, but by {offered}"
        )
    for part in wrapped.split(","):
        try:
            opened = open_jwe(_base64(part, what), keys)
        except JweInvalid as error:
            raise DecryptError(
                ErrorCode.ENCRYPTION_INVALID, f"{what}: cannot read its wrapped key: {error}"
            ) from error
        if opened is not None:
            return _layer_key(opened, public, what)
    count = f"{len(keys)} keys" if len(keys) > 1 else "key"
    raise DecryptError(ErrorCode.KEY_WRONG, f"{what}: the given {count} cannot open it")


def decrypted(chunks: Chunks, key: LayerKey, what: str) -> Chunks:
    """The stage that decrypts. At the end it raises DecryptError(LAYER_TAMPERED) unless the HMAC
    agrees."""
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import AES
    from cryptography.hazmat.primitives.ciphers.modes import CTR

    mac = hmac.new(key.symkey, digestmod=hashlib.sha256)
    cipher = Cipher(AES(key.symkey), CTR(key.nonce)).decryptor()
    for chunk in chunks:
        mac.update(chunk)
        yield cipher.update(chunk)
    if not hmac.compare_digest(mac.digest(), key.hmac):
        raise DecryptError(
            ErrorCode.LAYER_TAMPERED, f"{what} does not match its authentication code"
        )


def _public_options(descriptor: Descriptor, what: str) -> _PublicOptions:
    encoded = descriptor.annotations.get(PUBLIC_OPTIONS)
    if encoded is None:
        raise DecryptError(ErrorCode.ENCRYPTION_INVALID, f"{what}: it has no {PUBLIC_OPTIONS}")
    try:
        public = msgspec.json.decode(_base64(encoded, what), type=_PublicOptions)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID, f"{what}: cannot read its public options: {error}"
        ) from error
    if public.cipher != CIPHER:
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID,
            f"{what}: its cipher is {public.cipher[:40]!a}, not {CIPHER}",
        )
    if len(public.hmac) != 32:
        raise DecryptError(ErrorCode.ENCRYPTION_INVALID, f"{what}: its hmac is not 32 bytes long")
    return public


def _layer_key(private_options: bytes, public: _PublicOptions, what: str) -> LayerKey:
    try:
        private = msgspec.json.decode(private_options, type=_PrivateOptions)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # The error's text could quote the key: it is not repeated.
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID, f"{what}: cannot read its private options"
        ) from error
    nonce = private.cipheroptions.nonce
    if len(private.symkey) != 32 or len(nonce) != 16:
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID,
            f"{what}: its private options are not a 32-byte key and a 16-byte nonce",
        )
    return LayerKey(private.symkey, nonce, public.hmac)


def _base64(text: str, what: str) -> bytes:
    try:
        return binascii.a2b_base64(text.strip().encode("ascii"), strict_mode=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID, f"{what}: an annotation is not base64"
        ) from error
