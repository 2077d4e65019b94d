"""The key pair that is made in the guest, bound into the evidence, and opens the broker's answers."""

from typing import TYPE_CHECKING, NamedTuple

from sealrun_protocol.init_data import KEYS

from sealrun_agent.attestation.jwe import RSA_KEY_TRANSPORT, open_jwe
from sealrun_agent.jose import CURVES, KEY_AGREEMENT, encode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey

_P256, _P521, _RSA = KEYS
_RSA_BITS = 2048


class TeeKey(NamedTuple):
    """private: never leaves this process. public: the JWK `tee-pubkey` (kbs-protocol, 2.3)."""

    private: "EllipticCurvePrivateKey | RSAPrivateKey"
    public: dict[str, str]

    def open(self, jwe: bytes) -> bytes:
        """What was encrypted for this key. Raises JweInvalid."""
        return open_jwe(jwe, self.private)

    def pem(self) -> bytes:
        """The private half, PKCS #8."""
        from cryptography.hazmat.primitives import serialization

        return self.private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def generate(kind: str = _P256) -> TeeKey:
    """A new key pair of one of init_data.KEYS."""
    return _rsa() if kind == _RSA else _elliptic(kind)


def _elliptic(kind: str) -> TeeKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP521R1() if kind == _P521 else ec.SECP256R1())
    numbers = private.public_key().public_numbers()
    size = (private.curve.key_size + 7) // 8
    public = {
        "kty": "EC",
        "crv": CURVES[private.curve.name],
        "alg": KEY_AGREEMENT,
        "x": encode(numbers.x.to_bytes(size, "big")),
        "y": encode(numbers.y.to_bytes(size, "big")),
    }
    return TeeKey(private, public)


def _rsa() -> TeeKey:
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(65537, _RSA_BITS)
    numbers = private.public_key().public_numbers()
    public = {
        "kty": "RSA",
        "alg": RSA_KEY_TRANSPORT,
        "n": encode(numbers.n.to_bytes(_RSA_BITS // 8, "big")),
        "e": encode(numbers.e.to_bytes(3, "big")),
    }
    return TeeKey(private, public)
