"""The `snp` and `tdx` attesters on what their kernel interfaces would give, and the broker's verifiers."""

import base64
import hashlib
import struct
import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from fixtures.vectors import vector
from sealrun_agent.attestation import snp, tdx, tsm
from sealrun_agent.attestation.attester import detect
from sealrun_agent.errors import AttestError
from sealrun_broker.collateral import Collateral
from sealrun_broker.verifiers import snp as snp_verifier
from sealrun_broker.verifiers import tdx as tdx_verifier
from sealrun_broker.verifiers.binding import Expected
from sealrun_protocol import init_data
from sealrun_protocol.errors import ErrorCode
from simulators import configfs
from simulators.event_log import event, extended, header
from simulators.snp import NOW, Amd, as_json
from simulators.tdx import Body, Intel

BOUND = bytes(range(48))
NOTHING = Collateral("/nonexistent")
GUIDS = {
    "ARK": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    "ASK": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "VCEK": "63da758d-e664-4564-adc5-f4b93be8accd",
    "VLEK": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
}


def document(algorithm: str) -> init_data.InitData:
    return init_data.parse(f'version = "0.1.0"\nalgorithm = "{algorithm}"\n[data]\n'.encode())


def table(amd: Amd) -> bytes:
    """The host's certificates, as the GHCB specification has them."""
    certificates = [
        (GUIDS[amd.kind], amd.endorsement),
        (GUIDS["ASK"], amd.authority),
        (GUIDS["ARK"], amd.root),
    ]
    offset, entries, content = 24 * (len(certificates) + 1), b"", b""
    for guid, certificate in certificates:
        der = certificate.public_bytes(Encoding.DER)
        entries += uuid.UUID(guid).bytes + struct.pack("<II", offset + len(content), len(der))
        content += der
    return entries + bytes(24) + content + bytes(100)


# --- SEV-SNP -------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", ["Milan", "Genoa", "Turin"])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["VCEK", "VLEK"])
def test_reports_verify(product: str, version: int, kind: str) -> None:
    amd = Amd(product=product, kind=kind)
    asked: list[bytes] = []

    def ask(data: bytes) -> snp.Signed:
        asked.append(data)
        return snp.Signed(amd.report(version, report_data=data), table(amd))

    evidence = snp.SnpAttester(ask).evidence(BOUND)
    assert asked == [BOUND + bytes(16)]
    found = snp_verifier.verify(
        evidence, Expected(BOUND, None, NOW), NOTHING, (version,), {amd.pin: product}
    )
    assert found.claims["report_data"] == (BOUND + bytes(16)).hex()


def test_a_recorded_report_has_the_members_of_the_sev_crate() -> None:
    raw = vector("snp/test-report.bin")
    assert snp.members(raw) == as_json(raw)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_init_data_is_compared_with_host_data(algorithm: str) -> None:
    amd, text = Amd(), document(algorithm)

    def launched(host_data: bytes) -> snp.SnpAttester:
        return snp.SnpAttester(lambda _: snp.Signed(amd.report(3, host_data=host_data), b""))

    launched(text.digest[:32]).bind(text)
    launched(bytes(32)).bind(init_data.ABSENT)
    for host_data, given in (
        (bytes(32), text),
        (text.digest[:32], init_data.ABSENT),
        (text.digest[:31] + b"\0", text),
    ):
        with pytest.raises(AttestError) as caught:
            launched(host_data).bind(given)
        assert caught.value.code is ErrorCode.INIT_DATA_MISMATCH


@pytest.mark.parametrize(
    "written",
    [
        b"",
        bytes(100),
        b"\xff" * 100,
        uuid.UUID(GUIDS["VCEK"]).bytes + struct.pack("<II", 10, 10**9) + bytes(24),
        uuid.UUID(GUIDS["VCEK"]).bytes + struct.pack("<II", 2**32 - 1, 5) + bytes(24),
        uuid.UUID(int=7).bytes + struct.pack("<II", 0, 4) + bytes(24),
    ],
)
def test_a_table_that_the_host_wrote_wrongly(written: bytes) -> None:
    assert snp.certificates(written) == []
    amd = Amd()
    attester = snp.SnpAttester(lambda data: snp.Signed(amd.report(3, report_data=data), written))
    assert attester.evidence(BOUND)["cert_chain"] is None


def test_a_report_of_another_size() -> None:
    with pytest.raises(AttestError, match="has 3 bytes, not 1184") as caught:
        snp.SnpAttester(lambda _: snp.Signed(b"abc", b"")).evidence(BOUND)
    assert caught.value.code is ErrorCode.TEE_UNAVAILABLE


def test_by_the_kernel_s_report_interface(tmp_path: Path) -> None:
    amd = Amd()
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/sev-guest").touch()
    directory = Path(str(tmp_path) + tsm.REPORTS)
    quote = lambda data: amd.report(3, report_data=data)  # noqa: E731
    with configfs.reports(directory, "sev_guest", quote, table(amd)) as asked:
        attester = detect(str(tmp_path))
        assert attester is not None
        evidence = attester.evidence(BOUND)
    assert asked == [BOUND + bytes(16)]
    assert attester.tee == "snp"
    roots = {amd.pin: "Milan"}
    assert snp_verifier.verify(evidence, Expected(BOUND, None, NOW), NOTHING, (3,), roots)
    assert list(directory.iterdir()) == []


def test_a_report_that_somebody_else_asked_for_meanwhile(tmp_path: Path) -> None:
    directory = tmp_path / "report"

    def quote(data: bytes) -> bytes:
        (directory / "sealrun/generation").write_bytes(b"1\n")
        return data

    with (
        configfs.reports(directory, "sev_guest", quote),
        pytest.raises(OSError, match="somebody else asked for a report at the same time"),
    ):
        tsm.report(bytes(64), str(directory))
    assert list(directory.iterdir()) == []


def test_the_kernel_s_structures_have_their_sizes() -> None:
    """linux/sev-guest.h, linux/tdx-guest.h: the size is part of the request's number."""
    assert snp._REQUEST.size == snp._GET_EXT_REPORT >> 16 & 0x3FFF == 32
    assert snp._REPORT_REQUEST.size == 96 + 16
    assert tdx._REPORT_REQUEST_BYTES == tdx._GET_REPORT >> 16 & 0x3FFF == 1088


# --- TDX -----------------------------------------------------------------------------------------


class Td:
    """The files that a TD's kernel shows. quote: made with its registers as they are then."""

    def __init__(self, root: Path) -> None:
        self.root, self.intel = root, Intel()
        self.reports = Path(str(root) + tsm.REPORTS)
        self.measurements = Path(str(root) + tdx.MEASUREMENTS)
        self.ccel = Path(str(root) + tdx.CCEL)
        (root / "dev").mkdir()
        (root / "dev/tdx_guest").touch()
        self.config_id, self.rtmr = bytes(48), [bytes(48)] * 4

    def measuring(self) -> None:
        """As from Linux 6.16."""
        self.measurements.mkdir(parents=True)
        (self.measurements / "mrconfigid").write_bytes(self.config_id)
        (self.measurements / "rtmr3:sha384").touch()

    def quote(self, data: bytes) -> bytes:
        written = self.measurements / "rtmr3:sha384"
        if written.is_file() and written.stat().st_size:
            self.rtmr[3] = extended("sha384", written.read_bytes())
        return self.intel.quote(
            Body(report_data=data, mr_config_id=self.config_id, rtmr=tuple(self.rtmr))
        )

    def verify(self, evidence: dict[str, Any], text: bytes | None = None) -> Any:
        return tdx_verifier.verify(
            evidence,
            Expected(BOUND, text, NOW),
            NOTHING,
            roots={self.intel.pin},
            root_der=self.intel.root_der,
        )


@pytest.fixture
def td(tmp_path: Path) -> Td:
    return Td(tmp_path)


def test_a_quote_with_the_firmware_s_log_and_the_agent_s(td: Td) -> None:
    td.measuring()
    td.ccel.parent.mkdir(parents=True)
    td.ccel.write_bytes(header("sha384") + event(1, 4, b"firmware", ["sha384"]) + bytes(500))
    td.rtmr[0] = extended("sha384", hashlib.sha384(b"firmware").digest())
    with configfs.reports(td.reports, "tdx_guest", td.quote) as asked:
        attester = detect(str(td.root))
        assert attester is not None
        attester.record(
            "github.com/confidential-containers", "PullImage", {"digest": "sha256:1", "image": "a"}
        )
        found = td.verify(attester.evidence(BOUND))
    assert asked == [BOUND + bytes(16)]
    assert found.images == ("sha256:1",)
    assert [entry["index"] for entry in found.claims["uefi_event_logs"]] == [1, 4]


def test_a_kernel_that_extends_no_register_records_nothing(td: Td) -> None:
    with configfs.reports(td.reports, "tdx_guest", td.quote):
        attester = detect(str(td.root))
        assert attester is not None
        attester.record("a", "b", {})
        evidence = attester.evidence(BOUND)
    assert evidence["cc_eventlog"] is None
    assert base64.b64decode(str(evidence["quote"]))[:2] == b"\4\0"
    assert td.verify(evidence).images is None


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_init_data_is_compared_with_mrconfigid(td: Td, algorithm: str) -> None:
    text = document(algorithm)
    td.config_id = text.digest[:48].ljust(48, b"\0")
    td.measuring()
    with configfs.reports(td.reports, "tdx_guest", td.quote):
        attester = detect(str(td.root))
        assert attester is not None
        attester.bind(text)
        assert td.verify(attester.evidence(BOUND), text.text)
        for other in (init_data.ABSENT, document("sha512" if algorithm == "sha256" else "sha256")):
            with pytest.raises(AttestError) as caught:
                attester.bind(other)
            assert caught.value.code is ErrorCode.INIT_DATA_MISMATCH


def test_a_device_of_another_kind_is_no_tdx(td: Td) -> None:
    with configfs.reports(td.reports, "arm_cca_guest", td.quote):
        with pytest.raises(AttestError, match="no configfs-tsm") as caught:
            detect(str(td.root))
    assert caught.value.code is ErrorCode.TEE_UNAVAILABLE


def test_a_register_that_cannot_be_written(td: Td) -> None:
    td.measuring()
    (td.measurements / "rtmr3:sha384").unlink()
    with configfs.reports(td.reports, "tdx_guest", td.quote):
        attester = detect(str(td.root))
        assert attester is not None
        with pytest.raises(AttestError, match="cannot extend RTMR 3") as caught:
            attester.record("a", "b", {})
        assert caught.value.code is ErrorCode.TEE_UNAVAILABLE
        assert attester.evidence(BOUND)["cc_eventlog"] is None
