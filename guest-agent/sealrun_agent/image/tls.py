"""TLS to registries and proxies, and through the one to the other. `ssl` is imported where TLS is spoken."""

import io
import os
import socket
from collections.abc import Callable
from functools import partial
from typing import IO, TYPE_CHECKING, Final, TypeVar

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError

if TYPE_CHECKING:
    import ssl

    from _typeshed import ReadableBuffer, WriteableBuffer

SYSTEM_CERTIFICATES: Final = "/etc/ssl/certs/ca-certificates.crt"
_RECORD_BYTES: Final = 17 * 1024  # one of TLS, and a little

_T = TypeVar("_T")


def context(certificates: str) -> "ssl.SSLContext":
    """Trusts the guest image's certificates, where it has any, and `certificates` (PEM). Raises
    PullError(REGISTRY_UNTRUSTED)."""
    import ssl

    made = ssl.create_default_context(
        cafile=SYSTEM_CERTIFICATES if os.path.exists(SYSTEM_CERTIFICATES) else None
    )
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    if certificates:
        try:
            made.load_verify_locations(cadata=certificates)
        except (ssl.SSLError, ValueError) as error:
            raise PullError(
                ErrorCode.REGISTRY_UNTRUSTED, "cannot read the CA certificates of the init-data"
            ) from error
    return made


class Nested:
    """TLS within TLS, as far as http.client uses a socket: ssl's own sockets take a descriptor."""

    def __init__(self, context: "ssl.SSLContext", outer: "ssl.SSLSocket", host: str) -> None:
        """Shakes hands. Raises OSError (and so SSLError)."""
        import ssl

        self._outer = outer
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._wants = ssl.SSLWantReadError
        self._ends = (ssl.SSLZeroReturnError, ssl.SSLEOFError)
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._step(self._tls.do_handshake)

    def sendall(self, data: "ReadableBuffer") -> None:
        """As of sockets."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._step(partial(self._tls.write, rest)) :]

    def makefile(self, mode: str, buffering: int) -> IO[bytes]:
        """As of sockets, for reading without a buffer: the connection lasts until this is closed, too."""
        assert (mode, buffering) == ("rb", 0)
        return _File(self, self._outer.makefile("rb", buffering=0))  # type: ignore[return-value]

    def receive(self, buffer: "WriteableBuffer") -> int:
        """Fill a part of the buffer; 0 at the end."""
        view = memoryview(buffer)
        try:
            data = self._step(partial(self._tls.read, len(view)))
        except self._ends:
            return 0
        view[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """As of sockets."""
        self._outer.close()

    def _step(self, step: Callable[[], _T]) -> _T:
        """Do it, and carry the records that it needs."""
        while True:
            try:
                done = step()
            except self._wants:
                self._send()
                if data := self._outer.recv(_RECORD_BYTES):
                    self._in.write(data)
                else:
                    self._in.write_eof()
                continue
            self._send()
            return done

    def _send(self) -> None:
        if data := self._out.read():
            self._outer.sendall(data)


class _File(io.RawIOBase):
    def __init__(self, nested: Nested, hold: io.RawIOBase) -> None:
        self._nested = nested
        self._hold = hold  # sockets end with their last file

    def readable(self) -> bool:
        """As of files."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Raises OSError."""
        return self._nested.receive(buffer)

    def close(self) -> None:
        """As of files."""
        self._hold.close()
        super().close()


Stream = socket.socket | Nested


def wrapped(context: "ssl.SSLContext", stream: socket.socket, host: str, shown: str) -> Stream:
    """TLS with `host` over a stream, which is closed where that fails. shown: the peer, in errors. Raises
    PullError(REGISTRY_UNTRUSTED), OSError."""
    import ssl

    try:
        if isinstance(stream, ssl.SSLSocket):
            return Nested(context, stream, host)
        return context.wrap_socket(stream, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        stream.close()
        raise PullError(
            ErrorCode.REGISTRY_UNTRUSTED,
            f"the certificate of {shown} is not trusted: {error.verify_message}",
        ) from error
    except ssl.SSLError as error:
        stream.close()
        if isinstance(error, ssl.SSLEOFError):
            raise  # it was cut
        raise PullError(
            ErrorCode.REGISTRY_UNTRUSTED, f"cannot speak TLS with {shown}: {error.reason or error}"
        ) from error
    except OSError:
        stream.close()
        raise
