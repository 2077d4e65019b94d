"""CoCo's annotation packet: a layer's private options, wrapped by a key of a key broker.

    {"kid": "kbs:///repository/type/tag", "wrapped_data": "…", "iv": "…", "wrap_type": "A256GCM"}

wrapped_data: AES-256-GCM ciphertext and its tag, without associated data; both it and iv in base64. This
is version 1, which every reader of the packet takes; version 2's additional members are read over.
"""

import os
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES: Final = 32
_IV_BYTES: Final = 12
_GCM: Final = "A256GCM"


class PacketInvalid(Exception):
    """Not a packet, or not one of this key's."""


class Packet(msgspec.Struct, frozen=True):
    """See the module's docstring."""

    kid: str
    wrapped_data: str
    iv: str
    wrap_type: str


def wrap(options: bytes, key: bytes, kid: str) -> bytes:
    """The packet, as JSON text. key: KEY_BYTES."""
    iv = os.urandom(_IV_BYTES)
    wrapped = AESGCM(key).encrypt(iv, options, None)
    return msgspec.json.encode(Packet(kid, _base64(wrapped), _base64(iv), _GCM))


def parse(text: bytes) -> Packet:
    """Raises PacketInvalid."""
    try:
        return msgspec.json.decode(text, type=Packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PacketInvalid(f"the annotation is no packet of a key provider: {error}") from error


def unwrap(packet: Packet, key: bytes) -> bytes:
    """The private options. Raises PacketInvalid."""
    if packet.wrap_type != _GCM:
        raise PacketInvalid(f"the packet is wrapped by {packet.wrap_type[:40]!a}, not {_GCM}")
    try:
        iv = a2b_base64(packet.iv, strict_mode=True)
        wrapped = a2b_base64(packet.wrapped_data, strict_mode=True)
        return AESGCM(key).decrypt(iv, wrapped, None)
    except (Base64Error, ValueError, InvalidTag) as error:
        raise PacketInvalid(f"the key {packet.kid[:200]!a} does not open the packet") from error


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()
