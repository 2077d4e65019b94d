"""How often the host hears of progress: at once where a phase begins or something is complete (a layer,
of which an image has not more than limits.LAYERS), else now and then."""

import time
from collections.abc import Callable
from typing import Final

from sealrun_protocol.errors import Phase

_SECONDS: Final = 0.5  # between two reports of one container in one phase

Send = Callable[[str, Phase, str, int, int], None]


class Progress:
    """Passes reports on to `send`, at a bounded rate. A container's reports come from one thread at
    a time; different containers' may come from different ones."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._last: dict[str, tuple[Phase, float]] = {}

    def report(self, container: str, phase: Phase, text: str, done: int, total: int) -> None:
        """What container is in which phase, a line for a person, and bytes where they are known."""
        now = time.monotonic()
        phase_before, sent = self._last.get(container, (None, 0.0))
        complete = total and done == total
        if phase is phase_before and not complete and now - sent < _SECONDS:
            return
        self._last[container] = (phase, now)
        self._send(container, phase, text, done, total)

    def forget(self, container: str) -> None:
        """The container is gone."""
        self._last.pop(container, None)
