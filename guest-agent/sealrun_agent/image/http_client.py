"""Requests to registries and to what they send us to: TLS or not, redirects.

What may be spoken to in plain http is said by the policy: no redirect and no token service leads from TLS
to plain http elsewhere. Authorization is for the endpoint that it was made for: a redirect to another host,
port or scheme loses it, and does not get it back by coming home.
"""

from collections.abc import Mapping
from http.client import HTTPResponse
from typing import Final, NamedTuple
from urllib.parse import urljoin, urlsplit

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError
from sealrun_agent.image.connection import Broken, Connection, Endpoint
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.reference import split_registry
from sealrun_agent.image.ways import Ways

_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})


class Place(NamedTuple):
    """A resource of an endpoint. target: path and query."""

    endpoint: Endpoint
    target: str


class Exchange(NamedTuple):
    """A response whose head was read; `finish` it."""

    connection: Connection
    response: HTTPResponse

    def body(self, limit: int) -> bytes | None:
        """The whole body, None where it is longer than `limit` bytes. Raises Broken."""
        parts = []
        left = limit + 1
        while left and (part := self.connection.read(self.response, left)):
            parts.append(part)
            left -= len(part)
        if not left:
            return None
        if self.response.length:
            raise cut(self.connection.endpoint)
        return b"".join(parts)


def cut(endpoint: Endpoint) -> Broken:
    """The connection ended before the body did."""
    return Broken(ErrorCode.REGISTRY_UNREACHABLE, f"{endpoint} cut the connection")


class HttpClient:
    """One request at a time. A connection to each of `homes` is kept; close it when done."""

    def __init__(self, policy: ImagePolicy, ways: Ways) -> None:
        self._policy = policy
        self._ways = ways
        self._insecure = {_plain(name) for name in policy.insecure_registries}
        self._kept: dict[Endpoint, Connection] = {}
        self._homes: set[Endpoint] = set()

    def close(self) -> None:
        """End all connections."""
        for connection in self._kept.values():
            connection.close()

    def home(self, registry: str, *, insecure: bool) -> Endpoint:
        """The endpoint of a registry (host[:port]), whose connection is worth keeping."""
        host, port = split_registry(registry)
        insecure = insecure or registry in self._policy.insecure_registries
        endpoint = Endpoint(host, port or (80 if insecure else 443), not insecure)
        if insecure:
            self._insecure.add((host, endpoint.port))
        self._homes.add(endpoint)
        return endpoint

    def ask(
        self,
        place: Place,
        headers: Mapping[str, str],
        what: str,
        *,
        authorization: str = "",
        body: bytes | None = None,
    ) -> Exchange:
        """GET, or POST where there is a body: whatever is answered that is no redirect. A redirected
        POST is an error. Raises Broken, PullError."""
        redirects = 0
        while True:
            connection = self._connected(place.endpoint)
            sent = {"User-Agent": "sealrun", **headers}
            if authorization:
                sent["Authorization"] = authorization
            if body is None:
                response = connection.get(place.target, sent)
            else:
                response = connection.post(place.target, sent, body)
            if response.status not in _REDIRECTS or body is not None:
                return Exchange(connection, response)
            location = response.getheader("Location", "")
            self.finish(Exchange(connection, response))
            redirects += 1
            if redirects > limits.HTTP_REDIRECTS:
                raise PullError(
                    ErrorCode.REGISTRY_PROTOCOL,
                    f"cannot fetch {what}: more than {limits.HTTP_REDIRECTS} redirects by {place.endpoint}",
                )
            there = self.place(location, place, what)
            if there.endpoint != place.endpoint:
                authorization = ""
            place = there

    def finish(self, exchange: Exchange) -> None:
        """Keep the connection for the next request where that is possible."""
        finished = exchange.response.isclosed()
        exchange.response.close()
        connection = exchange.connection
        if self._kept.get(connection.endpoint) is not connection or not finished:
            connection.close()

    def place(self, location: str, base: Place, what: str) -> Place:
        """Where a redirect or realm leads, if it may. Raises PullError."""
        origin = f"{'https' if base.endpoint.tls else 'http'}://{base.endpoint}{base.target}"
        try:
            if not location or not is_printable(location):
                raise ValueError
            url = urlsplit(urljoin(origin, location))
            if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc:
                raise ValueError
            tls = url.scheme == "https"
            endpoint = Endpoint(url.hostname, url.port or (443 if tls else 80), tls)
        except ValueError:
            raise PullError(
                ErrorCode.REGISTRY_PROTOCOL,
                f"cannot fetch {what}: {base.endpoint} leads to an address that cannot be read",
            ) from None
        if not tls and (endpoint.host, endpoint.port) not in self._insecure:
            raise PullError(
                ErrorCode.REGISTRY_UNTRUSTED,
                f"cannot fetch {what}: {base.endpoint} leads to {endpoint} in plain http",
            )
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        return Place(endpoint, target)

    def _connected(self, endpoint: Endpoint) -> Connection:
        if endpoint in self._kept:
            return self._kept[endpoint]
        connection = self._ways.connection(endpoint)
        if endpoint in self._homes:
            self._kept[endpoint] = connection
        return connection


def is_printable(text: str) -> bool:
    """ASCII without blanks: what may stand in a header or a request line."""
    return all(0x20 < ord(character) < 0x7F for character in text)


def _plain(registry: str) -> tuple[str, int]:
    host, port = split_registry(registry)
    return host, port or 80
