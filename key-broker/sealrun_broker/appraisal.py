"""From evidence to claims: the one place that knows which kinds of evidence count.

Rules, in order:

1. The policy allows this kind of evidence (`sample` only by name).
2. The evidence is genuine and bound to the nonce and key, hash(R1) (kbs-protocol, 2.4): its
   verifier's rules.
3. Additional evidence, of devices, is not understood, so it is refused rather than passed over.
4. The digests of the init-data are claims. A verifier has compared the text with what the hardware
   was launched with. Sample evidence binds none: there it is the client's word, as all the rest.

Whether the VM is a good one is another question: trustworthiness.py.
"""

import hashlib
from typing import Any, NamedTuple

import msgspec

from sealrun_broker.collateral import Collateral
from sealrun_broker.errors import Refusal
from sealrun_broker.policy import Evidence as EvidencePolicy
from sealrun_broker.verifiers import sample, snp, tpm
from sealrun_broker.verifiers.binding import ALGORITHMS, KINDS, EvidenceInvalid, Expected, Verified


class InitData(msgspec.Struct, frozen=True):
    """`init-data` of /attest."""

    format: str
    body: str


class RuntimeData(msgspec.Struct, frozen=True):
    """`runtime-data` of /attest."""

    nonce: str
    tee_pubkey: dict[str, str] = msgspec.field(name="tee-pubkey")


class TeeEvidence(msgspec.Struct, frozen=True):
    """`tee-evidence` of /attest."""

    primary_evidence: Any
    additional_evidence: str = ""


class Attestation(msgspec.Struct, frozen=True):
    """The body of /attest (kbs-protocol, 2.2)."""

    runtime_data: RuntimeData = msgspec.field(name="runtime-data")
    tee_evidence: TeeEvidence = msgspec.field(name="tee-evidence")
    init_data: InitData | None = msgspec.field(name="init-data", default=None)


class Appraisal(NamedTuple):
    """What is known of a client. init_data: hex digests of its init-data by each algorithm, or
    none."""

    tee: str
    verified: Verified
    init_data: tuple[str, ...]
    runtime_data: dict[str, Any]


def report_data(runtime_data: RuntimeData, additional_evidence: str) -> bytes:
    """SHA-384 of R1's RFC 8785 form: sorted names, no spaces. The names are ASCII, the values
    strings, so that sorting by code point is sorting by UTF-16."""
    bound = {"additional-evidence": additional_evidence, **_as_json(runtime_data)}
    return hashlib.sha384(msgspec.json.encode(bound, order="sorted")).digest()


def appraise(
    tee: str, attestation: Attestation, policy: EvidencePolicy, collateral: Collateral, now: float
) -> Appraisal:
    """now: Unix time. Raises Refusal."""
    evidence = attestation.tee_evidence
    if evidence.additional_evidence:
        raise Refusal(401, "AttestationError", "additional evidence is not supported")
    text = _text(attestation.init_data)
    bound = report_data(attestation.runtime_data, evidence.additional_evidence)
    try:
        verified = verify(
            tee, evidence.primary_evidence, Expected(bound, text, now), policy, collateral
        )
    except EvidenceInvalid as error:
        raise Refusal(401, "AttestationError", str(error)) from error
    return Appraisal(
        tee=tee,
        verified=verified,
        init_data=init_data_digests(text),
        runtime_data=_as_json(attestation.runtime_data),
    )


def verify(
    tee: str, evidence: object, expected: Expected, policy: EvidencePolicy, collateral: Collateral
) -> Verified:
    """Rules 1 and 2. Raises EvidenceInvalid."""
    if tee not in KINDS:
        raise EvidenceInvalid(f"evidence of kind {tee[:40]!a} is not supported")
    if tee == "sample" and not policy.insecure_sample:
        raise EvidenceInvalid("the policy does not allow sample evidence")
    try:
        match tee:
            case "snp":
                return snp.verify(evidence, expected, collateral, policy.snp_report_versions)
            case "tdx":
                from sealrun_broker.verifiers import tdx  # its library takes 50 ms to import

                return tdx.verify(evidence, expected, collateral)
            case "tpm":
                return tpm.verify(evidence, expected)
            case _:
                return sample.verify(evidence, expected)
    except EvidenceInvalid as error:
        raise EvidenceInvalid(f"{tee} evidence: {error}") from error


def init_data_digests(text: bytes | None) -> tuple[str, ...]:
    """By every algorithm, rather than by the one that the text names: the text is a client's, and
    is not worth parsing to know which of three digests the policy means."""
    if not text:
        return ()
    return tuple(hashlib.new(name, text).hexdigest() for name in ALGORITHMS)


def _text(init_data: InitData | None) -> bytes | None:
    if init_data is None:
        return None
    if init_data.format != "toml":
        raise Refusal(401, "AttestationError", "init-data of another format than toml")
    return init_data.body.encode()


def _as_json(runtime_data: RuntimeData) -> dict[str, Any]:
    return {"nonce": runtime_data.nonce, "tee-pubkey": runtime_data.tee_pubkey}
