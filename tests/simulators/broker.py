"""A key broker that does whatever a test tells it to, in plain http on a free loopback port.

Without orders it is honest. An order replaces one step's answer by raw bytes on the connection.
"""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sealrun_broker import jwe

NONCE = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SECRET = b"the key"

Send = Callable[[bytes], None]
Order = Callable[[Send, bytes], None]
"""`order(send, honest_body)`: writes what it likes; the connection is closed afterwards."""


def http(status: int, body: bytes, *headers: str) -> bytes:
    """One complete answer."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def error(status: int, name: str, detail: str) -> bytes:
    """KBS's JSON error object."""
    return http(
        status, json.dumps({"type": f"https://example.com/{name}", "detail": detail}).encode()
    )


def raw(data: bytes) -> Order:
    """The order to answer `data` and nothing else."""
    return lambda send, _honest: send(data)


class Simulator:
    """requests: (step, JSON body) of all that was asked, in order."""

    def __init__(self) -> None:
        self.orders: dict[str, Order] = {}
        self.requests: list[tuple[str, Any]] = []
        self.url = ""
        self._pubkey: dict[str, str] = {}

    def steps(self) -> list[str]:
        """The names of the steps that were asked for."""
        return [step for step, _ in self.requests]

    def answer(self, step: str, body: Any, send: Send) -> None:
        """Carry out one request."""
        self.requests.append((step, body))
        if step == "attest":
            self._pubkey = body["runtime-data"]["tee-pubkey"]
        honest = self._honest(step)
        order = self.orders.get(step)
        if order is not None:
            order(send, honest)
        else:
            send(http(200, honest, "Set-Cookie: kbs-session-id=c0ffee; Expires=never"))

    def _honest(self, step: str) -> bytes:
        if step == "auth":
            return json.dumps({"nonce": NONCE, "extra-params": ""}).encode()
        if step == "attest":
            return b'{"token":"a.b.c"}'
        return jwe.seal(SECRET, jwe.recipient(self._pubkey))


@contextmanager
def simulated_broker() -> Iterator[Simulator]:
    """Serve for the time of a `with` block."""
    simulator = Simulator()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve("resource", None)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._serve(self.path.rpartition("/")[2], json.loads(body))

        def _serve(self, step: str, body: Any) -> None:
            self.close_connection = step in simulator.orders
            try:
                simulator.answer(step, body, self.wfile.write)
            except OSError:
                self.close_connection = True  # the client has had enough

        def log_message(self, *_arguments: Any) -> None:
            """Silence."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        simulator.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield simulator
        finally:
            server.shutdown()
            thread.join()
