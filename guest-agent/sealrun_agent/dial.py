"""How the agent gets a TCP connection: a tunnel that the shim opens (service.py).

The callers put TLS on it themselves: it ends here.
"""

import socket
from collections.abc import Callable

Dial = Callable[[str, int], socket.socket]
"""`dial(host, port)` returns a connected stream socket, or raises DialFailed."""
