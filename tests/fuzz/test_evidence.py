"""Whatever a client sends as evidence: EvidenceInvalid or a good answer, in bounded time."""

import base64
import copy
import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

from fixtures.hostile import a_value, bounded, changed, spliced
from hypothesis import given
from hypothesis import strategies as st
from sealrun_broker import reference_values
from sealrun_broker.collateral import Collateral
from sealrun_broker.reference_values import References
from sealrun_broker.trustworthiness import appraise
from sealrun_broker.verifiers import event_log, snp, snp_report, tdx, tdx_quote, tpm, tpm_quote
from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected
from simulators.event_log import event, header, tagged
from simulators.snp import Amd, as_json
from simulators.tdx import NOW, Body, Intel

BOUND = b"\x5a" * 48
EXPECTED = Expected(BOUND, None, NOW)
NOTHING = Collateral("/nonexistent")
AMD, INTEL = Amd(), Intel()
ROOTS = {AMD.pin: AMD.product}
REPORT = AMD.report(5, report_data=BOUND)
QUOTE = INTEL.quote(Body(report_data=BOUND.ljust(64, b"\0")), 5, 3)
SNP = {"attestation_report": as_json(REPORT), "cert_chain": AMD.chain()}
PULL = b'github.com/confidential-containers PullImage {"digest":"sha256:1","image":"app"}'
LOG = header("sha256", "sha384") + b"".join(
    event(register, kind, data, ["sha256", "sha384"])
    for register, kind, data in (
        (1, 8, b"firmware"),
        (2, 0x80000003, bytes(32) + b"\4\4\x12\0k\0e\0r\0n\0e\0l\0\0\0"),
        (13, 6, tagged(PULL)),
    )
)
ATTEST = (
    b"\xffTCG\x80\x18\0\2\0\x0b\0\x20" + BOUND[:32] + bytes(25)
    + b"\0\0\0\1\0\x0b\3\xff\xff\xff\0\x20" + hashlib.sha256(bytes(24 * 32)).digest()
)  # fmt: skip
TPM = {
    "tpm_quote": {"signature": "ABQACwAA", "message": "", "pcrs": ["00" * 32] * 24},
    "ak_public": "",
    "event_log": base64.b64encode(LOG).decode(),
}


def invalid(work: Callable[[], Any]) -> bool:
    """Whether the input was refused, in one printable line."""
    try:
        work()
    except EvidenceInvalid as error:
        assert str(error).isprintable()
        return True
    return False


def test_the_honest_ones_are_taken() -> None:
    assert snp.verify(SNP, EXPECTED, NOTHING, (5,), ROOTS)
    tdx_quote.verify_signatures(tdx_quote.parse(QUOTE), NOW, {INTEL.pin})
    assert len(event_log.parse(LOG)) == 3
    assert tpm_quote.parse(ATTEST).extra_data == BOUND[:32]


@bounded
@given(spliced(REPORT))
def test_reports(raw: bytes) -> None:
    if not invalid(lambda: snp_report.parse(raw)):
        report = snp_report.parse(raw)
        assert report.raw == raw
        assert snp_report.claims(report, report.reported_tcb(turin=False))


@bounded
@given(changed(SNP["attestation_report"]), changed({"cert_type": "VCEK", "data": [1]}))
def test_members_of_reports(members: dict[str, Any], certificate: dict[str, Any]) -> None:
    for chain in ([certificate], SNP["cert_chain"]):
        evidence = {"attestation_report": members, "cert_chain": chain}
        if not invalid(partial(snp.verify, evidence, EXPECTED, NOTHING, (2, 3, 4, 5), ROOTS)):
            # Members that may be absent were, and what is signed is as it was.
            assert snp.verify(evidence, EXPECTED, NOTHING, (5,), ROOTS)


def test_a_certificate_that_says_two_algorithms() -> None:
    """Found by the test below: what stands before the signature is not signed."""
    der = bytes(AMD.chain()[0]["data"])
    mask = bytes.fromhex("2a864886f70d010108")
    at = der.rindex(mask)
    assert der.index(mask) < at
    chain = [{"cert_type": "VCEK", "data": list(der[:at] + b"\0\0" + der[at + 2 :])}]
    evidence = {**SNP, "cert_chain": [*chain, *AMD.chain()[1:]]}
    assert invalid(lambda: snp.verify(evidence, EXPECTED, NOTHING, (5,), ROOTS))


@bounded
@given(spliced(bytes(AMD.chain()[0]["data"])))
def test_certificates(der: bytes) -> None:
    chain = [{"cert_type": "VCEK", "data": list(der)}, *AMD.chain()[1:]]
    evidence = {**SNP, "cert_chain": chain}
    refused = invalid(lambda: snp.verify(evidence, EXPECTED, NOTHING, (5,), ROOTS))
    assert refused or der == bytes(AMD.chain()[0]["data"])


@bounded
@given(spliced(QUOTE))
def test_quotes(raw: bytes) -> None:
    def read() -> None:
        tdx_quote.verify_signatures(tdx_quote.parse(raw), NOW, {INTEL.pin})

    assert invalid(read) or raw[:48] == QUOTE[:48]
    evidence = {"quote": base64.b64encode(raw).decode()}
    options: dict[str, Any] = {"roots": {INTEL.pin}, "root_der": INTEL.root_der}
    invalid(lambda: tdx.verify(evidence, EXPECTED, NOTHING, **options))


@bounded
@given(changed({"quote": base64.b64encode(QUOTE).decode(), "cc_eventlog": "QUFB"}))
def test_members_of_quotes(evidence: dict[str, Any]) -> None:
    invalid(lambda: tdx.verify(evidence, EXPECTED, NOTHING, roots={INTEL.pin}))


@bounded
@given(spliced(LOG))
def test_event_logs(data: bytes) -> None:
    def read() -> None:
        events = event_log.parse(data)
        assert event_log.claims(events) is not None
        for algorithm in ("sha256", "sha384"):
            event_log.replay(events, 13, algorithm)
            event_log.pulled_images(event_log.agent_entries(events, 13, algorithm))

    invalid(read)


@bounded
@given(spliced(ATTEST))
def test_tpm_messages(message: bytes) -> None:
    if not invalid(lambda: tpm_quote.parse(message)):
        quote = tpm_quote.parse(message)
        assert all(0 <= pcr < 8 * 255 for pcr in quote.selection)


@bounded
@given(spliced(b"\0\x14\0\x0b\1\0" + bytes(256)))
def test_tpm_signatures(signature: bytes) -> None:
    invalid(lambda: tpm_quote.rsassa_signature(signature))


@bounded
@given(changed(TPM))
def test_members_of_tpm_evidence(evidence: dict[str, Any]) -> None:
    assert invalid(lambda: tpm.verify(evidence, EXPECTED))


@bounded
@given(st.binary(max_size=60) | spliced(b'{"a": ["1", 2, true], "b": "x"}'))
def test_reference_values(text: bytes) -> None:
    try:
        values = reference_values.parse(text)
    except (ValueError, RecursionError):
        return
    assert all(isinstance(name, str) for name in values)


@bounded
@given(st.dictionaries(st.sampled_from(["snp_bootloader", "snp_launch_measurement"]), a_value))
def test_reference_values_of_any_type(values: Any) -> None:
    """A wrong type never affirms, and never raises."""
    claims = snp_report.claims(
        snp_report.parse(REPORT), snp_report.parse(REPORT).reported_tcb(False)
    )
    references: References = copy.deepcopy(values)
    assert appraise("snp", claims, references).status == "contraindicated"
