"""base64url without padding (RFC 7515, appendix C)."""

import binascii


def encode(data: bytes) -> str:
    """Text without padding."""
    standard = binascii.b2a_base64(data, newline=False).rstrip(b"=")
    return standard.translate(bytes.maketrans(b"+/", b"-_")).decode()


def decode(text: str) -> bytes:
    """Raises ValueError where `text` is not base64url without padding."""
    data = text.encode("ascii")
    if data.translate(None, b"+/=") != data:
        raise ValueError("not base64url without padding")
    standard = data.translate(bytes.maketrans(b"-_", b"+/"))
    return binascii.a2b_base64(standard + b"=" * (-len(data) % 4), strict_mode=True)
