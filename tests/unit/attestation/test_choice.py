"""Nothing falls back to sample evidence by itself, and nothing is obeyed that no TEE vouches for."""

from pathlib import Path

import pytest
from sealrun_agent.attestation.attester import Attester, detect
from sealrun_agent.attestation.choice import UNUSABLE, Choice
from sealrun_agent.errors import AttestError
from sealrun_agent.policy import NO_TEE
from sealrun_protocol import init_data
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import ABSENT, Attestation, InitData

ALLOWING = ABSENT._replace(attestation=Attestation(insecure_sample_evidence=True))
TEXT = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'


class Recording(Attester):
    """A TEE with a register, which says what it was asked."""

    tee = "recording"

    def __init__(self) -> None:
        super().__init__(register=3)
        self.asked: list[object] = []

    def quote(self, report_data: bytes, entries: bytes) -> dict[str, object]:
        return {"entries": entries}

    def bind(self, init_data: InitData) -> None:
        self.asked.append(init_data.digest)

    def extend(self, digest: bytes) -> None:
        self.asked.append(digest)


def test_no_tee_and_no_permission(tmp_path: Path) -> None:
    choice = Choice(str(tmp_path))
    assert choice.tee == NO_TEE
    choice.bind(ABSENT)
    with pytest.raises(AttestError) as caught:
        choice.attester(ABSENT)
    assert caught.value.code == ErrorCode.SAMPLE_NOT_ALLOWED


def test_no_tee_and_permission(tmp_path: Path) -> None:
    choice = Choice(str(tmp_path))
    assert detect(str(tmp_path)) is None
    attester = choice.attester(ALLOWING)
    assert attester.tee == "sample"
    assert attester.evidence(b"\xfb" * 48) == {"svn": "1", "report_data": "+/v7" * 16}
    choice.record("a", "b", {})


@pytest.mark.parametrize("name", ["sev-guest", "tdx_guest", "tpm0"])
def test_a_tee_that_is_there_is_never_passed_over(tmp_path: Path, name: str) -> None:
    """A device that does not answer."""
    (tmp_path / "dev" / name).mkdir(parents=True)
    choice = Choice(str(tmp_path))
    kind = {"sev-guest": "snp", "tdx_guest": UNUSABLE, "tpm0": "tpm"}[name]
    assert choice.tee == kind
    for text in (ABSENT, ALLOWING):
        with pytest.raises(AttestError) as caught:
            choice.attester(text).evidence(bytes(48))
        assert caught.value.code == ErrorCode.TEE_UNAVAILABLE
    with pytest.raises(AttestError) as caught:
        choice.bind(init_data.parse(TEXT))
    assert caught.value.code == ErrorCode.TEE_UNAVAILABLE


@pytest.mark.parametrize(
    ("tees", "present", "said"),
    [
        (("snp", "tdx"), False, "accepts snp or tdx only, and this VM's TEE is none"),
        (("snp",), True, "accepts snp only, and this VM's TEE is recording"),
        (("recording", "snp"), True, ""),
        ((), True, ""),
    ],
)
def test_the_tenant_says_which_tee_it_must_be(
    tmp_path: Path, tees: tuple[str, ...], present: bool, said: str
) -> None:
    choice, hardware = Choice(str(tmp_path)), Recording()
    choice._found = hardware if present else None
    document = ABSENT._replace(attestation=Attestation(tees=tees))
    if said:
        with pytest.raises(AttestError, match=said) as caught:
            choice.bind(document)
        assert caught.value.code is ErrorCode.TEE_UNAVAILABLE
        assert hardware.asked == []
    else:
        choice.bind(document)


def test_a_tee_counts_before_a_tpm(tmp_path: Path) -> None:
    for name in ("sev-guest", "tpm0"):
        (tmp_path / "dev" / name).mkdir(parents=True)
    assert Choice(str(tmp_path)).tee == "snp"


def test_the_init_data_is_bound_and_then_recorded(tmp_path: Path) -> None:
    choice, hardware = Choice(str(tmp_path)), Recording()
    choice._found = hardware
    document = init_data.parse(TEXT)
    choice.bind(document)
    assert hardware.asked[0] == document.digest
    assert len(hardware.asked) == 2
    assert document.digest.hex().encode() in bytes(choice.attester(ABSENT).evidence(b"")["entries"])  # type: ignore[arg-type]


def test_without_a_document_nothing_is_recorded(tmp_path: Path) -> None:
    choice, hardware = Choice(str(tmp_path)), Recording()
    choice._found = hardware
    choice.bind(ABSENT)
    assert hardware.asked == [b""]


def test_the_log_has_a_bound() -> None:
    hardware = Recording()
    for number in range(1024):
        hardware.record("a", "b", {"n": str(number)})
    hardware.record("a", "b", {"n": "0"})
    with pytest.raises(AttestError, match="the event log is full"):
        hardware.record("a", "b", {"n": "more"})
    assert len(hardware.asked) == 1024
