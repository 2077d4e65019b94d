"""The ways to endpoints: dialled, through proxies, with TLS. What all connections of one pull share."""

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from sealrun_protocol.proxies import ProxyAddress

from sealrun_agent.dial import Dial
from sealrun_agent.image import tls
from sealrun_agent.image.connection import Connection, Endpoint
from sealrun_agent.image.credentials import Credential
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.via import Via

if TYPE_CHECKING:
    import ssl


class Ways:
    """Any thread. credential: of a registry or proxy by its name."""

    def __init__(
        self, policy: ImagePolicy, dial: Dial, credential: Callable[[str], Credential | None]
    ) -> None:
        self._policy, self._dial, self._credential = policy, dial, credential
        self._lock = threading.Lock()
        self._context: ssl.SSLContext | None = None
        self._vias: dict[ProxyAddress, Via] = {}

    def connection(self, endpoint: Endpoint) -> Connection:
        """A new one, which dials when it is asked for something. Raises PullError(REGISTRY_UNTRUSTED)."""
        address = self._policy.proxy.of(endpoint.host, endpoint.port, tls=endpoint.tls)
        with self._lock:
            via = None
            if address is not None:
                via = self._vias.setdefault(address, Via(address, self._credential))
            if self._context is None and (endpoint.tls or (address and address.tls)):
                self._context = tls.context(self._policy.ca_certificates)
            return Connection(endpoint, self._dial, self._context, via)
