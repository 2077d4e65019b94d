"""HTTP/1.1 to one endpoint over a dialled connection: http.client with our transport and limits.

What may be tried again is raised as `Broken`, what may not as PullError; both name the endpoint.
`ssl` is imported where TLS is spoken.
"""

import http.client
import io
import os
import socket
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.dial import Dial
from sealrun_agent.errors import DialFailed, PullError

if TYPE_CHECKING:
    import ssl

    from _typeshed import WriteableBuffer

SYSTEM_CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"


class Broken(Exception):
    """The connection failed, was cut, timed out, or carried something that is not HTTP."""

    def __init__(self, code: ErrorCode, text: str, retry_after: float | None = None) -> None:
        """retry_after: seconds that the peer asks us to wait."""
        super().__init__(text)
        self.code = code
        self.retry_after = retry_after


class Endpoint(NamedTuple):
    """host: a name or address, an IPv6 address without brackets. tls: whether it is spoken."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Connection:
    """At most one request at a time; it stays open for the next one where both sides agree."""

    def __init__(
        self,
        endpoint: Endpoint,
        dial: Dial,
        context: "ssl.SSLContext | None",
        proxy: tuple[str, int] | None = None,
    ) -> None:
        """proxy: host and port of an HTTP proxy that leads there."""
        self.endpoint = endpoint
        self._http = _HttpConnection(endpoint, dial, context, proxy)
        # A proxy that is given plain http gets the whole address (RFC 9112, 3.2.2).
        self._prefix = f"http://{endpoint}" if proxy and not endpoint.tls else ""

    def get(self, target: str, headers: Mapping[str, str]) -> http.client.HTTPResponse:
        """Send GET and read the response's head. Raises Broken, PullError(ENDPOINT_REFUSED,
        REGISTRY_UNREACHABLE, REGISTRY_UNTRUSTED)."""
        return self._asked("GET", target, headers, None)

    def post(
        self, target: str, headers: Mapping[str, str], body: bytes
    ) -> http.client.HTTPResponse:
        """As get, with a body."""
        return self._asked("POST", target, headers, body)

    def _asked(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> http.client.HTTPResponse:
        reused = self._http.sock is not None
        try:
            return self._request(method, target, headers, body)
        except Broken:
            if not reused:
                raise
            # The peer had closed an idle connection.
            return self._request(method, target, headers, body)

    def read(self, response: http.client.HTTPResponse, count: int) -> bytes:
        """At most `count` bytes of the body, fewer only at its end. Raises Broken."""
        try:
            return response.read(count)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def close(self) -> None:
        """End the connection; the next request dials again."""
        self._http.close()

    def _request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | None
    ) -> http.client.HTTPResponse:
        try:
            self._http.request(method, self._prefix + target, body, dict(headers))
            return self._http.getresponse()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise self._broken(error) from error

    def _broken(self, error: Exception) -> Broken:
        if isinstance(error, OSError | http.client.IncompleteRead | http.client.RemoteDisconnected):
            cause = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return Broken(ErrorCode.REGISTRY_UNREACHABLE, f"{self.endpoint}: {cause}")
        return Broken(
            ErrorCode.REGISTRY_PROTOCOL, f"{self.endpoint} does not speak http: {_shown(error)}"
        )


def tls_context(certificates: str) -> "ssl.SSLContext":
    """Trusts the guest image's certificates, where it has any, and `certificates` (PEM). Raises
    PullError(REGISTRY_UNTRUSTED)."""
    import ssl

    context = ssl.create_default_context(
        cafile=SYSTEM_CERTIFICATES if os.path.exists(SYSTEM_CERTIFICATES) else None
    )
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificates:
        try:
            context.load_verify_locations(cadata=certificates)
        except (ssl.SSLError, ValueError) as error:
            raise PullError(
                ErrorCode.REGISTRY_UNTRUSTED, "cannot read the CA certificates of the init-data"
            ) from error
    return context


class _HttpConnection(http.client.HTTPConnection):
    def __init__(
        self,
        endpoint: Endpoint,
        dial: Dial,
        context: "ssl.SSLContext | None",
        proxy: tuple[str, int] | None,
    ) -> None:
        super().__init__(endpoint.host, endpoint.port)
        self.default_port = 443 if endpoint.tls else 80  # so that the Host header is as expected
        self.response_class = _Response
        self._endpoint = endpoint
        self._dial = dial
        self._context = context
        self._proxy = proxy

    def connect(self) -> None:
        host, port = self._proxy or (self._endpoint.host, self._endpoint.port)
        through = f" through the proxy {host}:{port}" if self._proxy else ""
        try:
            plain = self._dial(host, port)
        except DialFailed as error:
            code = ErrorCode.ENDPOINT_REFUSED if error.refused else ErrorCode.REGISTRY_UNREACHABLE
            raise PullError(code, f"cannot reach {self._endpoint}{through}: {error}") from error
        plain.settimeout(limits.HTTP_SECONDS)
        if self._proxy and self._endpoint.tls:
            self._tunnelled(plain, through)
        self.sock = self._encrypted(plain) if self._endpoint.tls else plain

    def _tunnelled(self, plain: socket.socket, through: str) -> None:
        """Have the proxy connect the socket to the endpoint (RFC 9110, 9.3.6)."""
        host = f"[{self._endpoint.host}]" if ":" in self._endpoint.host else self._endpoint.host
        authority = f"{host}:{self._endpoint.port}"
        try:
            plain.sendall(f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n\r\n".encode())
            response = _Response(plain, method="CONNECT")
            response.begin()
        except (OSError, http.client.HTTPException):
            plain.close()
            raise
        status = response.status
        response.close()
        if status != 200:
            plain.close()
            raise PullError(
                ErrorCode.REGISTRY_UNREACHABLE,
                f"cannot reach {self._endpoint}{through}: it answers {status}",
            )

    def _encrypted(self, plain: socket.socket) -> socket.socket:
        import ssl

        assert self._context is not None
        try:
            return self._context.wrap_socket(plain, server_hostname=self._endpoint.host)
        except ssl.SSLCertVerificationError as error:
            plain.close()
            raise PullError(
                ErrorCode.REGISTRY_UNTRUSTED,
                f"the certificate of {self._endpoint} is not trusted: {error.verify_message}",
            ) from error
        except ssl.SSLError as error:
            plain.close()
            if isinstance(error, ssl.SSLEOFError):
                raise  # it was cut
            raise PullError(
                ErrorCode.REGISTRY_UNTRUSTED,
                f"cannot speak TLS with {self._endpoint}: {error.reason or error}",
            ) from error
        except OSError:
            plain.close()
            raise


class _Response(http.client.HTTPResponse):
    def __init__(
        self,
        sock: socket.socket,
        debuglevel: int = 0,
        method: str | None = None,
        url: str | None = None,
    ) -> None:
        super().__init__(_Paced(sock), debuglevel, method, url)  # type: ignore[arg-type]


class _Paced:
    """The part of a socket that HTTPResponse uses."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def makefile(self, mode: str) -> IO[bytes]:
        assert mode == "rb"
        return io.BufferedReader(PacedReader(self._sock.makefile("rb", buffering=0)))


class PacedReader(io.RawIOBase):
    """Bounds how long a peer can hold us by sending little: the socket's own timeout ends silence,
    this ends a drip. Only time spent waiting counts, so a slow consumer is no slow peer."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw = raw
        self._waited = 0.0
        self._received = 0

    def readable(self) -> bool:
        """As of files."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        """Raises TimeoutError, OSError."""
        start = time.monotonic()
        count = self._raw.readinto(buffer)
        self._waited += time.monotonic() - start
        self._received += count or 0
        if self._waited > limits.HTTP_SECONDS:
            if self._received < limits.HTTP_BYTES_PER_SECOND * self._waited:
                raise TimeoutError("the peer sends too slowly")
            self._waited, self._received = 0.0, 0
        return count

    def close(self) -> None:
        """As of files."""
        self._raw.close()
        super().close()


def _shown(error: Exception) -> str:
    return ascii(str(error)[:80] or type(error).__name__)
