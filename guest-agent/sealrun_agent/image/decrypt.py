"""Encrypted layers (ocicrypt): annotations in, checked plaintext out.

Rules, in order:

1. The layer's media type ends in `+encrypted`, and its descriptor carries the public options
   (annotation …enc.pubopts) and one or more wrapped copies of the private options (…enc.keys.jwe,
   .pkcs7, .provider.NAME; several are separated by commas, each base64 by itself).
2. The cipher is AES_256_CTR_HMAC_SHA256: AES-256 in counter mode, and HMAC-SHA256 with the same key
   over the ciphertext. Any other cipher is refused, an unauthenticated one above all.
3. The HMAC is compared at the end of the stream, in constant time. Nobody may use the layer before.
4. The private options' `digest` is not compared: it is that of the layer as skopeo *read* it, and
   skopeo compresses between reading and encrypting (docs/decisions.md). What the plaintext has to
   be says the configuration's diff_id, which is always compared.
5. Where a layer has wrapped copies of several kinds, those for private keys come first, if the tenant
   named keys; then the packets of key providers, whose name is not looked at, as CoCo does. What
   opens one copy opens the layer. Whatever prevents asking (no broker, no evidence) ends the pull.
"""

import binascii
import hashlib
import hmac
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import DecryptError
from sealrun_agent.image.jwe import MalformedKey, load_key, open_jwe
from sealrun_agent.image.key_packet import KeyUnfit, PacketInvalid, Resource, open_packet
from sealrun_agent.image.manifest import Descriptor
from sealrun_agent.image.pkcs7 import Pkcs7Invalid, open_pkcs7
from sealrun_agent.image.stream import Chunks
from sealrun_agent.jose import JweInvalid
from sealrun_agent.wipe import wipe

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

PUBLIC_OPTIONS: Final = "org.opencontainers.image.enc.pubopts"
_KEYS: Final = "org.opencontainers.image.enc.keys."
_JWE, _PKCS7, _PROVIDER = "jwe", "pkcs7", "provider."
_WRAPPED: Final = 64  # copies of one layer's key
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


class Keys(NamedTuple):
    """What the tenant gives for opening images. private: PEM private keys; none, where none is named.
    resource: what the broker has under a kbs:/// URI. Both are called when needed, and may raise."""

    private: Callable[[], Sequence[bytes]]
    resource: Resource


class Opener:
    """Opens the private options of one image's layers; asks for each key once."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._private: tuple[PrivateKeyTypes, ...] | None = None
        self._resources: dict[str, bytes] = {}

    def layer_key(self, descriptor: Descriptor) -> LayerKey:
        """Raises DecryptError(ENCRYPTION_INVALID, KEY_WRONG, KEY_NOT_CONFIGURED), and what the keys
        raise."""
        what = f"layer {descriptor.digest}"
        public = _public_options(descriptor, what)
        wrapped = _wrapped(descriptor, what)
        refused: list[DecryptError] = []
        for scheme, part in wrapped:
            try:
                opened = self._opened(scheme, part, what)
            except DecryptError as error:
                refused.append(error)
                continue
            try:
                return _layer_key(opened, public, what)
            finally:
                wipe((opened,))
        # A key that does not fit says more than one that is not there.
        refused.sort(key=lambda error: error.code is ErrorCode.KEY_NOT_CONFIGURED)
        raise refused[0]

    def _opened(self, scheme: str, part: str, what: str) -> bytes:
        """The private options. Raises DecryptError."""
        sealed = _base64(part, what)
        try:
            if scheme.startswith(_PROVIDER):
                return open_packet(sealed, self._resource)
            private = self._private_keys()
            opened = (open_jwe if scheme == _JWE else open_pkcs7)(sealed, private)
        except (JweInvalid, Pkcs7Invalid, PacketInvalid) as error:
            raise DecryptError(
                ErrorCode.ENCRYPTION_INVALID, f"{what}: cannot read its wrapped key: {error}"
            ) from error
        except KeyUnfit as error:
            raise DecryptError(ErrorCode.KEY_WRONG, f"{what}: {error}") from error
        if opened is None:
            count = f"{len(private)} keys" if len(private) > 1 else "key"
            raise DecryptError(ErrorCode.KEY_WRONG, f"{what}: the given {count} cannot open it")
        return opened

    def _private_keys(self) -> tuple["PrivateKeyTypes", ...]:
        if self._private is None:
            self._private = load_keys(self._keys.private())
        return self._private

    def _resource(self, uri: str) -> bytes:
        if uri not in self._resources:
            self._resources[uri] = self._keys.resource(uri)
        return self._resources[uri]


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


def _wrapped(descriptor: Descriptor, what: str) -> list[tuple[str, str]]:
    """Scheme and base64 of each wrapped copy, in the order in which they are tried."""
    found = {
        name.removeprefix(_KEYS): value
        for name, value in sorted(descriptor.annotations.items())
        if name.startswith(_KEYS)
    }
    known = [name for name in (_JWE, _PKCS7) if name in found]
    known += [name for name in found if name.startswith(_PROVIDER)]
    if not known:
        offered = ascii(", ".join(found)[:200]) if found else "nothing"
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID,
            f"{what}: its key is not wrapped by jwe, pkcs7 or a key provider, but by {offered}",
        )
    wrapped = [(name, part) for name in known for part in found[name].split(",")]
    if len(wrapped) > _WRAPPED:
        raise DecryptError(
            ErrorCode.ENCRYPTION_INVALID, f"{what}: its key is wrapped more than {_WRAPPED} times"
        )
    return wrapped


def _public_options(descriptor: Descriptor, what: str) -> _PublicOptions:
    encoded = descriptor.annotations.get(PUBLIC_OPTIONS)
    if encoded is None:
        raise DecryptError(ErrorCode.ENCRYPTION_INVALID, f"{what}: it has no {PUBLIC_OPTIONS}")
    try:
        public = from_json(_base64(encoded, what), _PublicOptions)
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
        private = from_json(private_options, _PrivateOptions)
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
