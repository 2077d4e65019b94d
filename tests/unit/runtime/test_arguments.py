"""The option parser takes what runc's takes, and names what it does not know."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_runtime.arguments import container_id, parse
from sealrun_runtime.errors import UsageError

TABLE = {"bundle": "bundle=", "b": "bundle=", "force": "force", "f": "force"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bundle", "/b", "c1"],
        ["--bundle=/b", "c1"],
        ["-b", "/b", "c1"],
        ["-b=/b", "c1"],
        ["-bundle", "/b", "c1"],
        ["c1", "--bundle", "/b"],
        ["--bundle", "/x", "--bundle", "/b", "c1"],
        ["--bundle", "/b", "--", "c1"],
    ],
)
def test_spellings_of_an_option_with_a_value(arguments: list[str]) -> None:
    parsed = parse(arguments, TABLE)
    assert parsed.value("bundle") == "/b"
    assert parsed.operands == ["c1"]


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("--force", True),
        ("-f", True),
        ("--force=true", True),
        ("--force=1", True),
        ("--force=false", False),
        ("--force=0", False),
    ],
)
def test_flags(argument: str, expected: bool) -> None:
    assert parse([argument, "c1"], TABLE).flag("force") is expected


def test_what_stands_in_front_of_a_verb_ends_at_the_verb() -> None:
    parsed = parse(["--force", "kill", "--force", "c1"], TABLE, operands=False)
    assert parsed.operands == ["kill", "--force", "c1"]


def test_a_value_may_look_like_an_option_and_an_operand_like_one_after_two_dashes() -> None:
    parsed = parse(["--bundle", "--force", "--", "--force"], TABLE)
    assert parsed.value("bundle") == "--force"
    assert not parsed.flag("force")
    assert parsed.operands == ["--force"]


def test_an_empty_value_is_a_value() -> None:
    assert parse(["--bundle="], TABLE).value("bundle", "default") == ""


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--nonsense=1"], "unknown option --nonsense"),
        (["-x"], "unknown option -x"),
        (["---force"], "unknown option ---force"),
        (["--bundle"], "option --bundle needs a value"),
        (["--force=maybe"], "option --force=maybe takes true or false"),
    ],
)
def test_errors_name_the_option(arguments: list[str], text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments, TABLE)
    assert caught.value.text == text


def test_a_lone_dash_is_an_operand() -> None:
    assert parse(["-"], TABLE).operands == ["-"]


def test_operands_are_counted() -> None:
    with pytest.raises(UsageError, match="kill needs a container id"):
        container_id("kill", parse([], TABLE))
    with pytest.raises(UsageError, match="unexpected operand 9"):
        container_id("state", parse(["c1", "9"], TABLE))
    assert container_id("kill", parse(["c1", "9"], TABLE), extra=1) == "c1"


@given(st.lists(st.text()))
def test_no_command_line_does_anything_but_parse_or_raise(arguments: list[str]) -> None:
    try:
        parsed = parse(arguments, TABLE)
    except UsageError:
        return
    assert set(parsed.operands) <= set(arguments)


def test_an_option_that_is_repeated() -> None:
    parsed = parse(["-e", "A=1", "--env=B=2", "c1", "-e", "C"], {"env": "env=", "e": "env="})
    assert parsed.values("env") == ["A=1", "B=2", "C"]
    assert parsed.value("env") == "C"
    assert parsed.values("other") == []
