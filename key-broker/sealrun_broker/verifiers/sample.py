"""Sample evidence (kbs-protocol, 7): only the binding can be checked; who made it cannot."""

import binascii
import hmac
from typing import Any

import msgspec

from sealrun_broker.errors import Refusal


class _Evidence(msgspec.Struct, frozen=True):
    svn: str
    report_data: str


def verify(evidence: object, report_data: bytes) -> dict[str, Any]:
    """The claims, as Trustee's verifier gives them. Raises Refusal."""
    try:
        read = msgspec.convert(evidence, _Evidence)
        bound = binascii.a2b_base64(read.report_data.encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise Refusal(401, "AttestationError", f"sample evidence: {error}") from error
    if not hmac.compare_digest(bound, report_data):
        raise Refusal(401, "AttestationError", "sample evidence: the report data does not match")
    return {
        "svn": read.svn,
        "launch_digest": "abcde",
        "platform_version": {"major": 1, "minor": 4},
        "debug": False,
        "report_data": read.report_data,
    }
