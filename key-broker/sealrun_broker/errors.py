"""What goes wrong in the broker, split by who is told.

BrokerError    the operator: one line on stderr, exit status 1
Refusal        a client: an HTTP status and KBS's JSON error object (kbs-protocol, 4)
"""

from typing import Final

_TYPE_PREFIX: Final = "https://github.com/confidential-containers/kbs/errors/"


class BrokerError(Exception):
    """`cannot <verb> <object>: <cause>`."""


class Refusal(Exception):
    """A request that is not served. `name` is one of KBS's error names; `detail` is one line."""

    def __init__(self, status: int, name: str, detail: str) -> None:
        super().__init__(detail)
        self.status = status
        self.name = name
        self.detail = detail

    def body(self) -> dict[str, str]:
        """The JSON error object, which stock clients insist on."""
        return {"type": _TYPE_PREFIX + self.name, "detail": self.detail}
