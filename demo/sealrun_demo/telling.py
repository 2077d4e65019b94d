"""What the demonstration says: chapters, what it does, the commands it runs and what they answer."""

import os
import shlex
import sys
import time
from collections.abc import Sequence

_COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ
_START = time.monotonic()
_WIDTH = 200


class Failed(Exception):
    """A claim of the demonstration did not come true, or a part of it did not work."""


def _styled(code: str, text: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOUR else text


def _line(text: str = "") -> None:
    print(text, flush=True)


def chapter(title: str) -> None:
    """Begin a chapter."""
    _line()
    _line(_styled("1", f"== {title} ") + _styled("2", f"({time.monotonic() - _START:.0f} s)"))


def tell(text: str) -> None:
    """A sentence of the story."""
    _line(f"   {text}")


def command(argv: Sequence[str]) -> None:
    """A command that is about to run; long values are shortened for the eye."""
    shown = " ".join(
        shlex.quote(word) if len(word) < _WIDTH else f"'{word[:60]}...'" for word in argv
    )
    _line(_styled("36", f"   $ {shown}"))


def output(text: str) -> None:
    """What a command said."""
    for line in text.splitlines():
        shown = line if len(line) < 2 * _WIDTH else f"{line[:_WIDTH]}..."
        _line(_styled("33", f"   | {shown}"))


def claim(true: bool, text: str) -> None:
    """Something that this demonstration shows. Raises Failed where it does not hold."""
    if not true:
        raise Failed(f"not true: {text}")
    _line(_styled("32", "   ok ") + text)
