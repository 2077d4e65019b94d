"""SEV-SNP evidence (kbs-protocol, 7.1). Rules, in order:

1.  The report's version is one that the policy accepts.
2.  The signing key's certificate chains to a pinned root of AMD's (snp_chain.py). It comes from the
    evidence, or, by chip and TCB, from the operator's collateral; nothing is fetched.
3.  From version 3 on, the CPU that the report names is of the root's product.
4.  The signature (ECDSA P-384, SHA-384) is over the report's bytes.
5.  The certificate's TCB is the reported TCB, and its hardware id the chip id (a VLEK has none).
6.  The report was asked for by VMPL 0.
7.  REPORT_DATA is the expected hash; HOST_DATA is the digest of the init-data that was sent.

Debugging and migration are claims: whether they are allowed is the appraisal's question.
"""

import binascii
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384

from sealrun_broker.collateral import Collateral
from sealrun_broker.verifiers import snp_chain, snp_report
from sealrun_broker.verifiers.binding import (
    EvidenceInvalid,
    Expected,
    Verified,
    check_init_data,
    check_report_data,
)
from sealrun_broker.verifiers.snp_report import Report, ReportJson

ECDSA_P384_SHA384: Final = 1
_CERTIFICATES: Final = 16  # in one evidence
_FAMILIES: Final = {  # (family, model) of CPUID
    "Milan": ((0x19, range(0x10)),),
    "Genoa": ((0x19, range(0x10, 0x20)), (0x19, range(0xA0, 0xB0))),
    "Turin": ((0x1A, range(0x12)),),
}


class _Certificate(msgspec.Struct, frozen=True):
    cert_type: Any  # a name, or {"OTHER": uuid}
    data: list[int]


class _Evidence(msgspec.Struct, frozen=True):
    attestation_report: ReportJson
    cert_chain: list[_Certificate] | None = None


class Chain(NamedTuple):
    """The certificates that came with a report. vek: the first VCEK or VLEK."""

    vek: x509.Certificate | None
    authorities: list[x509.Certificate]


def verify(
    evidence: object,
    expected: Expected,
    collateral: Collateral,
    versions: Collection[int],
    roots: Mapping[str, str] = snp_chain.PINNED_ROOTS,
) -> Verified:
    """Check the evidence's JSON. versions: of reports, that are accepted. roots: other ones than
    AMD's, for tests. Raises EvidenceInvalid."""
    try:
        read = msgspec.convert(evidence, _Evidence)
    except ValueError as error:
        raise EvidenceInvalid(str(error)) from error
    chain = _certificates(read.cert_chain or [])
    report = snp_report.parse(snp_report.from_json(read.attestation_report))
    return verify_report(report, chain, expected, collateral, versions=versions, roots=roots)


def verify_report(
    report: Report,
    chain: Chain,
    expected: Expected,
    collateral: Collateral,
    *,
    versions: Collection[int],
    roots: Mapping[str, str] = snp_chain.PINNED_ROOTS,
) -> Verified:
    """Rules 1 to 7, on the report's bytes and the certificates that came with them.

    Raises EvidenceInvalid."""
    if report.version not in versions:
        raise EvidenceInvalid(f"the policy does not accept reports of version {report.version}")
    authorities = [*chain.authorities, *collateral.snp_authorities()]
    vek = chain.vek or _stored_vek(report, collateral)
    return verify_endorsed(
        report, snp_chain.endorse(vek, authorities, expected.now, roots), expected
    )


def verify_endorsed(
    report: Report, endorsed: snp_chain.EndorsementKey, expected: Expected
) -> Verified:
    """Rules 3 to 7. Raises EvidenceInvalid."""
    if report.cpuid is not None and not _made(report.cpuid, endorsed.product):
        raise EvidenceInvalid("the report's CPU is not of the product that its root is for")
    _verify_signature(report, endorsed)
    tcb = report.reported_tcb(endorsed.product == "Turin")
    if tcb != endorsed.tcb:
        raise EvidenceInvalid("the reported TCB is not the one of the signing key")
    if endorsed.hwid is not None and endorsed.hwid != report.chip_id:
        raise EvidenceInvalid("the signing key is not of the chip that the report names")
    if report.vmpl != 0:
        raise EvidenceInvalid(f"the report was asked for by VMPL {report.vmpl}, not 0")
    check_report_data(report.report_data, expected, "REPORT_DATA")
    check_init_data(report.host_data, expected, "HOST_DATA")
    return Verified(snp_report.claims(report, tcb))


def _certificates(entries: list[_Certificate]) -> Chain:
    """Raises EvidenceInvalid where there are certificates, but none of the signing key."""
    if len(entries) > _CERTIFICATES:
        raise EvidenceInvalid(f"it has more than {_CERTIFICATES} certificates")
    veks = [_load(entry) for entry in entries if entry.cert_type in ("VCEK", "VLEK")]
    if entries and not veks:
        raise EvidenceInvalid("its certificates have neither a VCEK nor a VLEK")
    authorities = [_load(entry) for entry in entries if entry.cert_type in ("ASK", "ARK")]
    return Chain(veks[0] if veks else None, authorities)


def _load(entry: _Certificate) -> x509.Certificate:
    try:
        return snp_chain.load(bytes(entry.data))
    except ValueError as error:
        raise EvidenceInvalid("a certificate of the evidence is not bytes") from error


def _stored_vek(report: Report, collateral: Collateral) -> x509.Certificate:
    """By chip id and reported TCB. Which layout the TCB has, the product says, and that is known
    only from the certificate: both are tried."""
    if not any(report.chip_id):
        raise EvidenceInvalid("it has no certificate, and its chip id is masked")
    for turin in (False, True):
        tcb = report.reported_tcb(turin)
        hwid = report.chip_id[:8] if turin else report.chip_id
        der = collateral.vcek(hwid.hex(), tcb)
        if der is not None:
            return snp_chain.load(der)
    raise EvidenceInvalid(
        "it has no certificate, and the collateral has none for its chip "
        f"({binascii.hexlify(report.chip_id[:8]).decode()}...)"
    )


def _made(cpuid: tuple[int, int], product: str) -> bool:
    family, model = cpuid
    return any(family == known and model in models for known, models in _FAMILIES[product])


def _verify_signature(report: Report, endorsed: snp_chain.EndorsementKey) -> None:
    if report.sig_algo != ECDSA_P384_SHA384:
        raise EvidenceInvalid(f"the report is signed with the unknown algorithm {report.sig_algo}")
    if not 0 < report.r < 1 << 384 or not 0 < report.s < 1 << 384:
        raise EvidenceInvalid("the report's signature is not one of P-384")
    signature = encode_dss_signature(report.r, report.s)
    try:
        endorsed.key.verify(signature, report.signed, ECDSA(SHA384()))
    except InvalidSignature as error:
        raise EvidenceInvalid("the report's signature does not match") from error
