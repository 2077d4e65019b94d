"""Pausing, limits and figures of a container, through a real shim."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures.shim import Request, Shim, running
from sealrun_protocol import messages
from sealrun_protocol.errors import ErrorCode, Phase
from simulators.guest import Guest

VERBS = ("pause", "resume", "update", "ps", "stats")


@pytest.fixture
def guest(shim: Shim) -> Iterator[Guest]:
    """Of a created container."""
    with shim.guest() as one:
        create = shim.create()
        one.create()
        create.ok()
        yield one


def start(shim: Shim, guest: Guest) -> None:
    request = shim.start()
    guest.start()
    request.ok()


def ask(shim: Shim, verb: str) -> Request:
    return shim.ask(verb, "c1", "{}") if verb == "update" else shim.ask(verb, "c1")


def test_evidence_over_a_nonce(shim: Shim, guest: Guest) -> None:
    request = shim.ask("attest", "c1", "00" * 32)
    document = {"tee": "tpm", "evidence": {"ak_public": "x"}}
    asked = answer(guest, messages.Attest, json.dumps(document).encode())
    assert asked.nonce == bytes(32)
    assert json.loads(request.ok()) == document


@pytest.mark.parametrize("nonce", ["", "xx", "00" * 15, "00" * 65])
def test_what_is_no_nonce_never_reaches_the_guest(shim: Shim, guest: Guest, nonce: str) -> None:
    assert "nonce" in str(shim.ask("attest", "c1", nonce).error())


def test_evidence_that_is_no_document(shim: Shim, guest: Guest) -> None:
    request = shim.ask("attest", "c1", "00" * 32)
    answer(guest, messages.Attest, b"[")
    assert request.error().kind == ErrorCode.PROTOCOL_VIOLATION


def pause(shim: Shim, guest: Guest) -> None:
    request = ask(shim, "pause")
    guest.send(messages.Done(id=guest.expect(messages.PauseContainer).id))
    request.ok()


def answer(guest: Guest, kind: type[Any], document: bytes = b"") -> Any:
    message = guest.expect(kind)
    guest.send(messages.Done(id=message.id, document=document))
    return message


@pytest.mark.parametrize("before", ["created", "running"])
def test_pause_and_resume(shim: Shim, guest: Guest, before: str) -> None:
    if before == "running":
        start(shim, guest)
    pid = shim.state()["pid"]
    pause(shim, guest)
    assert (shim.state()["status"], shim.state()["pid"]) == ("paused", pid)
    for verb in ("pause", "start"):
        assert ask(shim, verb).error().kind == "wrong-state"
    assert shim.execute("e1")[0].error().kind == "wrong-state"
    assert shim.delete().error().kind == "wrong-state"
    request = ask(shim, "resume")
    answer(guest, messages.ResumeContainer)
    request.ok()
    assert shim.state()["status"] == before
    assert ask(shim, "resume").error().kind == "wrong-state"


def test_a_paused_container_is_killed_and_let_go_on(shim: Shim, guest: Guest) -> None:
    start(shim, guest)
    pause(shim, guest)
    term = shim.kill(15)
    answer(guest, messages.SignalContainer)
    term.ok()
    assert shim.state()["status"] == "paused"  # it waits until the container goes on
    kill = shim.kill(9)
    answer(guest, messages.SignalContainer)
    resume = guest.expect(messages.ResumeContainer)
    guest.exit("c1", 137)
    code = ErrorCode.WRONG_STATE
    guest.send(messages.Failed(id=resume.id, phase=Phase.RUN, code=code, text=""))
    kill.ok()
    assert shim.code() == 137
    assert shim.state()["status"] == "stopped"


def test_a_paused_container_is_deleted_by_force(shim: Shim, guest: Guest) -> None:
    start(shim, guest)
    pause(shim, guest)
    shim.delete(force=True).ok()
    assert shim.code() == 137
    assert shim.gone() == 0


def test_a_paused_container_whose_guest_does_not_answer_a_kill(shim: Shim, guest: Guest) -> None:
    start(shim, guest)
    pause(shim, guest)
    request = shim.kill(9)
    request.ok()
    assert shim.code() == 137


def test_a_pause_that_fails(shim: Shim, guest: Guest) -> None:
    start(shim, guest)
    request = ask(shim, "pause")
    message = guest.expect(messages.PauseContainer)
    code = ErrorCode.RUNTIME_FAILED
    guest.send(messages.Failed(id=message.id, phase=Phase.RUN, code=code, text="freezer"))
    assert request.error().kind == "runtime-failed"
    assert shim.state()["status"] == "running"


def test_limits_travel_as_they_are(shim: Shim, guest: Guest) -> None:
    resources = '{"memory":{"reservation":1048576}, "unified":{"x":"\u00e4"}}'
    request = shim.ask("update", "c1", resources)
    message = answer(guest, messages.UpdateContainer)
    assert (message.container, message.resources) == ("c1", resources.encode())
    assert request.ok() == ""


def test_ps_names_stand_ins_and_the_guests_processes(shim: Shim, guest: Guest) -> None:
    start(shim, guest)
    execution, ends = shim.execute("e1")
    guest.execute()
    execution.ok()
    request = ask(shim, "ps")
    rows = [{"pid": 7, "ppid": 1, "uid": 33, "command": "sl\u00e4p 9" + "x" * 3000}]
    answer(guest, messages.ListProcesses, json.dumps(rows).encode())
    assert shim.stdio is not None
    pids = [shim.stdio.stand_in.pid, ends.stand_in.pid]
    assert json.loads(request.ok()) == {"pids": pids, "processes": rows}


def test_stats(shim: Shim, guest: Guest) -> None:
    request = ask(shim, "stats")
    answer(guest, messages.ReadStatistics, b'{"cpu": {"usage": {"total": 12345678901234567890}}}')
    assert json.loads(request.ok())["cpu"]["usage"]["total"] == 12345678901234567890


@pytest.mark.parametrize("verb", ["ps", "stats"])
@pytest.mark.parametrize(
    "document", [b"", b"rubbish", b'{"a":1}x', b"[1]", b'{"a":"\xff"}', b"[" * 50_000]
)
def test_a_guest_that_answers_nonsense(
    shim: Shim, guest: Guest, verb: str, document: bytes
) -> None:
    request = ask(shim, verb)
    kind = messages.ListProcesses if verb == "ps" else messages.ReadStatistics
    answer(guest, kind, document)
    assert request.error().kind == "protocol-violation"
    assert shim.state()["status"] == "created"


def test_what_the_guest_says_has_ended(shim: Shim, guest: Guest) -> None:
    request = ask(shim, "stats")
    message = guest.expect(messages.ReadStatistics)
    code = ErrorCode.WRONG_STATE
    guest.send(messages.Failed(id=message.id, phase=Phase.RUN, code=code, text=""))
    assert request.error().kind == "wrong-state"


@pytest.mark.parametrize("verb", VERBS)
def test_before_the_container_is_created(tmp_path: Path, verb: str) -> None:
    with running(tmp_path) as shim:
        assert ask(shim, verb).error().kind == "wrong-state"
        assert shim.ask(verb, "other", *(["{}"] if verb == "update" else [])).error().kind == (
            "not-found"
        )


def test_a_kill_for_want_of_memory_is_noted(shim: Shim, guest: Guest) -> None:
    start(shim, guest)
    guest.send(messages.ProcessExited(container="c1", code=137, oom=True))
    assert shim.code() == 137
    assert shim.annotation("oom") == "true"
