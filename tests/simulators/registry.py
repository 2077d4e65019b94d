"""A registry that answers whatever a test tells it to, right or wrong, over plain http.

with serve() as simulator:
    reference = simulator.publish(tars)      # a correct image …
    simulator.answers[path] = Answer(…)      # … with something wrong in it
    simulator.requests                       # what was asked, with its headers
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fixtures import layers

REPOSITORY = "demo/image"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Request:
    """What was asked: the path with its query, the headers in lower case, and the body of a POST."""

    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Answer:
    """What to say. cut: end the connection after so many bytes of the body. length: the
    Content-Length to claim, None for none at all. drip: seconds between single bytes of the body.
    raw: bytes to send instead of the head. endless: repeat the body until the peer is gone."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None
    length: int | None = -1
    drip: float = 0
    raw: bytes | None = None
    endless: bool = False


Responder = Answer | Callable[[Request], Answer]


@dataclass
class Simulator:
    """A running simulator. answers: by path without query."""

    address: str
    answers: dict[str, Responder] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)

    def paths(self) -> list[str]:
        """What was asked for, without queries, in order."""
        return [request.path.partition("?")[0] for request in self.requests]

    def blob(self, data: bytes) -> str:
        """Offer a blob; its path."""
        path = blob_path(data)
        self.answers[path] = Answer(data)
        return path

    def manifest(self, data: bytes, *tags: str, content_type: str = MANIFEST_TYPE) -> str:
        """Offer a manifest or index by its digest and tags; its digest."""
        digest = layers.digest(data)
        for version in (digest, *tags):
            self.answers[manifest_path(version)] = Answer(
                data, headers={"Content-Type": content_type}
            )
        return digest

    def publish(
        self,
        tars: Sequence[bytes],
        *,
        compression: str = "gzip",
        blobs: Sequence[bytes] | None = None,
        annotations: Sequence[Mapping[str, str]] = (),
        change: Callable[[dict[str, Any]], None] = lambda _: None,
    ) -> str:
        """Offer an image as tag 1; the reference. blobs: instead of the compressed tars; annotations:
        of each layer, which makes it an encrypted one; change: of the manifest, before it is sealed."""
        stored = [layers.compress(tar, compression) for tar in tars] if blobs is None else blobs
        config = layers.config(tars)
        document = json.loads(layers.manifest(config, stored, compression))
        for descriptor, added in zip(document["layers"], annotations, strict=False):
            descriptor["mediaType"] += "+encrypted"
            descriptor["annotations"] = dict(added)
        change(document)
        for data in [*stored, config]:
            self.blob(data)
        self.manifest(json.dumps(document).encode(), "1")
        return f"{self.address}/{REPOSITORY}:1"

    def guard(self, challenge: str, good: Callable[[str], bool]) -> None:
        """Answer 401 with a challenge where the Authorization header is not good, to all that is
        offered by now."""

        def guarded(inner: Responder) -> Responder:
            def answer(request: Request) -> Answer:
                if good(request.headers.get("authorization", "")):
                    return inner if isinstance(inner, Answer) else inner(request)
                return Answer(b"{}", 401, {"WWW-Authenticate": challenge})

            return answer

        self.answers = {path: guarded(inner) for path, inner in self.answers.items()}


def blob_path(data: bytes) -> str:
    """Where a blob is asked for."""
    return f"/v2/{REPOSITORY}/blobs/{layers.digest(data)}"


def manifest_path(version: str) -> str:
    """Where a manifest is asked for by tag or digest."""
    return f"/v2/{REPOSITORY}/manifests/{version}"


@contextmanager
def serve() -> Iterator[Simulator]:
    """A simulator on a loopback port, for as long as the block lasts."""
    simulator = Simulator("")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Answer as told."""
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def do_GET(self) -> None:
            """Answer as told."""
            self._answer(b"")

        def do_CONNECT(self) -> None:
            """Answer as told: it is no proxy."""
            self._answer(b"")

        def _answer(self, body: bytes) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.path, headers, body)
            simulator.requests.append(request)
            found = simulator.answers.get(self.path.partition("?")[0], Answer(status=404))
            try:
                _send(self, found if isinstance(found, Answer) else found(request))
            except OSError:
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A peer that leaves is expected."""

    server = Server(("127.0.0.1", 0), Handler)
    simulator.address = f"127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield simulator
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    out = handler.wfile
    if answer.raw is not None:
        handler.close_connection = True
        out.write(answer.raw)
        while answer.endless:
            out.write(answer.body)
        return
    handler.send_response(answer.status)
    for name, value in answer.headers.items():
        handler.send_header(name, value)
    length = len(answer.body) if answer.length == -1 else answer.length
    if answer.endless or length is None:
        handler.close_connection = True
    else:
        handler.send_header("Content-Length", str(length))
    handler.end_headers()
    if answer.drip:
        for byte in answer.body:
            out.write(bytes([byte]))
            time.sleep(answer.drip)
    else:
        out.write(answer.body if answer.cut is None else answer.body[: answer.cut])
    while answer.endless:
        out.write(answer.body)
    if answer.cut is not None or (length or 0) > len(answer.body):
        handler.close_connection = True
