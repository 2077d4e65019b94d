"""TDX evidence (kbs-protocol, 7.2). Rules, in order:

1. The quote is signed, up to Intel's root (tdx_quote.py).
2. Where the operator has collateral for the platform, it fits and its TCB level is a claim
   (tdx_tcb.py); without it the verdict is that the platform is not known.
3. REPORT_DATA is the expected hash; MRCONFIGID is the digest of the init-data that was sent.
4. The event log, where there is one, replays into RTMR 0 to 3, which it calls registers 1 to 4.

Debugging is a claim (`td_attributes.debug`).
"""

import binascii
from collections.abc import Collection
from typing import Any, Final

import msgspec

from sealrun_broker.collateral import Collateral
from sealrun_broker.verifiers import event_log, tdx_quote, tdx_tcb
from sealrun_broker.verifiers.binding import (
    EvidenceInvalid,
    Expected,
    Verified,
    check_init_data,
    check_report_data,
)
from sealrun_broker.verifiers.event_log import Event
from sealrun_broker.verifiers.tdx_quote import Quote

AGENT_REGISTER: Final = 4  # RTMR 3, in the numbers of event logs
_ALGORITHM: Final = "sha384"
_ATTRIBUTES: Final = {
    "debug": 0,
    "septve_disable": 28,
    "protection_keys": 30,
    "key_locker": 31,
    "perfmon": 63,
}


class _Evidence(msgspec.Struct, frozen=True):
    quote: str
    cc_eventlog: str | None = None


def verify(
    evidence: object,
    expected: Expected,
    collateral: Collateral,
    *,
    roots: Collection[str] = tdx_quote.PINNED_ROOTS,
    root_der: bytes | None = None,
) -> Verified:
    """Check the evidence's JSON. roots and root_der: other ones than Intel's, for tests.

    Raises EvidenceInvalid."""
    try:
        read = msgspec.convert(evidence, _Evidence)
        raw = binascii.a2b_base64(read.quote.encode("ascii"), strict_mode=True)
        log = binascii.a2b_base64((read.cc_eventlog or "").encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise EvidenceInvalid(str(error)) from error
    quote = tdx_quote.parse(raw)
    tdx_quote.verify_signatures(quote, expected.now, roots)
    platform = tdx_tcb.appraise(raw, collateral, expected.now, root_der)
    check_report_data(quote.body["report_data"], expected, "REPORT_DATA")
    check_init_data(quote.body["mr_config_id"], expected, "MRCONFIGID")
    missing = []
    if "tcb_status" not in platform.claims:
        missing.append(f"the collateral has nothing on the platform {platform.fmspc}")
    claims = _claims(quote) | platform.claims
    images = None
    if log:
        events = event_log.parse(log)
        _match(events, quote)
        claims["uefi_event_logs"] = event_log.claims(events)
        entries = event_log.agent_entries(events, AGENT_REGISTER, _ALGORITHM)
        images = event_log.pulled_images(entries)
    else:
        missing.append("there is no event log")
    return Verified(claims, images, tuple(missing))


def _match(events: tuple[Event, ...], quote: Quote) -> None:
    for number in range(4):
        replayed = event_log.replay(events, number + 1, _ALGORITHM)
        if replayed != quote.body[f"rtmr_{number}"]:
            raise EvidenceInvalid(f"the event log does not replay into RTMR {number}")


def _claims(quote: Quote) -> dict[str, Any]:
    read: dict[str, Any] = {
        "header": {name: value.hex() for name, value in quote.header.items()},
        "body": {name: value.hex() for name, value in quote.body.items()},
    }
    if quote.descriptor:
        read |= {"type": quote.descriptor[:2].hex(), "size": quote.descriptor[2:].hex()}
    attributes = int.from_bytes(quote.body["td_attributes"], "little")
    return {
        "quote": read,
        "td_attributes": {name: bool(attributes >> bit & 1) for name, bit in _ATTRIBUTES.items()},
        "report_data": quote.body["report_data"].hex(),
        "init_data": quote.body["mr_config_id"].hex(),
    }
