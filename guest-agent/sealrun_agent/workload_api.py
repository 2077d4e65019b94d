"""What containers may ask of the agent, where the init-data turns it on: HTTP at 127.0.0.1:8006, as the
workloads of Confidential Containers know it (kbs-protocol, 11).

    GET  /cdh/resource/REPOSITORY/TYPE/TAG      the resource
    GET  /aa/token?token_type=kbs               {"token", "tee_keypair"}
    GET  /aa/evidence?runtime_data=TEXT[&encoding=base64]
    POST /aa/aael    {"domain", "operation", "content"}
    GET  /info       {"version", "tee", "feature"}

One request a connection, each in a thread of its own, at most limits.API_CONNECTIONS of them. Containers
are trusted with what they are given here; they are not trusted to keep the agent alive: sizes and times
are bounded. Errors: 404 and 403 where the broker says so, 502 where it cannot be reached, 500 else, and
one line of text, which stays inside of the VM.
"""

import binascii
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import AgentError, BootError
from sealrun_agent.version import VERSION

ADDRESS: Final = ("127.0.0.1", 8006)
RESOURCE, ATTESTATION = "resource", "attestation"

_RUNTIME_DATA_BYTES: Final = 64
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    413: "Content Too Large",
    500: "Internal Server Error",
    502: "Bad Gateway",
}
_STATUSES: Final = {
    ErrorCode.KEY_NOT_FOUND: 404,
    ErrorCode.KEY_DENIED: 403,
    ErrorCode.INIT_DATA_INVALID: 400,  # not the name of a resource
    ErrorCode.BROKER_UNREACHABLE: 502,
    ErrorCode.ENDPOINT_REFUSED: 502,
    ErrorCode.BROKER_UNTRUSTED: 502,
    ErrorCode.BROKER_PROTOCOL: 502,
}


class Source(Protocol):
    """What there is to be had; see vault.py."""

    @property
    def tee(self) -> str:
        """As in Hello."""

    def resource(self, uri: str) -> bytes:
        """Raises AgentError."""

    def token(self) -> bytes:
        """Raises AgentError."""

    def evidence(self, report_data: bytes) -> bytes:
        """Raises AgentError."""

    def record(self, domain: str, operation: str, content: str) -> bool:
        """Raises AgentError."""


class _Request(NamedTuple):
    method: str
    path: str
    query: Mapping[str, str]
    body: bytes


class _Refused(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Event(msgspec.Struct, frozen=True):
    domain: str
    operation: str
    content: str


class WorkloadApi:
    """Serves from now on. features: of init_data.APIS."""

    def __init__(
        self, source: Source, features: tuple[str, ...], address: tuple[str, int] = ADDRESS
    ) -> None:
        """Raises BootError where the address cannot be had."""
        self._source, self._features = source, features
        self._slots = threading.BoundedSemaphore(limits.API_CONNECTIONS)
        try:
            self._listener = socket.create_server(address, backlog=limits.API_CONNECTIONS)
        except OSError as error:
            raise BootError(
                ErrorCode.BOOT_FAILED,
                f"cannot serve the workload at {address[0]}:{address[1]}: {error.strerror}",
            ) from error
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="api", daemon=True).start()

    def _accept(self) -> None:
        while True:
            self._slots.acquire()
            try:
                connection, _ = self._listener.accept()
            except OSError:  # out of descriptors, or a client that is gone already
                self._slots.release()
                time.sleep(0.1)
                continue
            threading.Thread(
                target=self._serve, args=(connection,), name="api-request", daemon=True
            ).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                _send(connection, *self._answer(connection))
        except OSError:
            pass  # the client is gone
        finally:
            self._slots.release()

    def _answer(self, connection: socket.socket) -> tuple[int, str, bytes]:
        """Status, content type, body."""
        try:
            return 200, *self._carried_out(_received(connection))
        except _Refused as refusal:
            return refusal.status, "text/plain", f"{refusal}\n".encode()
        except AgentError as error:
            status = _STATUSES.get(error.code, 500)
            return status, "text/plain", f"{error.code}: {error}\n".encode()

    def _carried_out(self, request: _Request) -> tuple[str, bytes]:
        """Content type and body. Raises _Refused, AgentError."""
        for prefix, (method, feature, work) in self._routes().items():
            if request.path != prefix and not (
                prefix.endswith("/") and request.path.startswith(prefix)
            ):
                continue
            if feature is not None and feature not in self._features:
                raise _Refused(404, f"the init-data does not turn {feature} on")
            if request.method != method:
                raise _Refused(405, f"{request.path} takes {method}")
            return work(request)
        raise _Refused(404, "there is no such path")

    def _routes(
        self,
    ) -> dict[str, tuple[str, str | None, Callable[[_Request], tuple[str, bytes]]]]:
        return {
            "/info": ("GET", None, self._info),
            "/cdh/resource/": ("GET", RESOURCE, self._resource),
            "/aa/token": ("GET", ATTESTATION, self._token),
            "/aa/evidence": ("GET", ATTESTATION, self._evidence),
            "/aa/aael": ("POST", ATTESTATION, self._event),
        }

    def _info(self, _request: _Request) -> tuple[str, bytes]:
        feature = "all" if len(self._features) > 1 else self._features[0]
        said = {"version": VERSION, "tee": self._source.tee, "feature": feature}
        return "application/json", msgspec.json.encode(said)

    def _resource(self, request: _Request) -> tuple[str, bytes]:
        name = request.path.removeprefix("/cdh/resource/")
        return "application/octet-stream", self._source.resource(f"kbs:///{name}")

    def _token(self, request: _Request) -> tuple[str, bytes]:
        if request.query.get("token_type") != "kbs":
            raise _Refused(400, "token_type must be kbs")
        return "application/octet-stream", self._source.token()

    def _evidence(self, request: _Request) -> tuple[str, bytes]:
        text = request.query.get("runtime_data")
        if text is None:
            raise _Refused(400, "there is no runtime_data")
        data = text.encode("utf-8", "surrogateescape")
        if "encoding" in request.query:
            if request.query["encoding"] != "base64":
                raise _Refused(400, "encoding must be base64")
            try:
                data = binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
            except ValueError as error:
                raise _Refused(400, "runtime_data is not base64") from error
        if len(data) > _RUNTIME_DATA_BYTES:
            raise _Refused(400, f"runtime_data is longer than {_RUNTIME_DATA_BYTES} bytes")
        return "application/octet-stream", self._source.evidence(data)

    def _event(self, request: _Request) -> tuple[str, bytes]:
        try:
            event = from_json(request.body, _Event)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _Refused(400, "the body is not {domain, operation, content}") from error
        words = (event.domain, event.operation)
        if not all(word.isprintable() and word and " " not in word for word in words):
            raise _Refused(400, "domain and operation must be printable words")
        if not event.content.isprintable():
            raise _Refused(400, "content must be printable")
        written = self._source.record(event.domain, event.operation, event.content)
        said = {"success": str(written).lower()}
        if not written:
            said["message"] = "the platform does not support runtime measurement"
        return "application/json", msgspec.json.encode(said)


def _received(connection: socket.socket) -> _Request:
    """One whole request. Raises _Refused, OSError."""
    deadline = time.monotonic() + limits.API_SECONDS
    data = b""
    while b"\r\n\r\n" not in data:
        if len(data) > limits.API_HEAD_BYTES:
            raise _Refused(413, "the request's head is too long")
        data += _more(connection, deadline)
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise _Refused(400, "not a request of HTTP/1.1")
    length = _length(lines)
    while len(body) < length:
        body += _more(connection, deadline)
    try:
        target = urlsplit(words[1])
        query = dict(parse_qsl(target.query, keep_blank_values=True, errors="surrogateescape"))
    except ValueError as error:
        raise _Refused(400, "not a path") from error
    return _Request(words[0], unquote(target.path), query, body[:length])


def _more(connection: socket.socket, deadline: float) -> bytes:
    left = deadline - time.monotonic()
    if left <= 0:
        raise _Refused(408, "the request did not arrive in time")
    connection.settimeout(left)
    try:
        data = connection.recv(limits.API_HEAD_BYTES)
    except TimeoutError as error:
        raise _Refused(408, "the request did not arrive in time") from error
    if not data:
        raise ConnectionResetError
    return data


def _length(lines: list[str]) -> int:
    """The value of Content-Length. Raises _Refused."""
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(":") for line in lines)
    }
    if "transfer-encoding" in headers:
        raise _Refused(400, "transfer-encoding is not supported")
    given = headers.get("content-length", "0")
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise _Refused(400, "content-length is no number")
    if int(given) > limits.API_BODY_BYTES:
        raise _Refused(413, "the request's body is too long")
    return int(given)


def _send(connection: socket.socket, status: int, kind: str, body: bytes) -> None:
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection.settimeout(limits.API_SECONDS)
    connection.sendall(head.encode() + body)
