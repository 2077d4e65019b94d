"""`sealrun attest`: evidence over a nonce, and the broker's verdict on it as exit status."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
from fixtures.cli import World
from sealrun_protocol.init_data import encode_annotation

pytestmark = pytest.mark.root

NONCE = "00112233445566778899aabbccddeeff"
SAMPLES = "[evidence]\ninsecure_sample = true\n"
INIT_DATA = b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'


@pytest.fixture
def running(world: World) -> World:
    world.create(annotations={"io.sealrun.init-data": encode_annotation(INIT_DATA)})
    assert world("start", "c1").returncode == 0
    return world


def policy(world: World) -> str:
    file = world.tmp / "policy.toml"
    file.write_text(SAMPLES)
    return str(file)


def test_the_evidence_is_verified_with_the_sandbox_s_own_init_data(running: World) -> None:
    done = running("attest", "--policy", policy(running), "c1")
    verdict = json.loads(done.stdout)
    assert (done.returncode, done.stderr) == (1, "")
    assert (verdict["genuine"], verdict["tee"], verdict["accepted"]) == (False, "sample", False)
    assert verdict["claims"]["svn"] == "1"
    assert len(verdict["init-data-digests"]) == 3
    refused = running("attest", "c1")
    assert refused.returncode == 1
    assert "the policy does not allow sample evidence" in refused.stdout


def test_accepted_is_0(running: World) -> None:
    references = running.tmp / "references.json"
    references.write_text(
        json.dumps(
            {
                "svn": ["1"],
                "launch_digest": ["abcde"],
                "major_version": 1,
                "minimum_minor_version": 4,
            }
        )
    )
    options = ("--policy", policy(running), "--reference-values", str(references))
    assert running("attest", *options, "c1").returncode == 0


def test_a_file_for_somebody_else(running: World) -> None:
    file = running.tmp / "evidence.json"
    done = running("attest", "--no-verify", "--nonce", NONCE, "--output", str(file), "c1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    written: dict[str, Any] = json.loads(file.read_text())
    assert (written["tee"], written["nonce"]) == ("sample", NONCE)
    assert stat.S_ISREG(file.stat().st_mode)
    done = running("attest", "--no-verify", "--nonce", NONCE, "c1")
    assert json.loads(done.stdout) == written


def test_a_nonce_is_fresh_unless_it_is_given(running: World) -> None:
    nonces = {json.loads(running("attest", "--no-verify", "c1").stdout)["nonce"] for _ in range(3)}
    assert {len(nonce) for nonce in nonces} == {64}
    assert len(nonces) == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("attest",), "attest needs a container id"),
        (("attest", "--nonce", "xyz", "c1"), "--nonce is not hex"),
        (("attest", "--nonce", "00" * 15, "c1"), "--nonce must have 16 to 64 bytes"),
        (("attest", "--nonce", "00" * 65, "c1"), "--nonce must have 16 to 64 bytes"),
        (
            ("attest", "--no-verify", "--output", "/nonexistent/x", "c1"),
            "cannot write /nonexistent",
        ),
        (("attest", "c2"), 'container "c2" does not exist'),
    ],
)
def test_what_cannot_be_done(running: World, arguments: tuple[str, ...], said: str) -> None:
    done = running(*arguments)
    assert done.returncode == 1
    assert said in done.stderr
    assert done.stdout == ""


def test_a_container_that_does_not_run(running: World) -> None:
    running("kill", "c1", "KILL")
    running.wait_for("stopped")
    done = running("attest", "c1")
    assert (done.returncode, done.stderr) == (1, "sealrun: container not running\n")


def test_without_a_broker_on_this_machine(running: World, tmp_path: Path) -> None:
    library = running.program.resolve().parents[2]
    (library / "key-broker").rename(library / "elsewhere")
    done = running("attest", "c1")
    assert done.returncode == 1
    assert "cannot verify the evidence by" in done.stderr
    assert "--no-verify --output" in done.stderr
