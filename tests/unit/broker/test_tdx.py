"""TDX evidence: what Intel's key signed verifies, and nothing else does."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import pytest
from fixtures.vectors import vector
from sealrun_broker.collateral import Collateral
from sealrun_broker.verifiers import tdx, tdx_quote
from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected, Verified
from simulators.event_log import event, extended, header, tagged
from simulators.tdx import FMSPC, NOW, Body, Intel

BOUND, INIT_DATA = b"\x5a" * 48, b'version = "0.1.0"\n'
FORMS = [(4, 2), (5, 2), (5, 3)]  # version of the quote, type of its body
PULL = b'github.com/confidential-containers PullImage {"digest":"sha256:1","image":"app"}'


@pytest.fixture(scope="module")
def intel() -> Intel:
    return Intel()


def body(**members: Any) -> Body:
    return Body(**({"report_data": BOUND.ljust(64, b"\0")} | members))


def verify(
    intel: Intel,
    quote: bytes,
    *,
    init_data: bytes | None = None,
    log: bytes = b"",
    collateral: Path = Path("/nonexistent"),
    now: float = NOW,
) -> Verified:
    evidence = {
        "quote": base64.b64encode(quote).decode(),
        "cc_eventlog": base64.b64encode(log).decode() or None,
    }
    expected = Expected(BOUND, init_data, now)
    return tdx.verify(
        evidence,
        expected,
        Collateral(str(collateral)),
        roots={intel.pin},
        root_der=intel.root_der,
    )


def collateral(directory: Path, text: str) -> Path:
    (directory / "tdx").mkdir(exist_ok=True)
    (directory / f"tdx/{FMSPC.upper()}.json").write_text(text)
    return directory


# --- recorded evidence ---------------------------------------------------------------------------


def test_a_recorded_quote_verifies_up_to_intel_s_root() -> None:
    raw = vector("tdx/quote_v4.dat")
    report_data = tdx_quote.parse(raw).body["report_data"]
    found = tdx.verify(
        {"quote": base64.b64encode(raw).decode(), "cc_eventlog": None},
        Expected(report_data, None, 1_700_000_000.0),
        Collateral("/nonexistent"),
    )
    assert found.claims["quote"]["header"]["tee_type"] == "81000000"
    assert found.claims["quote"]["body"]["mr_td"].startswith("705ee9381b8633a9fbe532b52345e843")
    assert found.claims["td_attributes"]["debug"] is True
    assert found.images is None
    assert found.missing == (
        "the collateral has nothing on the platform 50806F000000",
        "there is no event log",
    )


def test_no_bit_of_what_is_signed_may_change() -> None:
    raw = vector("tdx/quote_v4.dat")
    quote = tdx_quote.parse(raw)
    report, authentication = raw.index(quote.qe_report), raw.index(quote.qe_authentication)
    ranges = [
        range(len(quote.signed)),  # header and body
        range(len(quote.signed) + 4, len(quote.signed) + 4 + 128),  # signature, attestation key
        range(report, report + 384 + 64),  # the quoting enclave's report, its signature
        range(authentication, authentication + len(quote.qe_authentication)),
    ]
    pck = tdx_quote.platform_key(quote.pck_chain, 1_700_000_000.0)
    tdx_quote.verify_signed(quote, pck)
    for part in ranges:
        for position in part:
            for bit in range(8):
                changed = bytearray(raw)
                changed[position] ^= 1 << bit
                with pytest.raises(EvidenceInvalid):
                    tdx_quote.verify_signed(tdx_quote.parse(bytes(changed)), pck)


def test_no_certificate_of_the_chain_may_change() -> None:
    raw = vector("tdx/quote_v4.dat")
    quote = tdx_quote.parse(raw)
    bodies = quote.pck_chain.split(b"-----BEGIN CERTIFICATE-----\n")[1:]
    for text in bodies:
        der = bytearray(base64.b64decode(text.partition(b"-----")[0]))
        for position in range(0, len(der), 7):
            changed = bytearray(der)
            changed[position] ^= 0x10
            forged = base64.encodebytes(bytes(changed))
            chain = quote.pck_chain.replace(text.partition(b"-----")[0], forged)
            with pytest.raises(EvidenceInvalid):
                tdx_quote.verify_signatures(quote._replace(pck_chain=chain), 1_700_000_000.0)


# --- versions, bindings --------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "kind"), FORMS)
def test_versions(intel: Intel, tmp_path: Path, version: int, kind: int) -> None:
    place = collateral(tmp_path, intel.collateral())
    found = verify(intel, intel.quote(body(), version, kind), collateral=place)
    assert found.claims["tcb_status"] == "UpToDate"
    assert found.claims["tcb_date"] == "2025-03-12T00:00:00Z"
    assert found.claims["collateral_expiration_status"] == "0"
    assert found.claims["quote"]["header"]["version"] == f"0{version}00"
    assert ("type" in found.claims["quote"]) is (version == 5)
    assert ("mr_servicetd" in found.claims["quote"]["body"]) is (kind == 3)


@pytest.mark.parametrize(("version", "kind"), FORMS)
def test_other_report_data(intel: Intel, version: int, kind: int) -> None:
    for other in (bytes(64), BOUND.ljust(64, b"\1"), b"\0" + BOUND.ljust(63, b"\0")):
        with pytest.raises(EvidenceInvalid, match="REPORT_DATA is not the hash"):
            verify(intel, intel.quote(body(report_data=other), version, kind))


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_init_data_is_bound_by_mrconfigid(intel: Intel, algorithm: str) -> None:
    digest = hashlib.new(algorithm, INIT_DATA).digest()[:48].ljust(48, b"\0")
    quote = intel.quote(body(mr_config_id=digest))
    assert verify(intel, quote, init_data=INIT_DATA).claims["init_data"] == digest.hex()
    assert verify(intel, quote)
    with pytest.raises(EvidenceInvalid, match="MRCONFIGID is not the digest of the init-data"):
        verify(intel, quote, init_data=INIT_DATA + b" ")
    with pytest.raises(EvidenceInvalid, match="MRCONFIGID"):
        verify(intel, intel.quote(body()), init_data=INIT_DATA)


# --- the event log -------------------------------------------------------------------------------


def measured() -> tuple[bytes, tuple[bytes, ...]]:
    """A log, and the registers that it replays to."""
    log = header("sha384")
    log += event(1, 4, b"firmware", ["sha384"]) + event(2, 4, b"kernel", ["sha384"])
    log += event(4, 6, tagged(PULL), ["sha384"])
    registers = (
        extended("sha384", hashlib.sha384(b"firmware").digest()),
        extended("sha384", hashlib.sha384(b"kernel").digest()),
        extended("sha384"),
        extended("sha384", hashlib.sha384(tagged(PULL)).digest()),
    )
    return log, registers


def test_the_log_says_which_images_were_pulled(intel: Intel) -> None:
    log, registers = measured()
    found = verify(intel, intel.quote(body(rtmr=registers)), log=log + b"\xff" * 8)
    assert found.images == ("sha256:1",)
    assert [entry["index"] for entry in found.claims["uefi_event_logs"]] == [1, 2, 4]
    assert found.missing == (f"the collateral has nothing on the platform {FMSPC.upper()}",)


@pytest.mark.parametrize("number", range(4))
def test_a_log_that_does_not_replay(intel: Intel, number: int) -> None:
    log, registers = measured()
    other = tuple(b"\1" * 48 if i == number else value for i, value in enumerate(registers))
    with pytest.raises(EvidenceInvalid, match=f"does not replay into RTMR {number}"):
        verify(intel, intel.quote(body(rtmr=other)), log=log)


# --- the platform --------------------------------------------------------------------------------


def test_the_level_of_the_platform_is_a_claim(intel: Intel, tmp_path: Path) -> None:
    place = collateral(tmp_path, intel.collateral("OutOfDate"))
    found = verify(intel, intel.quote(body()), collateral=place)
    assert found.claims["tcb_status"] == "OutOfDate"
    assert found.claims["advisory_ids"] == ["INTEL-SA-01036"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (lambda intel: intel.collateral("Revoked"), "Revoked"),
        (lambda intel: intel.collateral(next_update="2025-10-01T00:00:00Z"), "expired"),
        (lambda _: Intel().collateral(), "collateral"),
        (lambda intel: intel.collateral().replace("UpToDate", "UpToDatE"), "collateral"),
        (lambda _: "{}", "collateral"),
        (lambda _: "nonsense", "collateral"),
    ],
)
def test_collateral_that_does_not_vouch(intel: Intel, tmp_path: Path, text: Any, said: str) -> None:
    place = collateral(tmp_path, text(intel))
    with pytest.raises(EvidenceInvalid, match=said):
        verify(intel, intel.quote(body()), collateral=place)


# --- forgeries -----------------------------------------------------------------------------------


def test_another_root_is_refused(intel: Intel) -> None:
    evidence = {"quote": base64.b64encode(intel.quote(body())).decode()}
    with pytest.raises(EvidenceInvalid, match="does not end in Intel's root"):
        tdx.verify(evidence, Expected(BOUND, None, NOW), Collateral("/nonexistent"))


def test_a_key_that_the_platform_does_not_vouch_for(intel: Intel) -> None:
    stranger = Intel(root=intel.root, platform=intel.platform, pck=intel.pck)
    quote = tdx_quote.parse(stranger.quote(body()))
    honest = tdx_quote.parse(intel.quote(body()))
    tdx_quote.verify_signatures(quote, NOW, {intel.pin})
    mixed = honest._replace(attestation_key=quote.attestation_key, signature=quote.signature)
    with pytest.raises(EvidenceInvalid, match="does not vouch for the attestation key"):
        tdx_quote.verify_signatures(mixed, NOW, {intel.pin})


def test_certificates_have_their_time(intel: Intel) -> None:
    for now in (1_500_000_000.0, 2_600_000_000.0):
        with pytest.raises(EvidenceInvalid, match="is not valid now"):
            verify(intel, intel.quote(body()), now=now)


def test_a_leaf_is_no_authority(intel: Intel) -> None:
    """A platform that signs a certificate for another platform."""
    chain = tdx_quote.parse(intel.quote(body())).pck_chain
    forger = Intel(root=intel.root, platform=intel.pck)
    quote = tdx_quote.parse(forger.quote(body()))
    ends = chain.index(b"-----END CERTIFICATE-----") + len(b"-----END CERTIFICATE-----\n")
    leaf = quote.pck_chain[: quote.pck_chain.index(b"-----END") + 26]
    assert chain[:ends].count(b"BEGIN") == leaf.count(b"BEGIN") == 1
    with pytest.raises(EvidenceInvalid, match="chain"):
        tdx_quote.verify_signatures(quote._replace(pck_chain=leaf + chain), NOW, {intel.pin})


@pytest.mark.parametrize(
    ("offset", "data", "said"),
    [
        (0, b"\3\0", "version 3 is neither 4 nor 5"),
        (0, b"\6\0", "version 6 is neither 4 nor 5"),
        (2, b"\3\0", "not of TDX"),
        (4, b"\0\0\0\0", "not of TDX"),
    ],
)
def test_other_quotes(intel: Intel, offset: int, data: bytes, said: str) -> None:
    raw = bytearray(intel.quote(body()))
    raw[offset : offset + len(data)] = data
    with pytest.raises(EvidenceInvalid, match=said):
        verify(intel, bytes(raw))


def test_a_quote_that_is_cut_off(intel: Intel) -> None:
    raw = intel.quote(body(), 5, 3)
    for length in range(0, len(raw), 11):
        with pytest.raises(EvidenceInvalid):
            verify(intel, raw[:length])


@pytest.mark.parametrize(
    "evidence",
    [None, {}, {"quote": None}, {"quote": "!"}, {"quote": ""}, {"quote": "é"}, {"quote": "QQ"}],
)
def test_what_is_no_evidence(evidence: object) -> None:
    with pytest.raises(EvidenceInvalid):
        tdx.verify(evidence, Expected(BOUND, None, NOW), Collateral("/nonexistent"))
