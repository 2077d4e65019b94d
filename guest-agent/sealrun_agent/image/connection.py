"""HTTP/1.1 to one endpoint over a dialled connection: http.client with our transport and limits.

What may be tried again is raised as `Broken`, what may not as PullError; both name the endpoint.
"""

import http.client
import io
import socket
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Final, NamedTuple

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.dial import Dial
from sealrun_agent.errors import DialFailed, PullError
from sealrun_agent.image import tls
from sealrun_agent.image.via import Via

if TYPE_CHECKING:
    import ssl

    from _typeshed import WriteableBuffer

_UNAUTHORIZED_BY_PROXY: Final = 407


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
        via: Via | None,
    ) -> None:
        """context: for TLS, where endpoint or proxy speak it. via: a proxy that leads there."""
        self.endpoint = endpoint
        self._http = _HttpConnection(endpoint, dial, context, via)
        # A proxy that is given plain http gets the whole address (RFC 9112, 3.2.2).
        self._whole = via if not endpoint.tls else None

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
        if self._whole is None:
            return self._alive(method, target, headers, body)
        target = f"http://{self.endpoint}{target}"
        while True:
            sent = self._whole.authorization
            shown = {"Proxy-Authorization": sent} if sent else {}
            response = self._alive(method, target, {**headers, **shown}, body)
            if response.status != _UNAUTHORIZED_BY_PROXY:
                return response
            self.close()
            self._whole.meet(sent, str(self.endpoint))

    def _alive(
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
            self._http.request(method, target, body, dict(headers))
            return self._http.getresponse()
        except (Broken, PullError):
            self.close()  # it was not connected, and counts as busy else
            raise
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


class _HttpConnection(http.client.HTTPConnection):
    def __init__(
        self,
        endpoint: Endpoint,
        dial: Dial,
        context: "ssl.SSLContext | None",
        via: Via | None,
    ) -> None:
        super().__init__(endpoint.host, endpoint.port)
        self.default_port = 443 if endpoint.tls else 80  # so that the Host header is as expected
        self.response_class = _Response
        self._endpoint = endpoint
        self._dial = dial
        self._context = context
        self._via = via

    def connect(self) -> None:
        """Raises PullError, OSError, HTTPException."""
        while True:
            stream = self._reached()
            if self._via is None or not self._endpoint.tls or self._tunnelled(stream, self._via):
                break
        self.sock = (
            self._encrypted(stream, self._endpoint.host, str(self._endpoint))
            if self._endpoint.tls
            else stream
        )

    def _reached(self) -> socket.socket:
        """A connection to the endpoint, or to the proxy."""
        via = self._via
        host, port = (via.address if via else self._endpoint)[:2]
        try:
            plain = self._dial(host, port)
        except DialFailed as error:
            code = ErrorCode.ENDPOINT_REFUSED if error.refused else ErrorCode.REGISTRY_UNREACHABLE
            raise PullError(code, f"cannot reach {self._shown()}: {error}") from error
        plain.settimeout(limits.HTTP_SECONDS)
        if via is not None and via.address.tls:
            return self._encrypted(plain, host, str(via))
        return plain

    def _tunnelled(self, stream: socket.socket, via: Via) -> bool:
        """Have the proxy connect the stream to the endpoint (RFC 9110, 9.3.6). False: to be tried
        again, with another authorization."""
        host = f"[{self._endpoint.host}]" if ":" in self._endpoint.host else self._endpoint.host
        authority, sent = f"{host}:{self._endpoint.port}", via.authorization
        shown = f"Proxy-Authorization: {sent}\r\n" if sent else ""
        head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{shown}\r\n"
        try:
            stream.sendall(head.encode())
            with _Response(stream, method="CONNECT") as response:
                response.begin()
                status = response.status
        except OSError:
            stream.close()
            raise
        except http.client.HTTPException as error:
            stream.close()
            cause = f"{via} does not speak http: {_shown(error)}"
            raise Broken(ErrorCode.REGISTRY_PROTOCOL, cause) from error
        if status == 200:
            return True
        stream.close()
        if status != _UNAUTHORIZED_BY_PROXY:
            raise PullError(
                ErrorCode.REGISTRY_UNREACHABLE,
                f"cannot reach {self._shown()}: it answers {status}",
            )
        via.meet(sent, str(self._endpoint))
        return False

    def _encrypted(self, stream: socket.socket, host: str, shown: str) -> socket.socket:
        assert self._context is not None
        # What is nested is not a socket, but all of one that is used here.
        return tls.wrapped(self._context, stream, host, shown)  # type: ignore[return-value]

    def _shown(self) -> str:
        return f"{self._endpoint} through {self._via}" if self._via else str(self._endpoint)


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
        return _Answer(PacedReader(self._sock.makefile("rb", buffering=0)))


class _Answer(io.BufferedReader):
    """Bounds what a peer says besides the body, all of which http.client reads by lines: interim responses,
    headers, sizes of chunks, trailers. http.client takes any number of the first and the last."""

    _said = 0

    def readline(self, size: int | None = -1) -> bytes:
        """Raises HTTPException too."""
        line = super().readline(size)
        self._said += len(line)
        if self._said > limits.HTTP_HEADER_BYTES:
            raise http.client.HTTPException(
                f"got more than {limits.HTTP_HEADER_BYTES} bytes of headers"
            )
        return line

    def read(self, size: int | None = -1) -> bytes:
        """Of the body, of which there may be as many chunks as it has bytes."""
        self._said = 0
        return super().read(size)


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
