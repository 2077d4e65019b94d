"""What came of a request: one line in the audit log, and one more in the counters."""

from sealrun_broker.audit import Audit
from sealrun_broker.metrics import Metrics
from sealrun_broker.verifiers.binding import KINDS


class Journal:
    """Writes both."""

    def __init__(self, audit: Audit, metrics: Metrics) -> None:
        self._audit, self._metrics = audit, metrics

    def record(
        self,
        *,
        peer: str,
        event: str,
        outcome: str,
        session: str = "",
        tee: str = "",
        resource: str = "",
        detail: str = "",
    ) -> None:
        """One request that was decided. Members as in audit.Entry. Raises OSError."""
        self._metrics.count(event, outcome, tee if tee in KINDS else "")
        self._audit.record(
            peer=peer,
            event=event,
            outcome=outcome,
            session=session,
            tee=tee,
            resource=resource,
            detail=detail,
        )
