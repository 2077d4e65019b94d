"""Reference values: one JSON object, read again when it changes."""

import base64
import json
from pathlib import Path

import pytest
from sealrun_broker import bounds
from sealrun_broker.errors import BrokerError
from sealrun_broker.reference_values import ReferenceValues, from_message, from_words, listed


def message(payload: object, version: str = "0.1.0", kind: str = "sample") -> bytes:
    text = base64.b64encode(json.dumps(payload).encode()).decode()
    return json.dumps({"version": version, "type": kind, "payload": text}).encode()


def test_set_merged_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "values.json"
    values = ReferenceValues(str(path))
    assert values.current() == {}
    values.set({"a": ["1", 2, True], "b": "x"})
    values.set({"b": ["y"]})
    assert ReferenceValues(str(path)).current() == {"a": ["1", 2, True], "b": ["y"]}
    values.set({"a": []})
    assert values.current() == json.loads(path.read_text()) == {"b": ["y"]}
    path.write_text('{"c": 1}')
    assert values.current() == {"c": 1}
    assert (listed(values.current(), "c"), listed(values.current(), "d")) == ([1], [])
    path.unlink()
    assert values.current() == {}


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"a b": 1}', '{"": 1}', '{"a": null}', '{"a": {}}', '{"a": [[1]]}', "[" * 9999],
)
def test_a_file_that_cannot_be_read_is_no_empty_one(tmp_path: Path, text: str) -> None:
    path = tmp_path / "values.json"
    path.write_text(text)
    values = ReferenceValues(str(path))
    for _ in range(2):
        with pytest.raises(BrokerError, match="cannot read the reference values"):
            values.current()
    path.unlink()
    path.mkdir()
    with pytest.raises(BrokerError, match="Is a directory"):
        values.current()


def test_there_may_not_be_too_many(tmp_path: Path) -> None:
    values = ReferenceValues(str(tmp_path / "values.json"))
    values.set({"a": ["1"]})
    with pytest.raises(BrokerError, match="more than"):
        values.set({"b": ["x" * bounds.REFERENCE_BYTES]})
    assert values.current() == {"a": ["1"]}


def test_rvps_messages() -> None:
    assert from_message(message({"svn": ["1"], "n": 1})) == {"svn": ["1"], "n": 1}
    for wrong in (
        message([]),
        message({"a": None}),
        message({}, version="0.2.0"),
        message({}, kind="corim"),
        b"{}",
        b"",
        b'{"version":"0.1.0","type":"sample","payload":"!"}',
        b'{"version":"0.1.0","type":"sample","payload":"\xc3\xa9"}',
    ):
        with pytest.raises(ValueError):
            from_message(wrong)


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("12", 12),
        ("true", True),
        ("abc", "abc"),
        ("a1f3", "a1f3"),
        ("0123", "0123"),
        ("1" * 64, "1" * 64),
        ("1.5", "1.5"),
        ('"12"', '"12"'),
        ("null", "null"),
    ],
)
def test_values_on_a_command_line(word: str, value: object) -> None:
    (found,) = from_words("a", [word])  # type: ignore[misc]
    assert found == value
    assert type(found) is type(value)
