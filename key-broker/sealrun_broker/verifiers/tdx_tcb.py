"""Whether a TDX platform and its quoting enclave are up to date: dcap-qvl with the operator's collateral.

The library checks Intel's signatures on the collateral, the revocation lists, and the quote once
more, and finds the TCB level. Its functions that fetch collateral are not used: their default is a
third party's service.
"""

import json
from typing import Any, Final, NamedTuple

import dcap_qvl

from sealrun_broker.collateral import Collateral
from sealrun_broker.verifiers.binding import EvidenceInvalid

CURRENT: Final = "0"  # collateral_expiration_status; what has expired is refused


class Platform(NamedTuple):
    """What is known of the machine. claims: in Trustee's names, those of the TCB only where there is
    collateral for it."""

    fmspc: str
    claims: dict[str, Any]


def appraise(
    quote: bytes, collateral: Collateral, now: float, root_der: bytes | None = None
) -> Platform:
    """now: Unix time. root_der: another root than Intel's. Raises EvidenceInvalid."""
    try:
        parsed = dcap_qvl.parse_quote(quote)
        fmspc = parsed.fmspc()
    except ValueError as error:
        raise EvidenceInvalid(f"the quote cannot be read: {error}") from error
    claims: dict[str, Any] = {}
    pck = parsed.pck_extension()
    if pck is not None and pck.platform_instance_id is not None:
        claims["platform_instance_id"] = pck.platform_instance_id.hex()
    text = collateral.tdx(fmspc)
    if text is not None:
        claims |= _tcb(quote, text, int(now), root_der)
    return Platform(fmspc, claims)


def _tcb(quote: bytes, text: str, now: int, root_der: bytes | None) -> dict[str, Any]:
    try:
        found = dcap_qvl.QuoteVerifier(root_der).verify_with_policy(
            quote,
            dcap_qvl.QuoteCollateralV3.from_json(text),
            now,
            # Levels are claims: which are good enough is the appraisal's question.
            dcap_qvl.QuotePolicy.claims_only(now),
        )
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise EvidenceInvalid(f"the quote against the platform's collateral: {reason}") from error
    read = json.loads(found.to_json())
    return {
        "tcb_status": read["tcb"]["status"],
        "tcb_date": read["platform"]["tcb_level"]["tcbDate"],
        "advisory_ids": read["tcb"]["advisory_ids"],
        "collateral_expiration_status": CURRENT,
    }
