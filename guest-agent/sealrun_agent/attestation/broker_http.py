"""HTTP with the key broker: one kept connection, bounded in size and time, TLS ending here.

Everything that comes back is the network's word; what can go wrong with it becomes an AttestError:

    no connection, or no complete answer in time      BROKER_UNREACHABLE (ENDPOINT_REFUSED)
    TLS: any other certificate than the trusted ones  BROKER_UNTRUSTED
    not HTTP, too long, cut off                       BROKER_PROTOCOL

Redirects are not followed: the broker is the one that the init-data names.
"""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import Broker

from sealrun_agent.attestation.deadline import DeadlineSocket
from sealrun_agent.dial import Dial
from sealrun_agent.errors import AttestError, DialFailed

if TYPE_CHECKING:
    import socket
    import ssl
    from http.client import HTTPConnection, HTTPResponse

_READ_BYTES: Final = 64 * limits.KIB


class Answer(NamedTuple):
    """status: of HTTP. body: complete. cookies: the values of Set-Cookie."""

    status: int
    body: bytes
    cookies: tuple[str, ...]


class _Stale(Exception):
    """A kept connection was closed by the peer before it answered."""


class BrokerHttp:
    """A client of one broker. Connects at the first request, and again where it has to."""

    def __init__(self, broker: Broker, dial: Dial, seconds: float = limits.BROKER_SECONDS) -> None:
        self._broker = broker
        self._dial = dial
        self._seconds = seconds
        self._tls: ssl.SSLContext | None = None
        self._socket: socket.socket | None = None
        self._http: HTTPConnection | None = None

    def request(
        self, method: str, path: str, body: bytes | None, proof: Mapping[str, str]
    ) -> Answer:
        """One exchange. `path` comes after the broker's own; `body` is JSON; `proof`: headers that say
        who asks. Raises AttestError."""
        deadline = time.monotonic() + self._seconds
        if self._http is not None:
            try:
                return self._exchange(method, path, body, proof, deadline)
            except _Stale:
                self.close()
        self._connect(deadline)
        try:
            return self._exchange(method, path, body, proof, deadline)
        except _Stale as error:
            self.close()
            raise self._unreachable("it closed the connection without an answer") from error

    def close(self) -> None:
        """End the connection; a later request makes a new one."""
        if self._socket is not None:
            self._socket.close()
        self._socket = self._http = None

    def _connect(self, deadline: float) -> None:
        from http.client import HTTPConnection

        broker = self._broker
        try:
            connected = self._dial(broker.host, broker.port)
        except DialFailed as error:
            if error.refused:
                raise AttestError(
                    ErrorCode.ENDPOINT_REFUSED,
                    f"key broker {broker.url}: the host's relay does not open it: {error}",
                ) from error
            raise self._unreachable(str(error)) from error
        self._socket = self._with_tls(connected, deadline) if broker.tls else connected
        self._http = HTTPConnection(broker.host, broker.port)
        self._http.auto_open = 0
        # http.client takes whatever has the few methods of a socket that it calls.
        self._http.sock = DeadlineSocket(self._socket, deadline)

    def _with_tls(self, connected: "socket.socket", deadline: float) -> "socket.socket":
        import ssl

        if self._tls is None:
            self._tls = _tls_context(self._broker)
        connected.settimeout(max(deadline - time.monotonic(), 0.001))
        try:
            return self._tls.wrap_socket(connected, server_hostname=self._broker.host)
        except ssl.SSLEOFError as error:
            connected.close()
            raise self._unreachable("it closed the connection during the TLS handshake") from error
        except ssl.SSLError as error:
            connected.close()
            reason = getattr(error, "verify_message", "") or error.reason or str(error)
            raise AttestError(
                ErrorCode.BROKER_UNTRUSTED, f"key broker {self._broker.url}: tls: {reason}"
            ) from error
        except OSError as error:
            connected.close()
            raise self._unreachable(f"tls: {error.strerror or error}") from error

    def _exchange(
        self,
        method: str,
        path: str,
        body: bytes | None,
        proof: Mapping[str, str],
        deadline: float,
    ) -> Answer:
        """Raises _Stale where not a byte came back; else AttestError, the connection closed."""
        from http.client import HTTPException, RemoteDisconnected

        assert self._http is not None
        assert isinstance(self._http.sock, DeadlineSocket)
        self._http.sock.deadline = deadline
        headers = {"Accept": "application/json", **proof}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            self._http.request(method, self._broker.path + path, body, headers)
            response = self._http.getresponse()
            answer = self._read(response)
        except (RemoteDisconnected, BrokenPipeError, ConnectionResetError) as error:
            raise _Stale from error
        except TimeoutError as error:
            self.close()
            raise self._unreachable(f"no complete answer within {self._seconds:g} s") from error
        except OSError as error:
            self.close()
            raise self._unreachable(str(error.strerror or error)) from error
        except (HTTPException, ValueError) as error:
            self.close()
            raise self.violation(f"{type(error).__name__} in its answer") from error
        if response.will_close:
            self.close()
        return answer

    def _read(self, response: "HTTPResponse") -> Answer:
        parts, total = [], 0
        while part := response.read(_READ_BYTES):
            parts.append(part)
            total += len(part)
            if total > limits.BROKER_BODY_BYTES:
                self.close()
                raise self.violation(f"its answer is longer than {limits.BROKER_BODY_BYTES} bytes")
        if response.length:
            self.close()
            raise self.violation("its answer is cut off")
        cookies = tuple(response.headers.get_all("Set-Cookie", ()))
        return Answer(response.status, b"".join(parts), cookies)

    def _unreachable(self, reason: str) -> AttestError:
        return AttestError(ErrorCode.BROKER_UNREACHABLE, f"key broker {self._broker.url}: {reason}")

    def violation(self, reason: str) -> AttestError:
        """The error for an answer that does not follow the protocol."""
        return AttestError(ErrorCode.BROKER_PROTOCOL, f"key broker {self._broker.url}: {reason}")


def _tls_context(broker: Broker) -> "ssl.SSLContext":
    """Trusts the CA of the init-data and no other; without one, the roots of the guest image."""
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies the chain and the name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        if broker.ca_pem:
            context.load_verify_locations(cadata=broker.ca_pem)
        else:
            context.load_default_certs()
    except (ssl.SSLError, TypeError, ValueError) as error:
        raise AttestError(
            ErrorCode.INIT_DATA_INVALID, "aa.toml: token_configs.kbs.cert is not PEM"
        ) from error
    return context
