"""Attestation tokens: EAR claims in a JWT signed with ES256 (kbs-protocol, 5).

The broker asks only its own tokens, and reads back what it wrote: `Attested`. The trustworthiness
vector in a token is that of its making; when a resource is asked for, the claims are appraised once
more, so that a reference value that was taken away counts at once.
"""

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from sealrun_broker import base64url, jwt
from sealrun_broker.appraisal import Appraisal
from sealrun_broker.trustworthiness import Trust

_PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
_ISSUER: Final = "CoCo-Attestation-Service"
_OURS: Final = "sealrun"
_ANNOTATED: Final = "ear.veraison.annotated-evidence"


class Attested(NamedTuple):
    """What a token says that resources are given out by. claims: the verifier's. images: digests of
    the images that the guest pulled; None where no register vouches for them. missing: see
    binding.Verified."""

    tee: str
    claims: Mapping[str, Any]
    init_data: tuple[str, ...]
    images: tuple[str, ...] | None
    missing: tuple[str, ...]
    tee_pubkey: Mapping[str, str]


class Tokens:
    """Issues and verifies with one P-256 key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, seconds: int) -> None:
        self._key = key
        self._seconds = seconds

    def issue(self, appraisal: Appraisal, trust: Trust) -> str:
        """The token of an appraised client."""
        now = int(time.time())
        claims = {
            "eat_profile": _PROFILE,
            "iss": _ISSUER,
            "iat": now,
            "exp": now + 1 + self._seconds,  # not before the session's own end
            "ear.verifier-id": {"developer": "sealrun", "build": "sealrun-broker"},
            "submods": {"cpu0": _submod(appraisal, trust)},
        }
        return jwt.sign(claims, self._key, jwk=self._jwk())

    def verify(self, token: str) -> Attested:
        """Raises jwt.TokenInvalid."""
        claims = jwt.verify(token, self._key.public_key())
        try:
            submod = claims["submods"]["cpu0"]
            ours, annotated = submod[_OURS], submod[_ANNOTATED]
            return Attested(
                tee=ours["tee"],
                claims=annotated[ours["tee"]],
                init_data=tuple(ours["init-data-digests"]),
                images=None if ours["images"] is None else tuple(ours["images"]),
                missing=tuple(ours["missing"]),
                tee_pubkey=annotated["runtime_data_claims"]["tee-pubkey"],
            )
        except (KeyError, TypeError) as error:
            raise jwt.TokenInvalid(
                "the token is not an attestation token of this broker"
            ) from error

    def _jwk(self) -> dict[str, str]:
        numbers = self._key.public_key().public_numbers()
        x, y = (base64url.encode(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}


def _submod(appraisal: Appraisal, trust: Trust) -> dict[str, Any]:
    claims, images = appraisal.verified.claims, appraisal.verified.images
    bound = {name: claims[name] for name in ("report_data", "init_data") if name in claims}
    validated = {} if images is None else {"container_images": images}
    return {
        "ear.status": trust.status,
        "ear.trustworthiness-vector": trust.vector,
        "ear.appraisal-policy-id": "default",
        _ANNOTATED: {
            appraisal.tee: claims,
            **bound,
            "runtime_data_claims": appraisal.runtime_data,
        },
        "ear.trustee.identifiers": {"validated": validated},
        _OURS: {
            "tee": appraisal.tee,
            "init-data-digests": appraisal.init_data,
            "images": images,
            "missing": appraisal.verified.missing,
        },
    }
