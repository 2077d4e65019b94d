"""The audit log: a line each, readable again, bounded in size."""

import stat
from pathlib import Path

import pytest
from sealrun_broker import bounds
from sealrun_broker.audit import Audit, entries
from sealrun_broker.cli import main
from sealrun_broker.errors import BrokerError


def test_entries_come_back_in_order(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(str(path))
    audit.record(peer="127.0.0.1", event="auth", outcome="ok", session="s" * 32, tee="t" * 99)
    audit.record(peer="::1", event="get", outcome="PolicyDeny", resource="a/b/c", detail="x\ny")
    first, second = entries(str(path))
    assert first.event == "auth"
    assert first.session
    assert "s" * 5 not in first.session
    assert len(first.tee) == 40
    assert first.time < second.time or first.time == second.time
    assert (second.resource, second.detail, second.session) == ("a/b/c", "x\ny", "")
    assert len(path.read_text().splitlines()) == 2, "nobody can write a line of their own"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_log_is_turned_over_before_it_fills_the_disk(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    audit = Audit(str(path))
    for event in ("one", "two", "three"):
        with path.open("ab") as stream:
            filler = b'{"time":"","peer":"","event":"filler","outcome":"%s"}\n'
            stream.write(filler % (b"x" * bounds.AUDIT_BYTES))
        audit.record(peer="", event=event, outcome="ok")
        assert not path.exists()
    audit.record(peer="", event="four", outcome="ok")
    assert [entry.event for entry in entries(str(path))] == ["filler", "three", "four"]
    assert len(list(tmp_path.iterdir())) == 2


def test_no_log_and_a_damaged_log(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    assert list(entries(str(path))) == []
    path.write_text("nonsense\n")
    with pytest.raises(BrokerError, match="line 1"):
        list(entries(str(path)))


def test_what_a_client_wrote_is_no_line_and_no_escape_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Anybody may ask /auth, and names the kind of evidence as he likes."""
    (tmp_path / "policy.toml").touch()
    (tmp_path / "resources").mkdir()
    audit = Audit(str(tmp_path / "audit.jsonl"))
    tee = "\x1b[2J\x9b\u202e\n1970 ::1 get a/b/c ok"
    audit.record(peer="::1", event="auth", outcome="ok", tee=tee, detail=f"not {tee}")
    assert main(["log", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.endswith("\n")
    assert printed[:-1].isprintable()
