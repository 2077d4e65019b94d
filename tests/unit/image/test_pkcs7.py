"""PKCS #7 envelopes: opened where they are what Go or RFC 5652 writes, else refused in one line."""

import contextlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from fixtures.encryption import der, envelope
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.image.pkcs7 import Pkcs7Invalid, open_pkcs7

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
CURVE = ec.generate_private_key(ec.SECP256R1())
ENVELOPE = envelope(b"secret", RSA)


@pytest.mark.parametrize("standard", [False, True])
def test_opens(standard: bool) -> None:
    for recipients in ((RSA,), (OTHER, RSA), (RSA, OTHER)):
        sealed = envelope(b"secret", *recipients, standard=standard)
        assert open_pkcs7(sealed, [CURVE, RSA]) == b"secret"


def test_a_key_that_does_not_fit_opens_nothing() -> None:
    assert open_pkcs7(ENVELOPE, [OTHER, CURVE]) is None
    assert open_pkcs7(ENVELOPE, []) is None


@pytest.mark.parametrize(
    ("sealed", "cause"),
    [
        (b"", "not what stands there"),
        (ENVELOPE + b"\0", "goes on"),
        (ENVELOPE[:-1], "ends early"),
        (b"\x30\x80" + ENVELOPE[2:], "length"),
        (b"\x30\x85" + ENVELOPE, "length"),
        (b"\x30\x84\xff\xff\xff\xff", "ends early"),
        (b"\x30\x84\xff", "ends early"),
        (der(0x30, der(0x06, bytes.fromhex("2a864886f70d010701"))), "no enveloped data"),
        (ENVELOPE.replace(bytes.fromhex("608648016503040106"), bytes.fromhex("608648016503040102")), "GCM"),
        (ENVELOPE.replace(b"\2\1\x10", b"\2\1\x0c"), "tag"),
        (envelope(b"x", *[RSA] * 65), "more than 64"),
    ],
)  # fmt: skip
def test_refused(sealed: bytes, cause: str) -> None:
    with pytest.raises(Pkcs7Invalid, match=cause) as caught:
        open_pkcs7(sealed, [RSA])
    assert str(caught.value).isprintable()


@given(st.integers(0, len(ENVELOPE) - 1), st.integers(1, 255))
def test_any_changed_byte_is_noticed(position: int, change: int) -> None:
    """Unless it stands where nobody looks: in a version, a name, or the type of the content."""
    changed = bytearray(ENVELOPE)
    changed[position] ^= change
    with contextlib.suppress(Pkcs7Invalid):
        assert open_pkcs7(bytes(changed), [RSA]) in (None, b"secret")


@given(st.binary(max_size=80))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Pkcs7Invalid):
        open_pkcs7(data, [RSA])
