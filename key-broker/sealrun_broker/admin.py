"""Who may change resources: the bearer of a token that the administrators' key signed."""

import time
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)

from sealrun_broker import bounds, jwt
from sealrun_broker.errors import BrokerError, Refusal

ROLE: Final = "admin"


def public_key(pem: bytes) -> jwt.PublicKey:
    """An Ed25519 or P-256 public key. Raises BrokerError."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BrokerError("cannot read the administrators' public key: it is not PEM") from error
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise BrokerError("cannot use the administrators' public key: neither Ed25519 nor P-256")


def new_token(key_pem: bytes, seconds: int) -> str:
    """A bearer token of an administrator. Raises BrokerError."""
    try:
        key = load_pem_private_key(key_pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise BrokerError("cannot read the administrators' private key: it is not PEM") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise BrokerError("cannot use the administrators' private key: neither Ed25519 nor P-256")
    now = int(time.time())
    return jwt.sign({"role": ROLE, "iat": now, "exp": now + seconds}, key)


def authorize(authorization: str, key: jwt.PublicKey) -> None:
    """Check the header of a request. Raises Refusal."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer":
        raise Refusal(401, "AdminAuthAccess", "an administrator's bearer token is needed")
    try:
        claims = jwt.verify(token.strip(), key)
    except jwt.TokenInvalid as error:
        raise Refusal(401, "AdminAuthAccess", str(error)) from error
    if claims.get("role") != ROLE:
        raise Refusal(401, "AdminAuthAccess", "the token is not an administrator's")
    if claims["exp"] > time.time() + bounds.ADMIN_TOKEN_SECONDS:
        raise Refusal(401, "AdminAuthAccess", "the token lives longer than a day")
