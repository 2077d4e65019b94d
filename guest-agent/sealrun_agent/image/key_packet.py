"""The annotation packet of CoCo's key provider `attestation-agent`: opening only.

    {"kid": "kbs:///…", "wrapped_data": BASE64, "iv": BASE64, "wrap_type": "A256GCM"}

and, of version 2, `version`, `provider`, `provider_settings` and `annotations` beside it. Rules:

1. A missing version is 0.1.0, a missing provider kbs: the first version reads as the second.
2. `kid` names a resource of the tenant's broker, 32 bytes: the key of AES-256-GCM that opens
   `wrapped_data` (ciphertext, then the tag) with the 12 bytes of `iv` and no associated data.
3. A256CTR, which CoCo still reads, is refused: it authenticates nothing.

Which broker is asked stands in the init-data; a host within `kid` is not obeyed.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from sealrun_protocol.decoding import from_json
from sealrun_protocol.resource_uri import ResourceNameInvalid, parse_uri

VERSION: Final = "0.1.0"
PROVIDER: Final = "kbs"
WRAP_TYPE: Final = "A256GCM"
_KEY_BYTES: Final = 32
_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16

Resource = Callable[[str], bytes]
"""What the tenant's broker has under a kbs:/// URI."""


class PacketInvalid(Exception):
    """Not a packet that is supported; the text says why, in one line."""


class KeyUnfit(Exception):
    """The broker's key does not open the packet; the text says why, in one line."""


class _Packet(msgspec.Struct, frozen=True):
    kid: str
    wrapped_data: bytes  # msgspec decodes base64
    iv: bytes = b""
    wrap_type: str = ""
    version: str = VERSION
    provider: str = PROVIDER


def open_packet(text: bytes, resource: Resource) -> bytes:
    """The plaintext. Raises PacketInvalid, KeyUnfit, and what `resource` raises."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        packet = from_json(text, _Packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PacketInvalid(f"it is not a key provider's packet: {error}") from error
    if packet.version != VERSION or packet.provider != PROVIDER:
        raise PacketInvalid(f"it is not of version {VERSION} and provider {PROVIDER}")
    if packet.wrap_type != WRAP_TYPE:
        raise PacketInvalid(f"it is wrapped by {packet.wrap_type[:40]!a}, not {WRAP_TYPE}")
    if len(packet.iv) != _IV_BYTES or len(packet.wrapped_data) < _TAG_BYTES:
        raise PacketInvalid("its iv is not 12 bytes long, or it wraps nothing")
    # coco_keyprovider makes up ids without a scheme where it is given none.
    uri = f"kbs://{packet.kid}" if packet.kid.startswith("/") else packet.kid
    try:
        name = parse_uri(uri)
    except ResourceNameInvalid as error:
        raise PacketInvalid(f"its kid: {error}") from error
    key = resource(f"kbs:///{name}")
    if len(key) != _KEY_BYTES:
        raise KeyUnfit(f"the broker's resource {name} is not a key of {_KEY_BYTES} bytes")
    try:
        return AESGCM(key).decrypt(packet.iv, packet.wrapped_data, None)
    except InvalidTag:
        raise KeyUnfit(f"the broker's key {name} is another one") from None
