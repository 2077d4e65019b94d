"""Sessions: a nonce that serves for one attestation, then a token, for five minutes in all."""

import binascii
import os
import time
import uuid
from collections.abc import Callable

from sealrun_broker import bounds


class Session:
    """One client between /auth and the end of its time. token: "" until it is attested."""

    def __init__(self, tee: str, expires: float) -> None:
        self.id = uuid.uuid4().hex
        self.tee = tee
        self.expires = expires
        self.nonce = binascii.b2a_base64(os.urandom(32), newline=False).decode()
        self.token = ""


class Sessions:
    """All of them, in memory: a broker that starts anew asks its clients to attest anew.

    `clock` counts seconds and never goes back."""

    def __init__(
        self,
        seconds: int = bounds.SESSION_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.seconds = seconds
        self._clock = clock
        self._sessions: dict[str, Session] = {}  # in the order of their expiry

    def open(self, tee: str) -> Session:
        """A new session; where there are too many, the oldest ends."""
        self._purge()
        if len(self._sessions) >= bounds.SESSIONS:
            del self._sessions[next(iter(self._sessions))]
        session = Session(tee, self._clock() + self.seconds)
        self._sessions[session.id] = session
        return session

    def get(self, session_id: str) -> Session | None:
        """The session, unless it never was or is over."""
        self._purge()
        return self._sessions.get(session_id)

    def __len__(self) -> int:
        """How many are open now."""
        self._purge()
        return len(self._sessions)

    def end(self, session: Session) -> None:
        """The session's nonce and token are worth nothing any more."""
        self._sessions.pop(session.id, None)

    def _purge(self) -> None:
        now = self._clock()
        while self._sessions:
            oldest = next(iter(self._sessions.values()))
            if oldest.expires > now:
                return
            del self._sessions[oldest.id]
