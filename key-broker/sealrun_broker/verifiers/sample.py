"""Sample evidence (kbs-protocol, 7): only the binding can be checked; who made it cannot."""

import binascii
import hmac

import msgspec

from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected, Verified


class _Evidence(msgspec.Struct, frozen=True):
    svn: str
    report_data: str


def verify(evidence: object, expected: Expected) -> Verified:
    """The claims, as Trustee's verifier gives them. Raises EvidenceInvalid."""
    try:
        read = msgspec.convert(evidence, _Evidence)
        bound = binascii.a2b_base64(read.report_data.encode("ascii"), strict_mode=True)
    except ValueError as error:
        raise EvidenceInvalid(str(error)) from error
    if not hmac.compare_digest(bound, expected.report_data):
        raise EvidenceInvalid("the report data does not match")
    return Verified(
        {
            "svn": read.svn,
            "launch_digest": "abcde",
            "platform_version": {"major": 1, "minor": 4},
            "debug": False,
            "report_data": read.report_data,
        }
    )
