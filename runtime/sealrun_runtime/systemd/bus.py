"""One connection to systemd over D-Bus. Blocking, each wait with an end. jeepney writes and reads the
messages; the way in is our own, since in a user namespace the bus knows us by another id than we do:
we claim none, and it takes the one that the kernel tells it (D-Bus specification, "EXTERNAL").

    BusError            systemd cannot be reached, or does not answer
    └── Refusal         it answered with an error; `name` is that of D-Bus
"""

import os
import socket
import struct
import time
from typing import Final, Self

from jeepney import (
    DBusAddress,
    HeaderFields,
    Message,
    MessageType,
    Parser,
    new_method_call,
)
from jeepney.bus import get_connectable_addresses

_PRIVATE: Final = "/run/systemd/private"  # no bus: nobody to greet, no rules for signals
_CONNECT_SECONDS: Final = 10.0
_ANSWER_SECONDS: Final = 30.0
_BYTES: Final = 4096
_LINE_BYTES: Final = 1024
_BUS: Final = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")

# What a parser meets in bytes that are no message.
_NO_MESSAGE: Final = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
    struct.error,
)

Body = tuple[object, ...]


class BusError(Exception):
    """One line."""


class Refusal(BusError):
    """systemd's own no."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(text or name)
        self.name = name


class Bus:
    """A context manager. Everything raises BusError."""

    def __init__(self, address: str) -> None:
        """address: D-Bus addresses, of which the first that answers is taken."""
        self._parser, self._serial = Parser(), 0
        self._signals: list[Message] = []
        self.is_private = False
        self._socket = self._connect(address)
        try:
            self._authenticate()
            if not self.is_private:
                self.call(_BUS, "Hello")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def call(
        self, to: DBusAddress, method: str, signature: str | None = None, body: Body = ()
    ) -> Body:
        """The body of the answer. Raises Refusal."""
        self._serial += 1
        message = new_method_call(to, method, signature, body)
        self._send(message.serialise(serial=self._serial))
        deadline = time.monotonic() + _ANSWER_SECONDS
        while True:
            answer = self._receive(deadline)
            if answer.header.fields.get(HeaderFields.reply_serial) != self._serial:
                continue
            if answer.header.message_type is MessageType.error:
                name = str(answer.header.fields.get(HeaderFields.error_name, ""))
                raise Refusal(name, str(answer.body[0]) if answer.body else "")
            return tuple(answer.body)

    def listen(self, rule: str) -> None:
        """Have signals delivered that fit a match rule."""
        self.call(_BUS, "AddMatch", "s", (rule,))

    def signal(self, member: str, deadline: float) -> Body:
        """The body of the next signal of this name."""
        while True:
            for index, message in enumerate(self._signals):
                if message.header.fields.get(HeaderFields.member) == member:
                    del self._signals[index]
                    return tuple(message.body)
            self._receive(deadline)

    def _connect(self, address: str) -> socket.socket:
        try:
            paths = list(get_connectable_addresses(address))
        except (RuntimeError, ValueError) as error:
            raise BusError(f"no D-Bus address of a unix socket: {address!r}") from error
        failure = ""
        for path in paths:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            connection.settimeout(_CONNECT_SECONDS)
            try:
                connection.connect(path)
            except OSError as error:
                connection.close()
                failure = f"{path}: {error.strerror or error}"
            else:
                self.is_private = path == _PRIVATE
                return connection
        raise BusError(f"cannot connect to {failure}")

    def _authenticate(self) -> None:
        self._send(b"\0AUTH EXTERNAL\r\n")
        answer = self._line()
        if answer.startswith(b"DATA"):
            self._send(b"DATA\r\n")
            answer = self._line()
        if not answer.startswith(b"OK"):
            text = answer.decode(errors="replace")
            raise BusError(f"it does not let user {os.geteuid()} in: {text}")
        self._send(b"BEGIN\r\n")

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\r\n"):
            part = self._read(1)  # what follows the line is no line any more
            line += part
            if len(line) > _LINE_BYTES:
                raise BusError("it does not speak D-Bus")
        return line[:-2]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.sendall(data)
        except OSError as error:
            raise BusError(f"the connection broke: {error.strerror or error}") from error

    def _read(self, count: int) -> bytes:
        try:
            data = self._socket.recv(count)
        except TimeoutError as error:
            raise BusError("it does not answer") from error
        except OSError as error:
            raise BusError(f"the connection broke: {error.strerror or error}") from error
        if not data:
            raise BusError("the connection was closed")
        return data

    def _next(self) -> Message | None:
        try:
            return self._parser.get_next_message()
        except _NO_MESSAGE as error:
            raise BusError("it does not speak D-Bus") from error

    def _receive(self, deadline: float) -> Message:
        """The next message; one that is a signal is kept, too."""
        while (message := self._next()) is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise BusError("it does not answer")
            self._socket.settimeout(remaining)
            self._parser.add_data(self._read(_BYTES))
        if message.header.message_type is MessageType.signal:
            self._signals.append(message)
        return message
