"""When to ask again, and when to give up: bounded, with jitter, as long as the registry says."""

import os
import time
from collections.abc import Callable
from typing import Final, TypeVar

from sealrun_agent.errors import PullError
from sealrun_agent.image.connection import Broken

ATTEMPTS: Final = 4  # of one request
SECONDS: Final = 0.3  # before the second; each further one doubles it
ASKED_SECONDS: Final = 60.0  # the longest that a registry's Retry-After is obeyed

T = TypeVar("T")


class Patience:
    """With one request."""

    def __init__(self) -> None:
        self._failed = 0

    def wait(self, error: Broken) -> bool:
        """Sleep until the next attempt; False where there is none."""
        self._failed += 1
        asked = error.retry_after or 0.0
        if self._failed >= ATTEMPTS or asked > ASKED_SECONDS:
            return False
        # Guests that were cut off at once must not come back at once.
        jitter = 0.5 + int.from_bytes(os.urandom(2), "big") / 0x10000
        time.sleep(max(SECONDS * 2 ** (self._failed - 1) * jitter, asked))
        return True


def patiently(ask: Callable[[], T], what: str) -> T:
    """What `ask` gives, which may raise Broken. what: for the text. Raises PullError where there is no
    other attempt, and what else `ask` does."""
    patience = Patience()
    while True:
        try:
            return ask()
        except Broken as error:
            if not patience.wait(error):
                raise PullError(error.code, f"cannot fetch {what}: {error}") from error


def retry_after(header: str, now: float) -> float | None:
    """Seconds that a Retry-After header (RFC 9110, 10.2.3) asks for; None where it cannot be read.
    now: seconds since 1970."""
    text = header.strip()
    if text.isascii() and text.isdecimal() and len(text) <= 9:
        return float(text)
    from email import utils  # http.client has loaded it

    try:
        date = utils.parsedate_tz(text[:64])
        return max(0.0, utils.mktime_tz(date) - now) if date is not None else None
    except (ValueError, OverflowError, IndexError, TypeError):
        return None
