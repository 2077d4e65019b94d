"""`sealrun-broker verify`: an evidence file in, claims and verdict out, 0 only where it is accepted."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from fixtures.broker import LAUNCHER
from fixtures.vectors import vector
from simulators.snp import as_json

REPORT = "ec6c52d7533cc2c4f45be7849cf112ab82b2009fe7bd43e71ed08c14400ad7e2" + "00" * 32
THEN = "1700000000"
MEASUREMENT = (
    "a1f3930413247bb38cfc171579ea3c12d5fe4901f0c792f63fd75d98f1ef827c"
    "23500644e0e692e6be917f9050d3d38c"
)
REFERENCES = {
    "snp_launch_measurement": [MEASUREMENT],
    "snp_bootloader": [3],
    "snp_microcode": [115],
    "snp_snp_svn": [8],
    "snp_tee_svn": [0],
}


class Case:
    """An evidence file with the operator's files beside it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "collateral/snp").mkdir(parents=True)
        pem = vector("snp/milan_ask_ark_asvk.pem")
        (directory / "collateral/snp/milan.pem").write_bytes(pem)
        self.evidence = {
            "attestation_report": as_json(vector("snp/test-report.bin")),
            "cert_chain": [{"cert_type": "VCEK", "data": list(vector("snp/test-vcek.der"))}],
        }
        self.write("evidence.json", {"tee": "snp", "evidence": self.evidence})
        self.write("references.json", REFERENCES)
        (directory / "policy.toml").write_text("[evidence]\nsnp_report_versions = [2]\n")

    def write(self, name: str, content: object) -> None:
        (self.directory / name).write_text(json.dumps(content))

    def run(self, *more: str, init_data: tuple[str, ...] = ("--insecure-any-init-data",)) -> Any:
        return verify(
            str(self.directory / "evidence.json"),
            *("--report-data", REPORT, "--time", THEN, *init_data),
            *("--collateral", str(self.directory / "collateral")),
            *("--policy", str(self.directory / "policy.toml")),
            *("--reference-values", str(self.directory / "references.json"), *more),
        )


def verify(*arguments: str) -> tuple[int, Any, str]:
    """Exit status, the JSON on standard output, standard error."""
    done = subprocess.run(
        [LAUNCHER, "verify", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def test_recorded_evidence_is_accepted(case: Case) -> None:
    status, found, error = case.run()
    assert (status, error) == (0, "")
    assert found["accepted"] is found["genuine"] is True
    assert (found["status"], found["reasons"]) == ("affirming", [])
    assert found["claims"]["measurement"] == MEASUREMENT
    assert found["trustworthiness-vector"]["hardware"] == 2


def test_genuine_is_not_yet_accepted(case: Case) -> None:
    case.write("references.json", REFERENCES | {"snp_launch_measurement": ["00"]})
    status, found, _ = case.run()
    assert (status, found["accepted"], found["genuine"]) == (1, False, True)
    assert found["reasons"] == [
        "the launch measurement is not among the reference values snp_launch_measurement"
    ]


def test_what_is_not_genuine(case: Case) -> None:
    report = case.evidence["attestation_report"]
    changed = report | {"measurement": [0, *report["measurement"][1:]]}
    case.write(
        "evidence.json", {"tee": "snp", "evidence": case.evidence | {"attestation_report": changed}}
    )
    status, found, _ = case.run()
    assert (status, found["accepted"], found["genuine"]) == (1, False, False)
    assert found["reasons"] == ["snp evidence: the report's signature does not match"]


def test_other_report_data_and_init_data(case: Case, tmp_path: Path) -> None:
    status, found, _ = case.run("--report-data", "00" * 48)
    assert (status, found["genuine"]) == (1, False)
    assert "REPORT_DATA is not the hash" in found["reasons"][0]
    text = tmp_path / "init-data.toml"
    text.write_text('version = "0.1.0"\n')
    status, found, _ = case.run(init_data=("--init-data", str(text)))
    assert (status, found["genuine"]) == (1, False)
    assert "HOST_DATA is not the digest of the init-data" in found["reasons"][0]
    assert case.run(init_data=("--no-init-data",))[0] == 0
    text.write_text("")
    assert "it is empty" in case.run(init_data=("--init-data", str(text)))[2]


def test_a_policy_that_does_not_accept_the_version(case: Case) -> None:
    (case.directory / "policy.toml").write_text("[evidence]\n")
    status, found, _ = case.run()
    assert status == 1
    assert "the policy does not accept reports of version 2" in found["reasons"][0]


def test_a_recorded_quote_of_a_debuggable_td(tmp_path: Path) -> None:
    raw = vector("tdx/quote_v4.dat")
    file = tmp_path / "evidence.json"
    evidence = {"quote": base64.b64encode(raw).decode(), "cc_eventlog": None}
    file.write_text(json.dumps({"tee": "tdx", "evidence": evidence}))
    bound = raw[48 + 520 : 48 + 584].hex()
    status, found, error = verify(
        *(str(file), "--report-data", bound, "--insecure-any-init-data", "--time", THEN)
    )
    assert (status, error) == (1, "")
    assert (found["genuine"], found["status"]) == (True, "contraindicated")
    assert "the host may debug the VM" in found["reasons"]
    assert "the collateral has nothing on the platform 50806F000000" in found["reasons"]


def test_a_recorded_quote_of_a_tpm(tmp_path: Path) -> None:
    evidence = json.loads(vector("tpm/evidence.json"))
    message = base64.b64decode(evidence["tpm_quote"]["message"])
    bound = message[44:108].hex()
    file, references = tmp_path / "evidence.json", tmp_path / "references.json"
    file.write_text(json.dumps({"tee": "tpm", "evidence": evidence}))
    references.write_text(
        json.dumps({"trusted_aks": [evidence["ak_public"]], "tpm_pcr11": ["00" * 32]})
    )
    options = (str(file), "--report-data", bound, "--insecure-any-init-data")
    status, found, _ = verify(*options, "--reference-values", str(references))
    assert (status, found["status"]) == (0, "affirming"), found
    assert verify(*options)[0] == 1


def test_sample_evidence_is_never_genuine(tmp_path: Path) -> None:
    file, policy = tmp_path / "evidence.json", tmp_path / "policy.toml"
    bound = bytes(range(48))
    sample = {"svn": "1", "report_data": base64.b64encode(bound).decode()}
    file.write_text(json.dumps({"tee": "sample", "evidence": sample}))
    options = (str(file), "--report-data", bound.hex(), "--insecure-any-init-data")
    status, found, _ = verify(*options)
    assert status == 1
    assert found["reasons"] == ["the policy does not allow sample evidence"]
    policy.write_text("[evidence]\ninsecure_sample = true\n")
    status, found, _ = verify(*options, "--policy", str(policy))
    assert (status, found["genuine"], found["status"]) == (1, False, "contraindicated")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "cannot read the evidence file"),
        ("[" * 100_000, "cannot read the evidence file"),
        ('{"tee": "snp"}', "missing required field `evidence`"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: str, said: str) -> None:
    file = tmp_path / "evidence.json"
    file.write_text(content)
    status, found, error = verify(str(file), "--report-data", "00" * 48, "--insecure-any-init-data")
    assert (status, found) == (1, None)
    assert said in error
    assert error.count("\n") == 1


def test_what_it_must_be_bound_to_is_never_guessed(tmp_path: Path) -> None:
    file = tmp_path / "evidence.json"
    file.write_text('{"tee": "snp", "evidence": {}}')
    assert verify(str(file), "--report-data", "00" * 48)[0] == 2
    assert verify(str(file), "--nonce", "00" * 32)[0] == 2
    both = ("--report-data", "00" * 48, "--nonce", "00" * 32)
    assert verify(str(file), *both, "--insecure-any-init-data")[0] == 2
    for data in ("00" * 15, "00" * 65, "xx" * 32, ""):
        status, _, error = verify(str(file), "--nonce", data, "--insecure-any-init-data")
        assert status == 1
        assert "cannot use --nonce" in error
    assert verify(str(file), "--insecure-any-init-data")[0] == 2
    for data in ("00" * 31, "00" * 65, "xx" * 48, ""):
        status, _, error = verify(str(file), "--report-data", data, "--insecure-any-init-data")
        assert status == 1
        assert "cannot use --report-data" in error
    assert verify(str(file), "--report-data", "00" * 48, "--insecure-any-init-data")[0] == 1
