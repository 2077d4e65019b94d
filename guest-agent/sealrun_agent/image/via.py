"""A proxy on the way to registries, and who we are to it.

What its address says is sent at once (Basic, RFC 7617). Else, and where that is refused, the registries'
credentials are looked into for the proxy's host:port, once it asks (407). No text has any of them.
"""

import threading
from collections.abc import Callable

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.proxies import ProxyAddress

from sealrun_agent.errors import PullError
from sealrun_agent.image.credentials import Credential


class Via:
    """Any thread. credential: of the proxy, as the broker has it."""

    def __init__(
        self, address: ProxyAddress, credential: Callable[[str], Credential | None]
    ) -> None:
        self.address = address
        self._credential = credential
        self._lock = threading.Lock()
        self._header = Credential(address.user, address.password).basic if address.user else ""

    def __str__(self) -> str:
        return f"the proxy {self.address}"

    @property
    def authorization(self) -> str:
        """What to send now as Proxy-Authorization, "" for nothing."""
        return self._header

    def meet(self, sent: str, there: str) -> None:
        """The proxy wants another authorization than was sent: find it. there: where it leads. Raises
        PullError(REGISTRY_DENIED), and what the credential raises."""
        with self._lock:
            if self._header != sent:
                return  # somebody else was faster
            found = self._credential(str(self.address))
            if found is None or not found.username or found.basic == sent:
                how = "refuses the credentials" if sent else "wants credentials"
                raise PullError(
                    ErrorCode.REGISTRY_DENIED, f"cannot reach {there} through {self}: it {how}"
                )
            self._header = found.basic
