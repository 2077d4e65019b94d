"""How the agent gets a TCP connection, wherever the bytes really travel.

In production the connection is a tunnel that the shim opens (service.py); in tests and, later, with
a network in the sandbox, it is a plain socket. The callers put TLS on it themselves: it ends here.
"""

import socket
from collections.abc import Callable

from sealrun_agent.errors import DialFailed

Dial = Callable[[str, int], socket.socket]
"""`dial(host, port)` returns a connected stream socket, or raises DialFailed."""


def dial_directly(host: str, port: int) -> socket.socket:
    """A connection through this machine's own network. Raises DialFailed."""
    try:
        connection = socket.create_connection((host, port), timeout=30)
        # http.client sends head and body apart: Nagle's algorithm would hold the body back.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection
    except OSError as error:
        raise DialFailed(f"{host}:{port}: {error.strerror or error}", refused=False) from error
