"""From evidence to claims: the one place that knows which kinds of evidence count.

Rules, in order:

1. The policy allows this kind of evidence (`sample` only by name).
2. The evidence is bound to the nonce and key: hash(R1) (kbs-protocol, 2.4), checked by its verifier.
3. Additional evidence, of devices, is not understood, so it is refused rather than passed over.
4. The digests of the init-data are claims. Sample evidence binds no init-data: there it is the
   client's word, as all the rest of it.
"""

import hashlib
from typing import Any, Final, NamedTuple

import msgspec

from sealrun_broker.errors import Refusal
from sealrun_broker.policy import Policy
from sealrun_broker.verifiers import sample

_DIGESTS: Final = ("sha256", "sha384", "sha512")


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
    """What is known of a client. claims: the verifier's. init_data: hex digests of its init-data by
    each algorithm, or none."""

    tee: str
    claims: dict[str, Any]
    init_data: tuple[str, ...]
    runtime_data: dict[str, Any]


def report_data(runtime_data: RuntimeData, additional_evidence: str) -> bytes:
    """SHA-384 of R1's RFC 8785 form: sorted names, no spaces. The names are ASCII, the values
    strings, so that sorting by code point is sorting by UTF-16."""
    bound = {"additional-evidence": additional_evidence, **_as_json(runtime_data)}
    return hashlib.sha384(msgspec.json.encode(bound, order="sorted")).digest()


def appraise(tee: str, attestation: Attestation, policy: Policy) -> Appraisal:
    """Raises Refusal."""
    if tee != "sample":
        raise Refusal(401, "AttestationError", f"evidence of kind {tee[:40]!a} is not supported")
    if not policy.evidence.insecure_sample:
        raise Refusal(401, "AttestationError", "the policy does not allow sample evidence")
    evidence = attestation.tee_evidence
    if evidence.additional_evidence:
        raise Refusal(401, "AttestationError", "additional evidence is not supported")
    expected = report_data(attestation.runtime_data, evidence.additional_evidence)
    return Appraisal(
        tee=tee,
        claims=sample.verify(evidence.primary_evidence, expected),
        init_data=_init_data_digests(attestation.init_data),
        runtime_data=_as_json(attestation.runtime_data),
    )


def _as_json(runtime_data: RuntimeData) -> dict[str, Any]:
    return {"nonce": runtime_data.nonce, "tee-pubkey": runtime_data.tee_pubkey}


def _init_data_digests(init_data: InitData | None) -> tuple[str, ...]:
    """By every algorithm, rather than by the one that the text names: the text is a client's, and
    is not worth parsing to know which of three digests the policy means."""
    if init_data is None:
        return ()
    if init_data.format != "toml":
        raise Refusal(401, "AttestationError", "init-data of another format than toml")
    text = init_data.body.encode()
    return tuple(hashlib.new(name, text).hexdigest() for name in _DIGESTS)
