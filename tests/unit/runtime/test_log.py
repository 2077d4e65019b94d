"""The engine's log: one line each, JSON where JSON is asked for, whatever the text holds."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_runtime.log import Log, line

EPOCH = time.gmtime(0)


def test_json_as_conmon_reads_it() -> None:
    assert line("json", "error", 'a "b"', EPOCH) == (
        b'{"msg":"a \\"b\\"","level":"error","time":"1970-01-01T00:00:00Z"}\n'
    )


def test_text_as_logrus_writes_it() -> None:
    assert (
        line("text", "error", "a b", EPOCH)
        == b'time="1970-01-01T00:00:00Z" level=error msg="a b"\n'
    )


@given(st.text(alphabet=st.characters(exclude_categories=[])))
def test_any_text_is_one_line_of_json(text: str) -> None:
    written = line("json", "error", text, EPOCH)
    assert written.count(b"\n") == 1
    assert isinstance(json.loads(written)["msg"], str)


def test_information_is_for_debug_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    Log(str(path), "json", debug=False).info("quiet")
    assert not path.exists()
    Log(str(path), "json", debug=True).info("told")
    Log(str(path), "json", debug=False).error("failed")
    levels = [json.loads(one)["level"] for one in path.read_text().splitlines()]
    assert levels == ["info", "error"]


def test_a_log_that_cannot_be_written_is_said_and_no_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Log(str(tmp_path / "missing/log"), "json", debug=False).error("x")
    assert "cannot write" in capsys.readouterr().err
    Log("", "json", debug=False).error("x")
