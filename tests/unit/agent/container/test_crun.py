"""crun's sentences as errors, and when it is waited for."""

import os
import threading
import time
from pathlib import Path

import pytest
from sealrun_agent.container import crun
from sealrun_agent.container.crun import last_words, translate
from sealrun_agent.errors import StartError
from sealrun_agent.processes import Processes
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


def test_crun_is_not_waited_for_where_the_process_that_it_needs_has_ended() -> None:
    """`crun start` opens a FIFO that nobody reads any more where that process was just killed."""
    processes = Processes()
    null = os.open(os.devnull, os.O_RDWR)
    stdio = (null, null, null)
    over = threading.Event()

    def reap() -> None:
        while not over.wait(0.01):
            processes.reap()

    reaper = threading.Thread(target=reap)
    reaper.start()
    try:
        waiting = processes.spawn(["/bin/sleep", "1000"], {}, stdio)
        needed = processes.spawn(["/bin/sleep", "0.3"], {}, stdio)
        started = time.monotonic()
        crun._end_without(needed, waiting)
        assert waiting.wait(5) == 137
        assert time.monotonic() - started < 30
        quick = processes.spawn(["/bin/true"], {}, stdio)
        alive = processes.spawn(["/bin/sleep", "1000"], {}, stdio)
        crun._end_without(alive, quick)
        assert quick.code == 0
        alive.signal(9)
        assert alive.wait(5) == 137
    finally:
        over.set()
        reaper.join()
        os.close(null)
