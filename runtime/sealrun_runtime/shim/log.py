"""shim.log: what the shim says on stderr, which `create` points there.

A guest can make us log; `guest` therefore stops after a number of lines. `logging` costs nothing
here: asyncio imports it anyway.
"""

import logging
import time
from typing import Final

GUEST_LINES: Final = 2000

log: Final = logging.getLogger("sealrun.shim")
_guest_lines = 0


def configure(level: str) -> None:
    """Write to stderr from `level` (error, info, debug) on, one line per record."""
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=level.upper(),
        format="%(asctime)s.%(msecs)03dZ %(levelname)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )


def guest(text: str) -> None:
    """A line that a guest's message gave rise to."""
    global _guest_lines  # noqa: PLW0603 - one log per process
    _guest_lines += 1
    if _guest_lines <= GUEST_LINES:
        log.info("%s", text)
    if _guest_lines == GUEST_LINES:
        log.error("the guest makes too many words: no more of them here")
