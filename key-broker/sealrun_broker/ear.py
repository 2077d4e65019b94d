"""Attestation tokens: EAR claims in a JWT signed with ES256 (kbs-protocol, 5).

The broker asks only its own tokens, and reads back no more than it wrote: `Attested`.
"""

import time
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec

from sealrun_broker import base64url, jwt
from sealrun_broker.appraisal import Appraisal

_PROFILE: Final = "tag:github.com,2024:confidential-containers/Trustee"
_ISSUER: Final = "CoCo-Attestation-Service"
_OURS: Final = "sealrun"
_ANNOTATED: Final = "ear.veraison.annotated-evidence"

# Trustee's default policy where no reference value matches: nothing is vouched for.
_VECTOR: Final = {"executables": 33, "hardware": 97, "configuration": 36}
_STATUS: Final = "contraindicated"


class Attested(NamedTuple):
    """What a token says that resources are given out by."""

    tee: str
    init_data: tuple[str, ...]
    tee_pubkey: Mapping[str, str]


class Tokens:
    """Issues and verifies with one P-256 key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, seconds: int) -> None:
        self._key = key
        self._seconds = seconds

    def issue(self, appraisal: Appraisal) -> str:
        """The token of an appraised client."""
        now = int(time.time())
        claims = {
            "eat_profile": _PROFILE,
            "iss": _ISSUER,
            "iat": now,
            "exp": now + 1 + self._seconds,  # not before the session's own end
            "ear.verifier-id": {"developer": "sealrun", "build": "sealrun-broker"},
            "submods": {"cpu0": _submod(appraisal)},
        }
        return jwt.sign(claims, self._key, jwk=self._jwk())

    def verify(self, token: str) -> Attested:
        """Raises jwt.TokenInvalid."""
        claims = jwt.verify(token, self._key.public_key())
        try:
            submod = claims["submods"]["cpu0"]
            return Attested(
                tee=submod[_OURS]["tee"],
                init_data=tuple(submod[_OURS]["init-data-digests"]),
                tee_pubkey=submod[_ANNOTATED]["runtime_data_claims"]["tee-pubkey"],
            )
        except (KeyError, TypeError) as error:
            raise jwt.TokenInvalid(
                "the token is not an attestation token of this broker"
            ) from error

    def _jwk(self) -> dict[str, str]:
        numbers = self._key.public_key().public_numbers()
        x, y = (base64url.encode(number.to_bytes(32, "big")) for number in (numbers.x, numbers.y))
        return {"kty": "EC", "crv": "P-256", "alg": "ES256", "x": x, "y": y}


def _submod(appraisal: Appraisal) -> dict[str, Any]:
    return {
        "ear.status": _STATUS,
        "ear.trustworthiness-vector": _VECTOR,
        "ear.appraisal-policy-id": "default",
        _ANNOTATED: {
            appraisal.tee: appraisal.claims,
            "runtime_data_claims": appraisal.runtime_data,
        },
        _OURS: {"tee": appraisal.tee, "init-data-digests": appraisal.init_data},
    }
