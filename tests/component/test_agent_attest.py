"""Evidence on request, and what is written into the TPM's log on the way: the real agent, a real TPM."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fixtures import tpm as tpms
from fixtures.agent import Host, agent, config
from sealrun_broker.verifiers import sample, tpm
from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected, Verified
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from sealrun_protocol.evidence import bound_to

pytestmark = [pytest.mark.root, pytest.mark.tpm]

NONCE = bytes(range(32))
BIND = {"destination": "/data", "type": "bind", "source": "/nowhere", "options": ["bind"]}


def init_data(algorithm: str = "sha256", *lines: str) -> bytes:
    return (
        f'version = "0.1.0"\nalgorithm = "{algorithm}"\n[data]\n'
        "\"sealrun.toml\" = '''\n" + "\n".join(lines) + "\n'''\n"
    ).encode()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """An agent that has a TPM."""
    state = tmp_path / "tpm"
    state.mkdir()
    with tpms.listening(state) as path, agent(tmp_path, tee="tpm", tpm=path) as running:
        yield running


def evidence(host: Host, nonce: bytes = NONCE) -> dict[str, Any]:
    done = host.request(messages.Attest, nonce=nonce)
    assert isinstance(done, messages.Done), done
    document: dict[str, Any] = json.loads(done.document)
    return document


def verified(host: Host, text: bytes | None = None) -> Verified:
    document = evidence(host)
    assert document["tee"] == "tpm"
    return tpm.verify(document["evidence"], Expected(bound_to(NONCE), text, 0.0))


def logged(found: Verified) -> list[str]:
    return [entry["details"]["string"] for entry in found.claims["uefi_event_logs"]]


def test_evidence_is_bound_to_the_nonce_and_to_nothing_of_the_host_s_choice(host: Host) -> None:
    host.configure()
    assert verified(host)
    report = evidence(host)["evidence"]
    for chosen in (NONCE, hashlib.sha384(NONCE).digest(), bound_to(NONCE[:31])):
        with pytest.raises(EvidenceInvalid, match="is not the hash"):
            tpm.verify(report, Expected(chosen.ljust(48, b"\0"), None, 0.0))


def test_the_init_data_is_bound_before_it_is_obeyed(host: Host) -> None:
    text = init_data("sha256", "[container]", "allow_exec = true")
    host.configure(text)
    found = verified(host, text)
    assert logged(found) == [
        f'sealrun InitData {{"algorithm":"sha256","digest":"{hashlib.sha256(text).hexdigest()}"}}'
    ]
    with pytest.raises(EvidenceInvalid, match="PCR 8"):
        tpm.verify(evidence(host)["evidence"], Expected(bound_to(NONCE), text + b" ", 0.0))


def test_init_data_that_the_tpm_cannot_vouch_for_ends_the_sandbox(host: Host) -> None:
    host.expect(messages.Hello)
    failed = host.request(
        messages.ConfigureSandbox, init_data=init_data("sha384"), hostname="x", time_ns=1
    )
    assert (failed.phase, failed.code) == (Phase.ATTEST, ErrorCode.INIT_DATA_INVALID)


def test_decisions_are_written_down_once(host: Host) -> None:
    text = init_data("sha256", "[container]", "allow_exec = true", "insecure_any_process = true")
    host.configure(text)
    done = host.create("sleep", "1000")
    assert isinstance(done, messages.Done), done
    host.start()
    for number in range(3):
        assert host.run_in("true", process=f"p{number}") == 0
    assert logged(verified(host, text))[1:] == [
        'sealrun Decision {"allowed":"true","request":"any-process"}',
        'sealrun Decision {"allowed":"true","request":"exec"}',
    ]


def test_a_refusal_is_written_down_too(host: Host) -> None:
    text = init_data("sha256", "[container]", 'commands = [["sleep", "1000"]]')
    host.configure(text)
    done = host.create("sleep", "1000")
    assert isinstance(done, messages.Done), done
    host.start()
    failed = host.execute("true")
    assert failed.code is ErrorCode.POLICY_DENIED
    assert logged(verified(host, text))[1:] == [
        'sealrun Decision {"allowed":"false","request":"exec"}'
    ]


@pytest.mark.parametrize("length", [0, 15, 65])
def test_a_nonce_of_another_length_breaks_the_protocol(host: Host, length: int) -> None:
    host.configure()
    host.ask(messages.Attest, nonce=bytes(length))
    host.last_words(ErrorCode.PROTOCOL_VIOLATION)


def test_one_at_a_time(host: Host) -> None:
    host.configure()
    answers = host.answers([host.ask(messages.Attest, nonce=NONCE) for _ in range(8)])
    failed = [one for one in answers.values() if isinstance(one, messages.Failed)]
    assert 0 < len(failed) < 8
    assert {one.code for one in failed} == {ErrorCode.WRONG_STATE}
    assert verified(host)


def test_sample_evidence_only_where_the_tenant_says_so(tmp_path: Path) -> None:
    for allowed in (False, True):
        directory = tmp_path / str(allowed)
        directory.mkdir()
        with agent(directory) as host:
            line = f"insecure_sample_evidence = {str(allowed).lower()}"
            host.configure(init_data("sha256", "[attestation]", line))
            if allowed:
                document = evidence(host)
                assert document["tee"] == "sample"
                assert sample.verify(document["evidence"], Expected(bound_to(NONCE), None, 0.0))
            else:
                failed = host.request(messages.Attest, nonce=NONCE)
                assert (failed.phase, failed.code) == (Phase.ATTEST, ErrorCode.SAMPLE_NOT_ALLOWED)


def test_a_tpm_that_goes_away(tmp_path: Path) -> None:
    state = tmp_path / "tpm"
    state.mkdir()
    with ExitStack() as switched_on:
        path = switched_on.enter_context(tpms.listening(state))
        with agent(tmp_path, tee="tpm", tpm=path) as host:
            host.configure()
            assert verified(host)
            switched_on.close()
            failed = host.request(messages.Attest, nonce=NONCE)
            assert (failed.phase, failed.code) == (Phase.ATTEST, ErrorCode.TEE_UNAVAILABLE)
            assert failed.text == "no evidence can be had from the TEE"


STREAMS = {"stdin": 0, "stdout": 4, "stderr": 6}
ECHO = ("sh", "-c", "echo word; echo word >&2")


def test_the_host_may_not_read_what_a_container_writes(host: Host) -> None:
    text = init_data("sha256", "[container]", "allow_exec = true")
    host.configure(text)
    done = host.create("sh", "-c", f"{ECHO[2]}; sleep 1000", **STREAMS)
    assert isinstance(done, messages.Done), done
    host.start()
    while not {4, 6} <= host.ended:
        host.receive()
    assert host.run_in(*ECHO, stdin=0) == 0
    assert {14, 16} <= host.ended
    assert not any(host.output.values())
    done = host.execute("sh", process="p2", terminal=True, stderr=0)
    assert (done.code, done.phase) == (ErrorCode.POLICY_DENIED, Phase.START)


def test_unless_the_tenant_says_so(host: Host) -> None:
    text = init_data("sha256", "[container]", "allow_output = true")
    host.configure(text)
    assert host.run(*ECHO, **STREAMS) == 0
    assert (host.output[4], host.output[6]) == (b"word\n", b"word\n")
    assert logged(verified(host, text))[1:] == [
        'sealrun Decision {"allowed":"true","request":"output"}'
    ]


@pytest.mark.parametrize(
    "wish",
    [
        {"config": config("sh", terminal=True), "terminal": True, "stderr": 0},
        {"shared_root": True},
        {"config": config("sh", mounts=[BIND]), "shared_mounts": (2,)},
    ],
    ids=["terminal", "shared-root", "shared-directory"],
)
def test_what_is_denied_by_default_is_written_down(host: Host, wish: dict[str, Any]) -> None:
    text = init_data("sha256")
    host.configure(text)
    failed = host.create("sh", **wish)
    assert (failed.code, failed.phase) == (ErrorCode.POLICY_DENIED, Phase.START)
    assert logged(verified(host, text))[1:] == [
        'sealrun Decision {"allowed":"false","request":"create"}'
    ]
