"""Every bound on what the broker accepts, with its unit and its reason."""

from typing import Final

BODY_BYTES: Final = 2 * 1024 * 1024  # one request: Trustee's own limit
BODY_SECONDS: Final = 30  # until a request's body must be complete
RESOURCE_BYTES: Final = 1024 * 1024  # one resource: as a JWE it must fit a client's 2 MiB
SESSIONS: Final = 4096  # open at once; a new one then drops the oldest
SESSION_SECONDS: Final = 300  # KBS's session and token life
CONNECTIONS: Final = 256  # open at once
ADMIN_TOKEN_SECONDS: Final = 24 * 3600  # the longest life of an administrator's token
KEY_MEMBERS: Final = 16  # of a client's JWK
AUDIT_BYTES: Final = 16 * 1024 * 1024  # then the log is turned over; one old one is kept
LOG_EVENTS: Final = 4096  # in one event log; a firmware writes some dozens
REFERENCE_BYTES: Final = 1024 * 1024  # all reference values together
