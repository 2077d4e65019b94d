"""The key pair that is made in the guest, bound into the evidence, and opens the broker's answers."""

from typing import TYPE_CHECKING, NamedTuple

from sealrun_agent.attestation.jwe import open_jwe
from sealrun_agent.jose import CURVES, KEY_AGREEMENT, encode

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey


class TeeKey(NamedTuple):
    """private: never leaves this process. public: the JWK `tee-pubkey` (kbs-protocol, 2.3)."""

    private: "EllipticCurvePrivateKey"
    public: dict[str, str]

    def open(self, jwe: bytes) -> bytes:
        """What was encrypted for this key. Raises JweInvalid."""
        return open_jwe(jwe, self.private)


def generate() -> TeeKey:
    """A new P-256 key pair, CoCo's default."""
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

    private = generate_private_key(SECP256R1())
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
