"""One repository of one registry, by the OCI distribution specification (1.1): manifests and blobs.

What it promises: nothing about content. Bytes are bounded, connections end, every failure names the
registry. A request that was cut is tried again; a blob is continued where it stopped (Range, RFC 9110, 14):
with If-Range, so that what has changed meanwhile comes whole; a registry that knows no ranges has what was
read before skipped.
"""

import re
from collections.abc import Generator
from contextlib import closing
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.registries import Source

from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image import challenge
from sealrun_agent.image.authorization import ANSWER_BYTES, Authorizations
from sealrun_agent.image.connection import Broken
from sealrun_agent.image.http_client import Exchange, HttpClient, Place, cut
from sealrun_agent.image.manifest import INDEX_TYPES, MANIFEST_TYPES, Descriptor
from sealrun_agent.image.refusal import refusal
from sealrun_agent.image.retry import patiently
from sealrun_agent.image.stream import CHUNK_BYTES, Chunks

RESUMES: Final = 5  # of one blob without …
PROGRESS_BYTES: Final = 16 * limits.MIB  # … so much of it in between
_ACCEPT: Final = ", ".join(MANIFEST_TYPES + INDEX_TYPES)
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/(?:([0-9]{1,18})|\*)")
# The one registry whose name in references is not the host that serves it.
_HOSTS: Final = {"docker.io": "registry-1.docker.io"}


class Repository:
    """Of `source`. authorizations: what to show where the registry asks."""

    def __init__(self, source: Source, http: HttpClient, authorizations: Authorizations) -> None:
        self.name = source.name
        self._path = source.name.partition("/")[2]
        self._http = http
        host = _HOSTS.get(source.registry, source.registry)
        self._home = http.home(host, insecure=source.insecure)
        self._authorization = authorizations.of(self._home, self.name)

    def manifest(self, version: str) -> tuple[bytes, str]:
        """A manifest or index by tag or digest: its bytes and its Content-Type. Raises PullError,
        VerifyError(LIMIT_EXCEEDED)."""
        what = f"manifest {version} of {self.name}"
        body, content_type = patiently(lambda: self._manifest(version, what), what)
        if body is None:
            raise VerifyError(
                ErrorCode.LIMIT_EXCEEDED, f"{what} is longer than {limits.MANIFEST_BYTES} bytes"
            )
        return body, content_type

    def blob(self, descriptor: Descriptor, position: int, what: str) -> Chunks:
        """A blob's bytes from `position` on, up to the descriptor's size. Raises PullError,
        VerifyError(DIGEST_MISMATCH) where the registry has more or fewer."""
        what = f"{what} of {self.name}"
        cuts, tag = 0, [""]
        progress = position
        while position < descriptor.size:
            code, cause = ErrorCode.REGISTRY_PROTOCOL, "it sends ever smaller parts"
            try:
                with closing(self._blob_from(descriptor, position, what, tag)) as chunks:
                    for chunk in chunks:
                        position += len(chunk)
                        yield chunk
            except Broken as error:
                code, cause = error.code, str(error)
            # A part of the range costs a request as a cut does, so it is bounded alike.
            cuts = 1 if position - progress >= PROGRESS_BYTES else cuts + 1
            progress = position if cuts == 1 else progress
            if cuts > RESUMES and position < descriptor.size:
                raise PullError(
                    code,
                    f"cannot fetch {what} beyond byte {position} of {descriptor.size}: {cause}",
                )

    def _manifest(self, version: str, what: str) -> tuple[bytes | None, str]:
        """The body is None where it is too long. Raises Broken, PullError."""
        exchange = self._answered(
            f"/v2/{self._path}/manifests/{version}", {"Accept": _ACCEPT}, what
        )
        try:
            body = exchange.body(limits.MANIFEST_BYTES)
        finally:
            self._http.finish(exchange)
        return body, exchange.response.getheader("Content-Type", "")

    def _blob_from(
        self, descriptor: Descriptor, position: int, what: str, tag: list[str]
    ) -> Generator[bytes, None, None]:
        """The blob's bytes from `position` on, with one request; fewer where the registry sends only a
        part of the range. tag: the one entity tag that was seen. Raises Broken too."""
        headers = {"Range": f"bytes={position}-"} if position else {}
        if position and tag[0]:
            headers["If-Range"] = tag[0]
        exchange = self._opened(f"/v2/{self._path}/blobs/{descriptor.digest}", headers, what)
        connection, response = exchange
        try:
            entity = response.getheader("ETag", "")
            if entity.startswith('"') and entity.isprintable():
                tag[0] = entity
            end = self._end_of_answer(exchange, descriptor, position, what)
            if response.status != 206:
                self._skip(exchange, position)
            while position < end:
                chunk = connection.read(response, min(CHUNK_BYTES, end - position))
                if not chunk:
                    raise cut(connection.endpoint)
                position += len(chunk)
                yield chunk
            if connection.read(response, 1):
                raise _wrong_size(what, f"more than {end}", descriptor.size)
        finally:
            self._http.finish(exchange)

    def _end_of_answer(
        self, exchange: Exchange, descriptor: Descriptor, position: int, what: str
    ) -> int:
        """The position at which the answer's bytes end, once its head is found right."""
        response = exchange.response
        if response.status != 206:
            if response.length not in (None, descriptor.size):
                raise _wrong_size(what, str(response.length), descriptor.size)
            return descriptor.size
        found = _CONTENT_RANGE.fullmatch(response.getheader("Content-Range", ""))
        if found is None or not position or int(found[1]) != position or int(found[2]) < position:
            raise PullError(
                ErrorCode.REGISTRY_PROTOCOL,
                f"cannot fetch {what}: {exchange.connection.endpoint} sent another range",
            )
        end, total = int(found[2]) + 1, int(found[3] or descriptor.size)
        if total != descriptor.size or end > total:
            raise _wrong_size(what, str(max(total, end)), descriptor.size)
        if response.length not in (None, end - position):
            raise _wrong_size(what, str(position + (response.length or 0)), descriptor.size)
        return end

    def _skip(self, exchange: Exchange, count: int) -> None:
        """The registry knows no ranges: read again what was read before."""
        while count:
            chunk = exchange.connection.read(exchange.response, min(CHUNK_BYTES, count))
            if not chunk:
                return
            count -= len(chunk)

    def _opened(self, path: str, headers: dict[str, str], what: str) -> Exchange:
        """A response of status 200 or 206, its body unread."""
        return patiently(lambda: self._answered(path, headers, what), what)

    def _answered(self, path: str, headers: dict[str, str], what: str) -> Exchange:
        """Answer a challenge, once."""
        challenged = False
        while True:
            authorization = self._authorization.header(self._http, what)
            exchange = self._http.ask(
                Place(self._home, path), headers, what, authorization=authorization
            )
            if exchange.response.status in (200, 206):
                return exchange
            try:
                at_home = exchange.connection.endpoint == self._home
                if exchange.response.status != 401 or challenged or not at_home:
                    raise refusal(exchange, what)
                given = exchange.response.headers.get_all("WWW-Authenticate", [])
                exchange.body(ANSWER_BYTES)
            finally:
                self._http.finish(exchange)
            challenges = challenge.parse(", ".join(given))
            self._authorization.meet(self._http, challenges, authorization, what)
            challenged = True


def _wrong_size(what: str, actual: str, expected: int) -> VerifyError:
    return VerifyError(
        ErrorCode.DIGEST_MISMATCH, f"{what} has {actual} bytes, where {expected} are expected"
    )
