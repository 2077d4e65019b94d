"""Signals that call a piece of work off, and signals that are passed on to a container.

Between the two, when the work is done and nobody passes on yet, they have to wait: a signal that is
only delivered would end this process, and what it made would be nobody's.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from sealrun_runtime.errors import SealrunError

_CALLING_OFF: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_FORWARDED: Final = (
    *_CALLING_OFF,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)
_Handler = Callable[[int, FrameType | None], None]


class Interrupted(SealrunError):
    """A signal called the work off."""


def hold_back() -> None:
    """From here to the end of the surrounding block, signals wait. One that came before is acted
    upon here at the latest: with `interruptible` this may raise Interrupted."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)


@contextmanager
def held_back() -> Iterator[None]:
    """Inside the block signals wait, but for the blocks in it that take them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let the signals that end a process raise Interrupted instead. A block that has made something
    calls `hold_back` while it still could undo it."""

    def interrupt(number: int, _: FrameType | None) -> None:
        raise Interrupted(f"interrupted by {signal.Signals(number).name}")

    with _handled(_CALLING_OFF, interrupt):
        yield


@contextmanager
def forwarding(send: Callable[[int], None]) -> Iterator[None]:
    """Give the signals that people and supervisors send us to `send`, as numbers."""

    def forward(number: int, _: FrameType | None) -> None:
        send(number)

    with _handled(_FORWARDED, forward):
        yield


@contextmanager
def _handled(numbers: tuple[signal.Signals, ...], handler: _Handler) -> Iterator[None]:
    with held_back():
        handlers = {number: signal.signal(number, handler) for number in numbers}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        try:
            yield
        finally:
            hold_back()
            for number, before in handlers.items():
                signal.signal(number, before)


def exit_code(pid: int) -> int:
    """Wait for a child; the code that it ended with, 128+n where signal n ended it."""
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
