"""A client of the OCI distribution specification (1.1): manifests and blobs of one repository.

What it promises: nothing about content. Digests are checked by whoever asked for them; here bytes
are bounded, connections end, and every failure names the registry. Rules:

- TLS, except with registries of `insecure_registries`, which are spoken to in plain http only. No
  redirect and no token service leads from TLS to plain http unless its host is listed there too.
- The token is for the registry: it is not sent to a host that the registry redirects to.
- Anonymous: a challenge for anything but a bearer token is REGISTRY_DENIED.
- A request that was cut is tried again; a blob is continued where it stopped (Range).
"""

import time
from collections.abc import Generator
from contextlib import closing
from http.client import HTTPResponse
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.dial import Dial
from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image import challenge
from sealrun_agent.image.connection import Broken, Connection, Endpoint, tls_context
from sealrun_agent.image.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.reference import Reference, split_registry
from sealrun_agent.image.stream import CHUNK_BYTES, Chunks

if TYPE_CHECKING:
    import ssl

ATTEMPTS: Final = 3
RETRY_SECONDS: Final = 0.3  # times the number of the attempt
RESUMES: Final = 5  # of one blob
_ANSWER_BYTES: Final = 64 * limits.KIB  # of a token service, or in an error
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_ACCEPT: Final = ", ".join(MANIFEST_TYPES + INDEX_TYPES)
# The one registry whose name in references is not the host that serves it.
_HOSTS: Final = {"docker.io": "registry-1.docker.io"}


class _Place(NamedTuple):
    endpoint: Endpoint
    target: str


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""


class _Error(msgspec.Struct, frozen=True):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct, frozen=True):
    errors: tuple[_Error, ...] = ()


class Registry:
    """The repository of `reference`. One request at a time; close it when done."""

    def __init__(self, reference: Reference, policy: ImagePolicy, dial: Dial) -> None:
        self._registry = reference.registry
        self._repository = reference.repository
        self._policy = policy
        self._dial = dial
        self._context: ssl.SSLContext | None = None
        self._authorization = ""
        host, port = split_registry(_HOSTS.get(reference.registry, reference.registry))
        tls = reference.registry not in policy.insecure_registries
        self._home = Endpoint(host, port or (443 if tls else 80), tls)
        self._connection: Connection | None = None

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()

    def manifest(self, version: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest: its bytes and its Content-Type. Raises PullError,
        VerifyError(LIMIT_EXCEEDED)."""
        what = f"manifest {version} of {self._registry}/{self._repository}"
        path = f"/v2/{self._repository}/manifests/{version}"
        for attempt in range(1, ATTEMPTS + 1):
            connection, response = self._opened(path, {"Accept": _ACCEPT}, what)
            try:
                body = _body(connection, response, limits.MANIFEST_BYTES)
                break
            except Broken as error:
                if attempt == ATTEMPTS:
                    raise PullError(error.code, f"cannot fetch {what}: {error}") from error
            finally:
                self._finish(connection, response)
        if body is None:
            raise VerifyError(
                ErrorCode.LIMIT_EXCEEDED, f"{what} is longer than {limits.MANIFEST_BYTES} bytes"
            )
        return body, response.getheader("Content-Type", "")

    def blob(self, descriptor: Descriptor, what: str) -> Chunks:
        """A blob's bytes, exactly as many as the descriptor says. Raises PullError,
        VerifyError(DIGEST_MISMATCH) where the registry has more or fewer."""
        position = cuts = 0
        while position < descriptor.size:
            try:
                with closing(self._blob_from(descriptor, position, what)) as chunks:
                    for chunk in chunks:
                        position += len(chunk)
                        yield chunk
            except Broken as error:
                cuts += 1
                if cuts > RESUMES:
                    raise PullError(
                        error.code,
                        f"cannot fetch {what} beyond byte {position} of {descriptor.size}: {error}",
                    ) from error

    def second_chance(self, _descriptor: Descriptor) -> bool:
        """See Source."""
        return False

    def is_cached(self, _descriptor: Descriptor) -> bool:
        """See Source."""
        return False

    def _blob_from(
        self, descriptor: Descriptor, position: int, what: str
    ) -> Generator[bytes, None, None]:
        """The blob's bytes from `position` on, with one request. Raises Broken too."""
        path = f"/v2/{self._repository}/blobs/{descriptor.digest}"
        headers = {"Range": f"bytes={position}-"} if position else {}
        connection, response = self._opened(path, headers, what)
        try:
            start = position if response.status == 206 else 0
            content_range = response.getheader("Content-Range", "")
            if response.status == 206 and not content_range.startswith(f"bytes {position}-"):
                raise PullError(
                    ErrorCode.REGISTRY_PROTOCOL,
                    f"cannot fetch {what}: {connection.endpoint} sent another range",
                )
            if response.length not in (None, descriptor.size - start):
                raise _wrong_size(what, str(start + (response.length or 0)), descriptor.size)
            self._skip(connection, response, position - start)
            while position < descriptor.size:
                wanted = min(CHUNK_BYTES, descriptor.size - position)
                chunk = connection.read(response, wanted)
                if not chunk:
                    raise Broken(
                        ErrorCode.REGISTRY_UNREACHABLE, f"{connection.endpoint} cut the connection"
                    )
                position += len(chunk)
                yield chunk
            if connection.read(response, 1):
                raise _wrong_size(what, f"more than {descriptor.size}", descriptor.size)
        finally:
            self._finish(connection, response)

    def _skip(self, connection: Connection, response: HTTPResponse, count: int) -> None:
        """The registry knows no ranges: read again what was read before."""
        while count:
            chunk = connection.read(response, min(CHUNK_BYTES, count))
            if not chunk:
                return
            count -= len(chunk)

    # --- requests --------------------------------------------------------------------------------

    def _opened(
        self, path: str, headers: dict[str, str], what: str
    ) -> tuple[Connection, HTTPResponse]:
        """A response of status 200 or 206, its body unread."""
        attempt = 1
        while True:
            try:
                return self._answered(_Place(self._home, path), headers, what)
            except Broken as error:
                if attempt == ATTEMPTS:
                    raise PullError(error.code, f"cannot fetch {what}: {error}") from error
            time.sleep(RETRY_SECONDS * attempt)
            attempt += 1

    def _answered(
        self, place: _Place, headers: dict[str, str], what: str, *, authorize: bool = True
    ) -> tuple[Connection, HTTPResponse]:
        """Follow redirects and answer a challenge."""
        redirects = 0
        while True:
            at_home = place.endpoint == self._home
            connection = self._connected(place.endpoint)
            sent = {"User-Agent": "sealrun", **headers}
            if at_home and authorize and self._authorization:
                sent["Authorization"] = self._authorization
            response = connection.get(place.target, sent)
            if response.status in (200, 206):
                return connection, response
            try:
                if response.status in _REDIRECTS:
                    redirects += 1
                    if redirects > limits.HTTP_REDIRECTS:
                        raise PullError(
                            ErrorCode.REGISTRY_PROTOCOL,
                            f"cannot fetch {what}: more than {limits.HTTP_REDIRECTS} redirects",
                        )
                    place = self._place(response.getheader("Location", ""), place, what)
                elif (
                    response.status == 401 and at_home and authorize and "Authorization" not in sent
                ):
                    header = response.getheader("WWW-Authenticate", "")
                    _body(connection, response, _ANSWER_BYTES)
                    self._finish(connection, response)
                    self._authorization = self._token(challenge.parse(header), what)
                else:
                    raise self._refusal(connection, response, what)
            finally:
                self._finish(connection, response)

    def _token(self, asked: challenge.Challenge, what: str) -> str:
        """An anonymous bearer token (distribution's token authentication specification)."""
        realm = asked.parameters.get("realm", "")
        if asked.scheme != "bearer" or not realm:
            raise PullError(
                ErrorCode.REGISTRY_DENIED, f"cannot fetch {what}: {self._home} wants credentials"
            )
        query = {"scope": f"repository:{self._repository}:pull"}
        if service := asked.parameters.get("service"):
            query["service"] = service
        place = self._place(realm, _Place(self._home, "/"), "a token")
        separator = "&" if "?" in place.target else "?"
        place = _Place(place.endpoint, f"{place.target}{separator}{urlencode(query)}")
        connection, response = self._answered(place, {}, f"a token for {what}", authorize=False)
        try:
            body = _body(connection, response, _ANSWER_BYTES)
        finally:
            self._finish(connection, response)
        try:
            answer = msgspec.json.decode(body or b"", type=_Token)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            answer = _Token()
        token = answer.token or answer.access_token
        if not token or not _is_printable(token):
            raise PullError(
                ErrorCode.REGISTRY_PROTOCOL, f"cannot fetch {what}: {place.endpoint} gave no token"
            )
        return f"Bearer {token}"

    def _place(self, location: str, base: _Place, what: str) -> _Place:
        """Where a redirect or realm leads, if it may."""
        origin = f"{'https' if base.endpoint.tls else 'http'}://{base.endpoint}{base.target}"
        try:
            if not location or not _is_printable(location):
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
        if not tls and not self._is_insecure(endpoint):
            raise PullError(
                ErrorCode.REGISTRY_UNTRUSTED,
                f"cannot fetch {what}: {base.endpoint} leads to {endpoint} in plain http",
            )
        target = f"{url.path or '/'}?{url.query}" if url.query else url.path or "/"
        return _Place(endpoint, target)

    def _is_insecure(self, endpoint: Endpoint) -> bool:
        for registry in self._policy.insecure_registries:
            host, port = split_registry(registry)
            if (host, port or 80) == (endpoint.host, endpoint.port):
                return True
        return False

    def _refusal(
        self, connection: Connection, response: HTTPResponse, what: str
    ) -> PullError | Broken:
        """The error for a status that is no success."""
        status = response.status
        text = f"{connection.endpoint} answers {status}{_reason(connection, response)}"
        if status >= 500:
            return Broken(ErrorCode.REGISTRY_UNREACHABLE, text)
        code = {
            401: ErrorCode.REGISTRY_DENIED,
            403: ErrorCode.REGISTRY_DENIED,
            404: ErrorCode.IMAGE_NOT_FOUND,
            429: ErrorCode.REGISTRY_UNREACHABLE,
        }.get(status, ErrorCode.REGISTRY_PROTOCOL)
        return PullError(code, f"cannot fetch {what}: {text}")

    # --- connections -----------------------------------------------------------------------------

    def _connected(self, endpoint: Endpoint) -> Connection:
        if endpoint == self._home and self._connection is not None:
            return self._connection
        if endpoint.tls and self._context is None:
            self._context = tls_context(self._policy.ca_certificates)
        connection = Connection(endpoint, self._dial, self._context)
        if endpoint == self._home:
            self._connection = connection
        return connection

    def _finish(self, connection: Connection, response: HTTPResponse) -> None:
        """Keep the connection for the next request where that is possible."""
        finished = response.isclosed()
        response.close()
        if connection is not self._connection or not finished:
            connection.close()


def _body(connection: Connection, response: HTTPResponse, limit: int) -> bytes | None:
    """The whole body, None where it is longer than `limit` bytes. Raises Broken."""
    parts = []
    left = limit + 1
    while left and (part := connection.read(response, left)):
        parts.append(part)
        left -= len(part)
    if not left:
        return None
    if response.length:
        raise Broken(ErrorCode.REGISTRY_UNREACHABLE, f"{connection.endpoint} cut the connection")
    return b"".join(parts)


def _reason(connection: Connection, response: HTTPResponse) -> str:
    """What the registry says of its refusal, as one printable line."""
    try:
        body = _body(connection, response, _ANSWER_BYTES)
        errors = msgspec.json.decode(body or b"", type=_Errors).errors
    except (Broken, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    if not errors:
        return ""
    return f" ({ascii(f'{errors[0].code}: {errors[0].message}'[:160])[1:-1]})"


def _wrong_size(what: str, actual: str, expected: int) -> VerifyError:
    return VerifyError(
        ErrorCode.DIGEST_MISMATCH, f"{what} has {actual} bytes, where {expected} are expected"
    )


def _is_printable(text: str) -> bool:
    return all(0x20 < ord(character) < 0x7F for character in text)
