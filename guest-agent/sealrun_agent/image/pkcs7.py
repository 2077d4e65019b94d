"""PKCS #7 enveloped data (RFC 5652, 6) with AES-GCM (RFC 5084), as ocicrypt writes it: opening only.

Read by hand because `cryptography` opens envelopes in CBC mode only. What Go's writer does against
the letter is taken too: the algorithm's parameters stand in a second SEQUENCE, which is marked as
primitive, their nonce is [4], and the content is an OCTET STRING within [0]. Key transport is RSAES-PKCS1-v1_5. The recipients' names are
not looked at: whichever key opens an envelope was meant.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

_INTEGER, _OCTETS, _OID, _SEQUENCE, _SET = 0x02, 0x04, 0x06, 0x30, 0x31
_CONTEXT, _CONTEXT_PRIMITIVE = 0xA0, 0x80
_SEQUENCE_AS_PRIMITIVE: Final = 0x10
_NONCE_OF_GO: Final = 0x84
_ENVELOPED_DATA: Final = bytes.fromhex("2a864886f70d010703")
_RSA_ENCRYPTION: Final = bytes.fromhex("2a864886f70d010101")
# 2.16.840.1.101.3.4.1.6 and .46: the content's algorithm by its key's length
_AES_GCM: Final = {
    bytes.fromhex("608648016503040106"): 16,
    bytes.fromhex("60864801650304012e"): 32,
}
_TAG_BYTES: Final = 16
_NONCE_BYTES: Final = 12
_RECIPIENTS: Final = 64


class Pkcs7Invalid(Exception):
    """Not an envelope that is supported; the text says why, in one line."""


class _Reader:
    """DER values (X.690, 10), one after the other: definite lengths, which stay inside."""

    def __init__(self, data: bytes) -> None:
        self._data, self._position = data, 0

    def __bool__(self) -> bool:
        return self._position < len(self._data)

    def next_tag(self) -> int:
        """Of the next value; -1 at the end."""
        return self._data[self._position] if self else -1

    def take(self, *tags: int) -> bytes:
        """The content of the next value, which has one of these tags. Raises Pkcs7Invalid."""
        if self.next_tag() not in tags:
            raise Pkcs7Invalid(
                f"at byte {self._position} it is not what stands there in an envelope"
            )
        length, start = self._length(self._position + 1)
        self._position = start + length
        if self._position > len(self._data):
            raise Pkcs7Invalid("it ends early")
        return self._data[start : self._position]

    def inside(self, *tags: int) -> "_Reader":
        """A reader of what the next value consists of. Raises Pkcs7Invalid."""
        return _Reader(self.take(*tags))

    def end(self) -> None:
        """Nothing follows. Raises Pkcs7Invalid."""
        if self:
            raise Pkcs7Invalid("it goes on where it should end")

    def _length(self, position: int) -> tuple[int, int]:
        """A length, and where the content starts."""
        first = self._data[position : position + 1]
        if not first or first[0] == 0x80 or first[0] > 0x84:
            raise Pkcs7Invalid("it has a length that cannot be read")
        if first[0] < 0x80:
            return first[0], position + 1
        count = first[0] & 0x7F
        octets = self._data[position + 1 : position + 1 + count]
        if len(octets) < count:
            raise Pkcs7Invalid("it ends early")
        return int.from_bytes(octets, "big"), position + 1 + count


def open_pkcs7(envelope: bytes, keys: Sequence["PrivateKeyTypes"]) -> bytes | None:
    """The plaintext, or None where none of the keys opens it. Raises Pkcs7Invalid."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    outer = _Reader(envelope)
    info = outer.inside(_SEQUENCE)
    outer.end()
    if info.take(_OID) != _ENVELOPED_DATA:
        raise Pkcs7Invalid("it is no enveloped data")
    data = info.inside(_CONTEXT).inside(_SEQUENCE)
    data.take(_INTEGER)  # a version: the rest tells itself
    encrypted_keys = _encrypted_keys(data.inside(_SET))
    key_bytes, nonce, sealed = _content(data.inside(_SEQUENCE))
    for content_key in _unwrapped(encrypted_keys, keys):
        if len(content_key) != key_bytes:
            continue  # PKCS #1 v1.5: a wrong key may give anything
        try:
            return AESGCM(content_key).decrypt(nonce, sealed, None)
        except InvalidTag:
            continue
    return None


def _encrypted_keys(recipients: _Reader) -> list[bytes]:
    """Of those recipients whom RSA serves (RFC 5652, 6.2.1)."""
    found: list[bytes] = []
    for _ in range(_RECIPIENTS):
        if not recipients:
            return found
        if recipients.next_tag() != _SEQUENCE:
            raise Pkcs7Invalid("a recipient's key is not transported, but agreed on or derived")
        recipient = recipients.inside(_SEQUENCE)
        recipient.take(_INTEGER)
        recipient.take(_SEQUENCE, _CONTEXT_PRIMITIVE)  # issuer and number, or the key's identifier
        if recipient.inside(_SEQUENCE).take(_OID) == _RSA_ENCRYPTION:
            found.append(recipient.take(_OCTETS))
    raise Pkcs7Invalid(f"it has more than {_RECIPIENTS} recipients")


def _content(info: _Reader) -> tuple[int, bytes, bytes]:
    """The length of the key, the nonce, and ciphertext with tag."""
    info.take(_OID)  # of the content: it is not looked at, as ocicrypt does
    algorithm = info.inside(_SEQUENCE)
    key_bytes = _AES_GCM.get(algorithm.take(_OID))
    if key_bytes is None:
        raise Pkcs7Invalid("its content is not encrypted with AES in GCM mode")
    parameters = algorithm.inside(_SEQUENCE, _SEQUENCE_AS_PRIMITIVE)
    if parameters.next_tag() == _SEQUENCE:
        parameters = parameters.inside(_SEQUENCE)
    nonce = parameters.take(_OCTETS, _NONCE_OF_GO)
    tag_bytes = int.from_bytes(parameters.take(_INTEGER), "big") if parameters else 12  # RFC 5084
    if len(nonce) != _NONCE_BYTES or tag_bytes != _TAG_BYTES:
        raise Pkcs7Invalid("its nonce is not 12 bytes or its tag not 16 bytes long")
    if info.next_tag() == _CONTEXT_PRIMITIVE:
        return key_bytes, nonce, info.take(_CONTEXT_PRIMITIVE)
    parts, sealed = info.inside(_CONTEXT), b""
    while parts:
        sealed += parts.take(_OCTETS)
    return key_bytes, nonce, sealed


def _unwrapped(
    encrypted_keys: Sequence[bytes], keys: Sequence["PrivateKeyTypes"]
) -> Iterator[bytes]:
    """What the keys make of the recipients' encrypted keys."""
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

    for key in keys:
        if not isinstance(key, RSAPrivateKey):
            continue
        for encrypted_key in encrypted_keys:
            try:
                yield key.decrypt(encrypted_key, PKCS1v15())
            except ValueError:
                continue
