"""Appraises an evidence file without a server: `sealrun-broker verify`.

An evidence file is the JSON object {"tee": …, "evidence": …}; evidence is KBS's `primary_evidence`.
Whatever else it holds is for people and is not read: what the evidence must be bound to is the
caller's to say.
"""

from typing import Any

import msgspec

from sealrun_broker import trustworthiness
from sealrun_broker.appraisal import init_data_digests, verify
from sealrun_broker.collateral import Collateral
from sealrun_broker.errors import BrokerError
from sealrun_broker.policy import Evidence as EvidencePolicy
from sealrun_broker.reference_values import References
from sealrun_broker.trustworthiness import AFFIRMING
from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected


class EvidenceFile(msgspec.Struct, frozen=True):
    """tee: the kind. evidence: as the attester of that kind makes it."""

    tee: str
    evidence: Any


def read(text: bytes) -> EvidenceFile:
    """Raises BrokerError."""
    try:
        return msgspec.json.decode(text, type=EvidenceFile)
    except (ValueError, RecursionError) as error:
        raise BrokerError(f"cannot read the evidence file: {error}") from error


def verdict(
    file: EvidenceFile,
    expected: Expected,
    policy: EvidencePolicy,
    collateral: Collateral,
    references: References,
) -> dict[str, Any]:
    """`accepted`, and why. Raises BrokerError for collateral that cannot be read."""
    try:
        verified = verify(file.tee, file.evidence, expected, policy, collateral)
    except EvidenceInvalid as error:
        return {"accepted": False, "genuine": False, "tee": file.tee, "reasons": [str(error)]}
    trust = trustworthiness.appraise(file.tee, verified.claims, references)
    return {
        "accepted": trust.status == AFFIRMING,
        "genuine": file.tee != "sample",
        "tee": file.tee,
        "status": trust.status,
        "trustworthiness-vector": trust.vector,
        "reasons": [*verified.missing, *trust.reasons],
        "init-data-digests": init_data_digests(expected.init_data),
        "images": verified.images,
        "claims": verified.claims,
    }
