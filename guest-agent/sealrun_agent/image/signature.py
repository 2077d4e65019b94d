"""One signature of an image: is it by one of the keys, for this digest, and for this name. No I/O but gpgv.

Both kinds sign the same document, atomic's "simple signing": OpenPGP around it (signedBy), or beside it an
ECDSA, RSA (PKCS #1) or Ed25519 signature over its exact bytes with SHA-256 (sigstoreSigned, as cosign has it).
"""

import binascii
from typing import Final, NamedTuple

from sealrun_agent.image.identity import Identity
from sealrun_agent.image.openpgp import NotSigned, signed_content
from sealrun_agent.image.reference import Reference
from sealrun_agent.image.signature_policy import strict_json

__all__ = ["NotSigned", "Sigstore", "check_openpgp", "check_sigstore"]

_OPENPGP_TYPE: Final = "atomic container signature"
_SIGSTORE_TYPE: Final = "cosign container image signature"


class Sigstore(NamedTuple):
    """An attachment. signature: base64, as its annotation has it."""

    payload: bytes
    signature: str


class Subject(NamedTuple):
    """What the signature has to be for."""

    reference: Reference
    digest: str
    identity: Identity


def check_openpgp(message: bytes, keys: bytes, subject: Subject) -> None:
    """Raises NotSigned."""
    _check_payload(signed_content(message, keys), _OPENPGP_TYPE, subject)


def check_sigstore(signature: Sigstore, key: bytes, subject: Subject) -> None:
    """key: PEM. Raises NotSigned."""
    try:
        raw = binascii.a2b_base64(signature.signature.encode("ascii"), strict_mode=True)
    except ValueError:
        raise NotSigned("the signature is not base64") from None
    _verify(key, raw, signature.payload)
    _check_payload(signature.payload, _SIGSTORE_TYPE, subject)


def _verify(key: bytes, signature: bytes, payload: bytes) -> None:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        public = load_pem_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        raise NotSigned("the policy's key is not a public key in PEM") from None
    try:
        if isinstance(public, ec.EllipticCurvePublicKey):
            public.verify(signature, payload, ec.ECDSA(SHA256()))
        elif isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, payload, padding.PKCS1v15(), SHA256())
        elif isinstance(public, ed25519.Ed25519PublicKey):
            public.verify(signature, payload)
        else:
            raise NotSigned("the policy's key is of a kind that signs no images")
    except InvalidSignature:
        raise NotSigned("it is not by the policy's key") from None


def _check_payload(payload: bytes, kind: str, subject: Subject) -> None:
    """containers-signature(5): members of `critical` are these and no others."""
    try:
        document = strict_json(payload)
    except ValueError:
        raise NotSigned("what was signed is not JSON") from None
    critical = _members(document, "critical", "optional")["critical"]
    found = _members(critical, "type", "image", "identity")
    image = _members(found["image"], "docker-manifest-digest")
    identity = _members(found["identity"], "docker-reference")
    digest, name = image["docker-manifest-digest"], identity["docker-reference"]
    if found["type"] != kind:
        raise NotSigned(f"it is of type {str(found['type'])[:80]!a}, not {kind!a}")
    if digest != subject.digest:
        raise NotSigned(f"it is for {str(digest)[:80]!a}, not for this digest")
    if not isinstance(name, str) or not subject.identity.matches(subject.reference, name):
        raise NotSigned(
            f"it is for {str(name)[:200]!a}, which {subject.identity.kind} does not accept"
        )


def _members(value: object, *names: str) -> dict[str, object]:
    if not isinstance(value, dict) or set(value) != set(names):
        raise NotSigned("what was signed is not a container signature")
    return value
