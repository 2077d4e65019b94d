"""SEV-SNP evidence: what AMD's key signed verifies, and nothing else does."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from fixtures.vectors import vector
from sealrun_broker.collateral import Collateral
from sealrun_broker.errors import BrokerError
from sealrun_broker.verifiers import snp, snp_chain, snp_report
from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected
from simulators.snp import NOW, Amd, as_json

BOUND, INIT_DATA = b"\x5a" * 48, b'version = "0.1.0"\n'
NONE = Collateral("/nonexistent")
ALL = (2, 3, 4, 5)


def verify(
    amd: Amd, raw: bytes, *, init_data: bytes | None = None, versions: tuple[int, ...] = ALL
) -> dict[str, Any]:
    evidence = {
        "attestation_report": as_json(raw, amd.product == "Turin"),
        "cert_chain": amd.chain(),
    }
    expected = Expected(BOUND, init_data, NOW)
    roots = {amd.pin: amd.product}
    return snp.verify(json.loads(json.dumps(evidence)), expected, NONE, versions, roots).claims


@pytest.fixture(scope="module")
def milan() -> Amd:
    return Amd()


# --- recorded evidence ---------------------------------------------------------------------------


class Recorded:
    def __init__(self) -> None:
        self.raw = vector("snp/test-report.bin")
        vek = snp_chain.load(vector("snp/test-vcek.der"))
        self.pem = vector("snp/milan_ask_ark_asvk.pem")
        self.chain = snp.Chain(vek, snp_chain.load_pem(self.pem))
        self.expected = Expected(self.raw[0x50:0x90], None, 1_700_000_000.0)
        self.endorsed = snp_chain.endorse(vek, self.chain.authorities, self.expected.now)

    def verify(self, raw: bytes) -> dict[str, Any]:
        return snp.verify_endorsed(snp_report.parse(raw), self.endorsed, self.expected).claims


@pytest.fixture(scope="module")
def recorded() -> Recorded:
    return Recorded()


def test_a_recorded_report_verifies(recorded: Recorded) -> None:
    report = snp_report.parse(recorded.raw)
    claims = snp.verify_report(report, recorded.chain, recorded.expected, NONE, versions=ALL).claims
    assert claims["measurement"].startswith("a1f3930413247bb38cfc171579ea3c12")
    assert (claims["reported_tcb_bootloader"], claims["reported_tcb_microcode"]) == (3, 0x73)
    assert claims["policy_debug_allowed"] is claims["policy_migrate_ma"] is False
    assert claims["policy_smt_allowed"] is claims["platform_smt_enabled"] is True
    assert (claims["policy_abi_major"], claims["policy_abi_minor"]) == (0, 31)


def test_no_bit_of_what_is_signed_may_change(recorded: Recorded) -> None:
    signed_and_signature = [*range(0x2A0), *range(0x2A0, 0x2D0), *range(0x2E8, 0x318)]
    for position in signed_and_signature:
        for bit in range(8):
            raw = bytearray(recorded.raw)
            raw[position] ^= 1 << bit
            with pytest.raises(EvidenceInvalid):
                recorded.verify(bytes(raw))


def test_the_members_of_the_evidence_make_the_same_report(recorded: Recorded) -> None:
    written = json.loads(json.dumps(as_json(recorded.raw)))
    evidence = {"attestation_report": written, "cert_chain": None}
    with pytest.raises(EvidenceInvalid, match="the collateral has none for its chip"):
        snp.verify(evidence, recorded.expected, NONE, ALL)
    read = snp_report.from_json(snp.msgspec.convert(written, snp_report.ReportJson))
    assert read[:0x330] == recorded.raw[:0x330]


def test_certificates_come_from_the_operator_s_collateral(
    recorded: Recorded, tmp_path: Path
) -> None:
    evidence = {"attestation_report": as_json(recorded.raw), "cert_chain": None}
    folder = tmp_path / "snp/vcek" / recorded.raw[0x1A0:0x1E0].hex()
    folder.mkdir(parents=True)
    collateral = Collateral(str(tmp_path))
    vcek = vector("snp/test-vcek.der")
    (folder / "bl03_tee00_snp08_ucode115_vcek.der").write_bytes(vcek)
    with pytest.raises(EvidenceInvalid, match="the issuer of the chip's certificate"):
        snp.verify(evidence, recorded.expected, collateral, ALL)
    (tmp_path / "snp/milan.pem").write_bytes(recorded.pem)
    assert snp.verify(evidence, recorded.expected, collateral, ALL).claims
    (folder / "bl03_tee00_snp08_ucode115_vcek.der").rename(folder / "vcek.der")
    assert snp.verify(evidence, recorded.expected, collateral, ALL).claims
    (tmp_path / "snp/other.pem").write_bytes(b"nonsense")
    with pytest.raises(BrokerError, match=r"cannot read the collateral .*other\.pem"):
        snp.verify(evidence, recorded.expected, collateral, ALL)


@pytest.mark.parametrize("product", ["milan", "genoa", "turin"])
def test_the_pinned_roots_are_amd_s(product: str) -> None:
    """By the certificates of the vectors: ASK, ARK, ASVK."""
    ask, ark, asvk = snp_chain.load_pem(vector(f"snp/{product}_ask_ark_asvk.pem"))
    assert snp_chain.PINNED_ROOTS[snp_chain.fingerprint(ark)] == product.capitalize()
    for authority in (ask, asvk):
        assert snp_chain.signed(authority, ark)
    assert snp_chain.signed(ark, ark)


# --- all versions and products -------------------------------------------------------------------


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("kind", ["VCEK", "VLEK"])
def test_versions_and_products(version: int, product: str, kind: str) -> None:
    amd = Amd(product=product, kind=kind)
    claims = verify(amd, amd.report(version, report_data=BOUND))
    assert (claims["reported_tcb_snp"], claims["reported_tcb_microcode"]) == (20, 209)
    assert claims["chip_id"] == amd.chip_id.hex()
    with pytest.raises(EvidenceInvalid, match=f"does not accept reports of version {version}"):
        other = tuple(known for known in ALL if known != version)
        verify(amd, amd.report(version, report_data=BOUND), versions=other)


@pytest.mark.parametrize("version", [0, 1, 6, 2**32 - 1])
def test_unknown_versions(milan: Amd, version: int) -> None:
    with pytest.raises(EvidenceInvalid, match="is not one of 2 to 5"):
        verify(milan, milan.report(version, report_data=BOUND), versions=(version,))


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"report_data": b"\x5a" * 47}, "REPORT_DATA is not the hash"),
        ({"vmpl": 1}, "asked for by VMPL 1, not 0"),
        ({"tcb": (2, 0, 20, 209)}, "the reported TCB is not the one of the signing key"),
        ({"tcb": (3, 0, 20, 210)}, "the reported TCB is not the one of the signing key"),
        ({"cpuid": (0x19, 0x11)}, "not of the product that its root is for"),
        ({"cpuid": (0x17, 0x31)}, "not of the product that its root is for"),
        ({"chip_id": bytes(64)}, "not of the chip that the report names"),
    ],
)
def test_what_makes_a_signed_report_worthless(
    milan: Amd, members: dict[str, Any], said: str
) -> None:
    raw = milan.report(3, **({"report_data": BOUND} | members))
    with pytest.raises(EvidenceInvalid, match=said):
        verify(milan, raw)


def test_debug_and_migration_are_claims(milan: Amd) -> None:
    raw = milan.report(4, report_data=BOUND, policy=0x30000 | 1 << 18 | 1 << 19)
    claims = verify(milan, raw)
    assert claims["policy_debug_allowed"] is claims["policy_migrate_ma"] is True


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_init_data_is_bound_by_host_data(milan: Amd, algorithm: str) -> None:
    digest = hashlib.new(algorithm, INIT_DATA).digest()[:32]
    raw = milan.report(3, report_data=BOUND, host_data=digest)
    assert verify(milan, raw, init_data=INIT_DATA)["init_data"] == digest.hex()
    assert verify(milan, raw, init_data=None)
    with pytest.raises(EvidenceInvalid, match="HOST_DATA says that there is init-data"):
        verify(milan, raw, init_data=b"")
    assert verify(milan, milan.report(3, report_data=BOUND), init_data=b"")
    with pytest.raises(EvidenceInvalid, match="HOST_DATA is not the digest of the init-data"):
        verify(milan, raw, init_data=INIT_DATA + b"\n")
    with pytest.raises(EvidenceInvalid, match="HOST_DATA"):
        verify(milan, milan.report(3, report_data=BOUND), init_data=INIT_DATA)


# --- forged chains -------------------------------------------------------------------------------


def test_a_chain_to_another_root_is_refused(milan: Amd) -> None:
    raw = milan.report(3, report_data=BOUND)
    evidence = {"attestation_report": as_json(raw), "cert_chain": milan.chain()}
    with pytest.raises(EvidenceInvalid, match="does not end in a root of AMD's"):
        snp.verify(evidence, Expected(BOUND, None, NOW), NONE, ALL)


def test_a_key_that_amd_did_not_sign_is_refused(milan: Amd) -> None:
    forger = Amd(ark=milan.ark)  # its own ASK, which the true root signed: that is a good chain
    stranger = Amd()
    raw = stranger.report(3, report_data=BOUND)
    assert verify(forger, forger.report(3, report_data=BOUND))
    chain = [stranger.chain()[0], *milan.chain()[1:]]
    evidence = {"attestation_report": as_json(raw), "cert_chain": chain}
    with pytest.raises(EvidenceInvalid, match="the issuer of the chip's certificate"):
        snp.verify(evidence, Expected(BOUND, None, NOW), NONE, ALL, {milan.pin: "Milan"})


def test_certificates_have_their_time(milan: Amd) -> None:
    raw = milan.report(3, report_data=BOUND)
    evidence = {"attestation_report": as_json(raw), "cert_chain": milan.chain()}
    for now in (1_500_000_000.0, 2_500_000_000.0):
        with pytest.raises(EvidenceInvalid, match="is not valid now"):
            snp.verify(evidence, Expected(BOUND, None, now), NONE, ALL, {milan.pin: "Milan"})


def test_no_bit_of_the_certificate_may_change(milan: Amd) -> None:
    raw = milan.report(3, report_data=BOUND)
    der = milan.endorsement.public_bytes(Encoding.DER)
    body = milan.endorsement.tbs_certificate_bytes
    start = der.index(body)
    evidence = {"attestation_report": as_json(raw), "cert_chain": milan.chain()}
    for position in range(start, start + len(body)):
        forged = bytearray(der)
        forged[position] ^= 1 << position % 8
        evidence["cert_chain"] = [{"cert_type": "VCEK", "data": list(forged)}, *milan.chain()[1:]]
        with pytest.raises(EvidenceInvalid):
            snp.verify(evidence, Expected(BOUND, None, NOW), NONE, ALL, {milan.pin: "Milan"})


# --- what is no evidence -------------------------------------------------------------------------


def _set(*path: str | int, to: Any) -> Callable[[Any], Any]:
    def change(evidence: Any) -> Any:
        place = evidence
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = to
        return evidence

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda _: [],
        lambda _: {},
        _set("attestation_report", to=None),
        _set("attestation_report", "report_data", to=[0] * 63),
        _set("attestation_report", "report_data", to=[256] * 64),
        _set("attestation_report", "report_data", to=[-1] * 64),
        _set("attestation_report", "policy", to=-1),
        _set("attestation_report", "policy", to=1 << 64),
        _set("attestation_report", "vmpl", to="0"),
        _set("attestation_report", "signature", to={"r": [0] * 72, "s": [0] * 72}),
        _set("attestation_report", "signature", "r", to=[255] * 72),
        _set("attestation_report", "sig_algo", to=2),
        _set("attestation_report", "reported_tcb", "snp", to=300),
        _set("attestation_report", "launch_mit_vector", to=1),
        _set("cert_chain", to=[]),
        _set("cert_chain", to=[{"cert_type": "ASK", "data": []}]),
        _set("cert_chain", to=[{"cert_type": "VCEK", "data": []}]),
        _set("cert_chain", to=[{"cert_type": "VCEK", "data": [300]}]),
        _set("cert_chain", to=[{"cert_type": {"OTHER": "x"}, "data": []}]),
        _set("cert_chain", to=[{"cert_type": "CRL", "data": [1]}] * 17),
    ],
)
def test_what_is_no_evidence(milan: Amd, change: Callable[[Any], Any]) -> None:
    raw = milan.report(3, report_data=BOUND)
    good = {"attestation_report": as_json(raw), "cert_chain": milan.chain()}
    evidence = change(copy.deepcopy(good))
    roots = {milan.pin: "Milan"}
    assert snp.verify(good, Expected(BOUND, None, NOW), NONE, ALL, roots)
    with pytest.raises(EvidenceInvalid):
        snp.verify(evidence, Expected(BOUND, None, NOW), NONE, ALL, roots)
