"""A program of the host that an operator may name: where it is, and what it says of itself.

The operator may have named anything. So what is asked must answer in bounded time and length, and nothing
that it started stays. Who gave no answer once is not asked again: `check` asks a program several times.
"""

import contextlib
import functools
import os
import selectors
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Sequence
from typing import Final, NamedTuple

from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.process import SYSTEM_PATH, die_with, printable

SECONDS: Final = 10.0  # all answers together; QEMU takes 0.02, more on a host that is busy or cold
_BYTES: Final = 1 << 16  # of one answer; the longest that is asked for has 4 KiB


class Answer(NamedTuple):
    """status: the exit status, -n where signal n ended it. text: what it printed, on both outputs."""

    status: int
    text: str

    def failure(self) -> str | None:
        """How it failed, with its last words, as the end of a sentence; None where it did not."""
        if self.status == 0:
            return None
        how = f"status {self.status}" if self.status > 0 else f"signal {-self.status}"
        lines = [line for line in self.text.splitlines() if line.strip()]
        words = f": {printable(lines[-1])}" if lines else ""
        return f"it ended with {how} when it was asked what it is{words}"


class _Mute(Exception):
    """It gave no answer; the text says why."""


_mute: dict[tuple[object, ...], str] = {}
"""Why a program gave no answer, by its path and what is there."""


def find(name: str, remedy: str, what: str = "") -> str:
    """The path of the program `name`, a path or a name that is looked for where the system has its own.

    what: how a message goes on that it is missing. Raises HostUnfit."""
    found = shutil.which(name, path=SYSTEM_PATH)  # engines call with little or no PATH
    if found is not None and os.path.isfile(found):
        return found
    if not os.path.lexists(name) or os.sep not in name:
        raise HostUnfit(f"cannot find {name}{what}", remedy=remedy)
    raise HostUnfit(f"cannot use {name}{what}: {_obstacle(name)}", remedy=remedy)


def ask(path: str, *questions: Sequence[str], remedy: str) -> list[Answer]:
    """What the program prints when it is called with the arguments of each question, all at the same time.

    Raises HostUnfit where it cannot be run, does not end in SECONDS, or does not stop talking."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise HostUnfit(f"cannot use {path}: {error.strerror}", remedy=remedy) from error
    identity = (path, status.st_dev, status.st_ino, status.st_mtime_ns)
    if identity not in _mute:
        try:
            return _asked(path, questions)
        except _Mute as error:
            _mute[identity] = str(error)
        except FileNotFoundError:  # it was there a moment ago
            _mute[identity] = "its interpreter or its loader does not exist"
        except OSError as error:
            _mute[identity] = error.strerror or str(error)
    raise HostUnfit(f"cannot use {path}: {_mute[identity]}", remedy=remedy)


def _obstacle(path: str) -> str:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "it is a link to nothing"
    except OSError as error:
        return error.strerror or str(error)
    if stat.S_ISDIR(mode):
        return "it is a directory"
    return "it is not executable" if stat.S_ISREG(mode) else "it is no file"


def _asked(path: str, questions: Sequence[Sequence[str]]) -> list[Answer]:
    """Raises _Mute, OSError."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        running.extend(_start(path, question) for question in questions)
        return _answers(running, time.monotonic() + SECONDS)
    finally:
        for process in running:
            _end(process)


def _start(path: str, arguments: Sequence[str]) -> "subprocess.Popen[bytes]":
    """Raises OSError."""
    return subprocess.Popen(
        [path, *arguments],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,  # where QEMU lists its TPMs
        start_new_session=True,
        preexec_fn=functools.partial(die_with, os.getpid()),  # noqa: PLW1509 - two system calls
    )


def _answers(running: Sequence["subprocess.Popen[bytes]"], deadline: float) -> list[Answer]:
    """Raises _Mute, OSError."""
    said = [b""] * len(running)
    with contextlib.ExitStack() as stack:
        selector = stack.enter_context(selectors.DefaultSelector())
        for index, process in enumerate(running):
            assert process.stdout is not None
            end = stack.enter_context(open(os.pidfd_open(process.pid), "rb"))
            selector.register(process.stdout, selectors.EVENT_READ, index)
            selector.register(end, selectors.EVENT_READ, None)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _Mute(f"it did not say what it is within {SECONDS:g} s")
            for key, _ in ready:
                part = b"" if key.data is None else os.read(key.fd, _BYTES)
                if not part:
                    selector.unregister(key.fileobj)
                    continue
                said[key.data] += part
                if len(said[key.data]) > _BYTES:
                    raise _Mute(f"it says more than {_BYTES >> 10} KiB when it is asked what it is")
    texts = [text.decode("utf-8", "replace") for text in said]
    return [Answer(_end(one), text) for one, text in zip(running, texts, strict=True)]


def _end(process: "subprocess.Popen[bytes]") -> int:
    """Nothing of it stays, and nothing that it started either; its exit status. Idempotent."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)  # which is its own until it is reaped
    assert process.stdout is not None
    process.stdout.close()
    return process.wait()
