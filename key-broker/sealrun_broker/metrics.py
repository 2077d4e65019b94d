"""Counters for Prometheus, in its text form (version 0.0.4): requests by what came of them.

Labels come from fixed sets, never from a client, so that nobody can make them grow.
"""

from collections import Counter
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NAME: Final = "sealrun_broker_requests_total"


class Metrics:
    """One process's counters; they begin at zero with it."""

    def __init__(self) -> None:
        self._requests: Counter[tuple[str, str, str]] = Counter()

    def count(self, event: str, outcome: str, tee: str = "") -> None:
        """One request. event: as in the audit log; outcome: `ok` or the error's name; tee: a kind of
        evidence that is known, or empty."""
        self._requests[event, outcome, tee] += 1

    def text(self, sessions: int) -> str:
        """The whole page. sessions: open now."""
        lines = [f"# HELP {_NAME} Requests that were decided.", f"# TYPE {_NAME} counter"]
        lines += [
            f'{_NAME}{{event="{event}",outcome="{outcome}",tee="{tee}"}} {number}'
            for (event, outcome, tee), number in sorted(self._requests.items())
        ]
        lines += ["# HELP sealrun_broker_sessions Sessions that are open now."]
        lines += ["# TYPE sealrun_broker_sessions gauge", f"sealrun_broker_sessions {sessions}"]
        return "\n".join(lines) + "\n"
