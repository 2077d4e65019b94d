"""Signals that call a piece of work off, and signals that are passed on to a container.

All other time, from the first thing that is made to this process's end, they have to wait. One that
came between two steps, or while what was made is undone, would leave a half of it; one that is only
delivered would end this process, and what it made would be nobody's.
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
    """From here to the end of this process signals wait, but for the blocks below."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED)


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the block a signal that ends a process raises Interrupted instead, once. For waiting,
    where it does not matter how far it got."""
    interrupted = False

    def interrupt(number: int, _: FrameType | None) -> None:
        nonlocal interrupted
        if not interrupted:  # whoever is impatient interrupts the undoing, too
            interrupted = True
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
    hold_back()
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
