"""The guest's `tpm` attester on a real TPM emulator, and the broker's verifier of what it says."""

import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import tpm as tpms
from fixtures.vectors import VECTORS
from sealrun_agent.attestation.tpm import TpmAttester
from sealrun_agent.errors import AttestError
from sealrun_broker.verifiers import tpm as verifier
from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected, Verified
from sealrun_protocol import init_data, tpm2
from sealrun_protocol.errors import ErrorCode
from simulators.event_log import END, event, extended, header

BOUND = bytes(range(48))
TEXT = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
PULL = {"digest": "sha256:" + "1" * 64, "image": "a/b:1"}

pytestmark = pytest.mark.tpm


class Vm:
    """A TPM that was just switched on, the guest's attester, and the kernel's copy of the firmware's
    log."""

    def __init__(self, transact: tpms.Transact, directory: Path) -> None:
        self.transact = transact
        self.firmware_log = directory / "binary_bios_measurements"
        self.attester = TpmAttester(transact, str(self.firmware_log))

    def verify(self, init_data: bytes | None = None, bound: bytes = BOUND) -> Verified:
        return verifier.verify(self.attester.evidence(bound), Expected(BOUND, init_data, 0.0))

    def pcr(self, number: int) -> bytes:
        return tpm2.pcrs(self.transact(tpm2.read_pcrs([number])))[number]


@pytest.fixture
def vm(tmp_path: Path) -> Iterator[Vm]:
    with tpms.emulated(tmp_path) as transact:
        yield Vm(transact, tmp_path)


def test_evidence_verifies(vm: Vm) -> None:
    found = vm.verify()
    assert found.claims["report_data"] == BOUND[:32].hex()
    assert found.claims["pcr08"] == "00" * 32
    assert found.claims["pcr17"] == "ff" * 32
    assert found.missing == ("there is no event log",)
    with pytest.raises(EvidenceInvalid, match="is not the hash"):
        vm.verify(bound=bytes(48))


def test_a_tpm_that_wants_a_command_again_gets_it(tmp_path: Path) -> None:
    """As the relay beside a VMM that does not wait answers, or any TPM that is busy."""
    commands: list[bytes] = []
    with tpms.emulated(tmp_path) as transact:

        def busy(command: bytes) -> bytes:
            commands.append(command)
            return transact(command) if commands.count(command) % 2 == 0 else tpm2.AGAIN

        found = Vm(busy, tmp_path).verify()
        assert found.claims["report_data"] == BOUND[:32].hex()
    assert len(commands) >= 8


def test_a_tpm_that_is_always_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sealrun_agent.attestation.tpm.RETRY_SECONDS", 0.1)
    with pytest.raises(AttestError, match="it answers 0x922"):
        Vm(lambda _: tpm2.AGAIN, tmp_path).verify()


def test_the_key_is_the_seed_s(vm: Vm, tmp_path: Path) -> None:
    """The same after a restart, another one of another TPM."""
    key = vm.verify().claims["ak_public"]
    assert vm.verify().claims["ak_public"] == key
    other = tmp_path / "other"
    other.mkdir()
    keys = []
    for _ in range(2):
        with tpms.emulated(other) as transact:
            keys.append(Vm(transact, tmp_path).verify().claims["ak_public"])
    assert keys[0] == keys[1] != key


def test_no_key_stays_in_the_tpm(vm: Vm) -> None:
    """It has room for three."""
    keys = {vm.attester.evidence(BOUND)["ak_public"] for _ in range(4)}
    assert len(keys) == 1


def test_init_data_goes_into_pcr_8_once(vm: Vm) -> None:
    document = init_data.parse(TEXT)
    vm.attester.bind(document)
    assert vm.verify(TEXT).claims["init_data"] == extended("sha256", document.digest).hex()
    with pytest.raises(EvidenceInvalid, match="PCR 8"):
        vm.verify(TEXT + b"\n")
    with pytest.raises(AttestError) as caught:
        vm.attester.bind(document)
    assert caught.value.code is ErrorCode.INIT_DATA_MISMATCH


def test_init_data_of_another_algorithm_is_refused(vm: Vm) -> None:
    with pytest.raises(AttestError, match="algorithm is sha384; a TPM takes sha256") as caught:
        vm.attester.bind(init_data.parse(TEXT.replace(b"sha256", b"sha384")))
    assert caught.value.code is ErrorCode.INIT_DATA_INVALID
    assert vm.pcr(8) == bytes(32)


def test_without_init_data_nothing_is_extended(vm: Vm) -> None:
    vm.attester.bind(init_data.ABSENT)
    assert vm.pcr(8) == bytes(32)


@pytest.mark.parametrize("document", [init_data.ABSENT, init_data.parse(TEXT)])
def test_what_somebody_else_bound_before_is_refused(vm: Vm, document: init_data.InitData) -> None:
    TpmAttester(vm.transact).bind(init_data.parse(TEXT + b"\n"))
    with pytest.raises(AttestError, match="PCR 8") as caught:
        vm.attester.bind(document)
    assert caught.value.code is ErrorCode.INIT_DATA_MISMATCH


def test_what_was_recorded_is_part_of_the_evidence(vm: Vm) -> None:
    vm.attester.record("sealrun", "InitData", {"digest": "x", "algorithm": "sha256"})
    for _ in range(3):  # what a host repeats is written once
        vm.attester.record("github.com/confidential-containers", "PullImage", PULL)
    found = vm.verify()
    assert (found.images, found.missing) == ((PULL["digest"],), ())
    shown = [entry["details"]["string"] for entry in found.claims["uefi_event_logs"]]
    assert shown == [
        'sealrun InitData {"algorithm":"sha256","digest":"x"}',
        f'github.com/confidential-containers PullImage {{"digest":"{PULL["digest"]}","image":"a/b:1"}}',
    ]


def test_the_firmware_s_log_stands_before_the_agent_s(vm: Vm) -> None:
    padding = bytes(1000)
    vm.firmware_log.write_bytes(
        header("sha1", "sha256") + event(4, 0x80000003, b"kernel", ["sha1", "sha256"]) + padding
    )
    vm.attester.extend(hashlib.sha256(b"not recorded").digest())
    with pytest.raises(EvidenceInvalid, match="does not replay into PCR 4"):
        vm.verify()
    tpm2.done(vm.transact(tpm2.extend(4, hashlib.sha256(b"kernel").digest())), "extend")
    with pytest.raises(EvidenceInvalid, match="does not replay into PCR 13"):
        vm.verify()


def test_a_whole_boot(vm: Vm) -> None:
    vm.firmware_log.write_bytes(
        header("sha1", "sha256") + event(4, 0x80000003, b"kernel", ["sha1", "sha256"]) + END
    )
    tpm2.done(vm.transact(tpm2.extend(4, hashlib.sha256(b"kernel").digest())), "extend")
    vm.attester.bind(init_data.parse(TEXT))
    vm.attester.record("github.com/confidential-containers", "PullImage", PULL)
    found = vm.verify(TEXT)
    assert found.images == (PULL["digest"],)
    assert [entry["index"] for entry in found.claims["uefi_event_logs"]] == [4, 13]


def test_a_log_that_the_agent_cannot_read_is_an_error(vm: Vm) -> None:
    vm.firmware_log.write_bytes(b"\1" * 100)
    with pytest.raises(AttestError, match="event log does not begin") as caught:
        vm.attester.evidence(BOUND)
    assert caught.value.code is ErrorCode.TEE_UNAVAILABLE


@pytest.mark.parametrize(
    "answer", [b"", b"\x80\1", b"\x80\1\0\0\0\x0a\0\0\1\1", bytes(4096), b"\xff" * 4096]
)
def test_a_tpm_that_answers_nonsense(answer: bytes) -> None:
    attester = TpmAttester(lambda _command: answer, "/nonexistent")
    for work in (
        lambda: attester.evidence(BOUND),
        lambda: attester.bind(init_data.parse(TEXT)),
        lambda: attester.record("a", "b", {}),
    ):
        with pytest.raises(AttestError) as caught:
            work()
        assert caught.value.code is ErrorCode.TEE_UNAVAILABLE


def test_a_tpm_that_is_gone() -> None:
    def transact(_command: bytes) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(AttestError, match="cannot get a quote of the TPM: Input/output error"):
        TpmAttester(transact, "/nonexistent").evidence(BOUND)


def test_a_foreign_key_has_another_template(vm: Vm) -> None:
    """The agent notices where the TPM gives it a key that may sign anything."""
    response = vm.transact(tpm2.create_attestation_key())
    tpm2.done(vm.transact(tpm2.flush(tpm2.created(response).handle)), "flush")
    unrestricted = response.replace(bytes.fromhex("00050472"), bytes.fromhex("00040472"))
    assert unrestricted != response
    with pytest.raises(tpm2.TpmError, match="made another key"):
        tpm2.created(unrestricted)


def test_the_form_is_trustee_s(vm: Vm) -> None:
    """Members and encodings as in the recorded evidence of CoCo's attester."""
    import json

    evidence: dict[str, Any] = vm.attester.evidence(BOUND)
    assert set(evidence) == {"tpm_quote", "ak_public", "event_log"}
    assert set(evidence["tpm_quote"]) == {"signature", "message", "pcrs"}
    if (VECTORS / "tpm/evidence.json").is_file():
        recorded = json.loads((VECTORS / "tpm/evidence.json").read_text())
        assert set(evidence["tpm_quote"]) == set(recorded["tpm_quote"])
        for name in ("signature", "message"):
            ours, theirs = (
                base64.b64decode(found["tpm_quote"][name]) for found in (evidence, recorded)
            )
            assert ours[:6] == theirs[:6]
        assert (
            base64.b64decode(evidence["ak_public"])[:33]
            == base64.b64decode(recorded["ak_public"])[:33]
        )
