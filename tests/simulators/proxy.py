"""An HTTP proxy that really forwards: whole addresses (RFC 9112, 3.2.2) and tunnels (CONNECT).

with serve(credentials="me:secret") as proxy:
    proxy.address       # 127.0.0.1:PORT
    proxy.asked         # what it was asked for, and by which authorization
"""

import base64
import select
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from fixtures.registry import Certificate

SECONDS = 60
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Proxy:
    """asked: method and target, with the authorization that was sent."""

    address: str
    asked: list[tuple[str, str]] = field(default_factory=list)


@contextmanager
def serve(credentials: str = "", certificate: Certificate | None = None) -> Iterator[Proxy]:
    """A proxy on loopback, for as long as the block lasts. credentials: user:password that it wants.
    certificate: it speaks TLS itself."""
    server = _Server(credentials, certificate)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.proxy
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, credentials: str, certificate: Certificate | None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = Proxy(f"127.0.0.1:{self.server_address[1]}")
        self.wanted = f"Basic {base64.b64encode(credentials.encode()).decode()}"
        self.wanted *= bool(credentials)
        self.context: ssl.SSLContext | None = None
        if certificate is not None:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(certificate.chain, certificate.key)

    def handle_error(self, *_: object) -> None:
        """A peer that leaves is expected."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def setup(self) -> None:
        """Shake hands in this thread, not in the one that accepts."""
        if self.server.context is not None:
            self.request = self.server.context.wrap_socket(self.request, server_side=True)
        super().setup()

    def finish(self) -> None:
        """The server closes only what it accepted."""
        super().finish()
        self.request.close()

    def do_GET(self) -> None:
        """Forward."""
        if self._admitted():
            _forward(self)

    def do_CONNECT(self) -> None:
        """Become a tunnel."""
        if self._admitted():
            _tunnel(self)

    def _admitted(self) -> bool:
        sent = self.headers.get("Proxy-Authorization", "")
        self.server.proxy.asked.append((f"{self.command} {self.path}", sent))
        if sent == self.server.wanted:
            return True
        self.send_response(407)
        self.send_header("Proxy-Authenticate", 'Basic realm="proxy"')
        self.send_header("Content-Length", "0")
        self.end_headers()
        return False

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _forward(handler: BaseHTTPRequestHandler) -> None:
    headers = {k: v for k, v in handler.headers.items() if not k.lower().startswith("proxy-")}
    request = urllib.request.Request(handler.path, headers=headers)
    try:
        with _OPENER.open(request, timeout=SECONDS) as answer:
            status, given, body = answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        status, given, body = error.code, error.headers, error.read()
    handler.send_response(status)
    for name in ("Content-Type", "WWW-Authenticate", "ETag"):
        if name in given:
            handler.send_header(name, given[name])
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def _tunnel(handler: BaseHTTPRequestHandler) -> None:
    host, _, port = handler.path.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS) as far:
        handler.send_response(200)
        handler.end_headers()
        near = handler.connection
        near.settimeout(SECONDS)
        while True:
            pending = isinstance(near, ssl.SSLSocket) and near.pending()
            ready = [near] if pending else select.select([near, far], [], [], SECONDS)[0]
            for one in ready:
                data = one.recv(65536)
                if not data:
                    handler.close_connection = True
                    return
                (far if one is near else near).sendall(data)
            if not ready:
                return
