"""The audit log: one JSON object a line for each request that was decided. No secrets, no tokens."""

import contextlib
import datetime
import hashlib
import os
from collections.abc import Iterator

import msgspec

from sealrun_broker import bounds
from sealrun_broker.errors import BrokerError


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One decision. session: a name of the session that is no key to it."""

    time: str
    peer: str
    event: str
    outcome: str
    session: str = ""
    tee: str = ""
    resource: str = ""
    detail: str = ""


class Audit:
    """Appends to the log at `path`, and turns it over before it fills the disk."""

    def __init__(self, path: str) -> None:
        self._path = path

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
        """Write one entry, stamped with the time. Raises OSError."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        entry = Entry(
            now.replace("+00:00", "Z"),
            peer,
            event,
            outcome,
            hashlib.sha256(session.encode()).hexdigest()[:12] if session else "",
            tee[:40],
            resource,
            detail,
        )
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(entry) + b"\n")
            full = os.fstat(fd).st_size > bounds.AUDIT_BYTES
        finally:
            os.close(fd)
        if full:
            os.rename(self._path, f"{self._path}.1")


def entries(path: str) -> Iterator[Entry]:
    """The log, oldest first. Raises BrokerError."""
    for name in (f"{path}.1", path):
        with contextlib.suppress(FileNotFoundError):
            with open(name, "rb") as stream:
                for number, line in enumerate(stream, 1):
                    try:
                        yield msgspec.json.decode(line, type=Entry)
                    except ValueError as error:
                        raise BrokerError(f"cannot read {name}: line {number}: {error}") from error
