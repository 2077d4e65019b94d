"""crun's sentences as errors."""

from pathlib import Path

import pytest
from sealrun_agent.container.crun import last_words, translate
from sealrun_agent.errors import StartError
from sealrun_protocol.errors import ErrorCode


@pytest.mark.parametrize(
    ("sentence", "code", "text"),
    [
        (
            "executable file `x` not found in $PATH: No such file or directory",
            ErrorCode.PROGRAM_NOT_FOUND,
            "executable file `x` not found in $PATH: No such file or directory",
        ),
        (
            "open executable: Permission denied",
            ErrorCode.PROGRAM_NOT_EXECUTABLE,
            "open executable `/x y`: Permission denied",
        ),
        (
            "open executable: Operation not permitted",
            ErrorCode.PROGRAM_NOT_EXECUTABLE,
            "open executable `/x y`: Operation not permitted (permission denied)",
        ),
        (
            "exec: Exec format error",
            ErrorCode.PROGRAM_NOT_EXECUTABLE,
            "exec `/x y`: Exec format error",
        ),
        (
            "exec: No such file or directory",
            ErrorCode.PROGRAM_NOT_FOUND,
            "exec `/x y`: No such file or directory",
        ),
        (
            "mount `proc` to `/proc`: Permission denied",
            ErrorCode.RUNTIME_FAILED,
            "mount `proc` to `/proc`: Permission denied",
        ),
    ],
)
def test_translate(sentence: str, code: ErrorCode, text: str) -> None:
    error = translate(sentence, "/x y")
    assert isinstance(error, StartError)
    assert (error.code, str(error)) == (code, text)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ""),
        (b"one\n", "one"),
        (b"a warning\nthe error\n\n", "the error"),
        (b"\xff broken\n", "� broken"),
    ],
)
def test_last_words(tmp_path: Path, content: bytes, words: str) -> None:
    log = tmp_path / "log"
    assert last_words(str(log)) == ""
    log.write_bytes(content)
    assert last_words(str(log)) == words
