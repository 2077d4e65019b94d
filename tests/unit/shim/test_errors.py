"""What of a guest's words reaches the caller."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_protocol import limits
from sealrun_protocol.errors import ERRORS, ErrorCode, Phase
from sealrun_runtime.shim.errors import PROGRAM_CODES, guest_failed, wire_text


@given(st.text())
def test_wire_text_is_one_bounded_printable_line(text: str) -> None:
    line = wire_text(text)
    assert line.isprintable()
    assert len(line.encode()) <= limits.ERROR_TEXT_BYTES
    assert "\0" not in line


@given(st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), max_size=1000))
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert wire_text(text) == text


def test_lone_surrogates_do_not_break_the_answer() -> None:
    wire_text("\udc80").encode()


@pytest.mark.parametrize("code", list(ErrorCode))
def test_each_code_has_phase_sentence_and_remedy(code: ErrorCode) -> None:
    error = guest_failed(Phase.DECRYPT, code, "layer 3")
    assert error.kind == code.value
    assert error.remedy == ERRORS[code].remedy
    if code.value in PROGRAM_CODES:
        assert error.text == "layer 3"
    else:
        assert error.text == f"decrypt: {ERRORS[code].summary}: layer 3"


def test_a_tees_fixed_text_is_not_said_twice() -> None:
    code = ErrorCode.KEY_WRONG
    error = guest_failed(Phase.DECRYPT, code, ERRORS[code].summary)
    assert error.text == f"decrypt: {ERRORS[code].summary}"


def test_the_program_codes_are_codes() -> None:
    assert {ErrorCode(code) for code in PROGRAM_CODES} == {
        ErrorCode.PROGRAM_NOT_FOUND,
        ErrorCode.PROGRAM_NOT_EXECUTABLE,
    }
