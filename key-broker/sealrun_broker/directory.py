"""The broker's directory: where each of its files lies, and how one is written.

policy.toml                what is accepted, and who gets which resource
tls/ca.pem, tls/ca.key     the CA; ca.pem goes into a tenant's init-data
tls/server.pem, .key       the broker's own certificate
admin/admin.pem, .key      Ed25519: signs administrators' tokens
token/token.key            P-256: signs attestation tokens
store.key                  the key that the resources are encrypted with
resources/R/TYPE/TAG       the resources, each a file
reference-values.json      what good measurements are
collateral/                what verifiers need besides the evidence (collateral.py)
audit.jsonl                what was asked and answered
"""

import contextlib
import os
from typing import BinaryIO, NamedTuple

from sealrun_broker import bounds
from sealrun_broker.errors import BrokerError


class Directory(NamedTuple):
    """Absolute paths below `path`."""

    path: str

    @property
    def policy(self) -> str:
        """policy.toml"""
        return f"{self.path}/policy.toml"

    @property
    def tls(self) -> str:
        """The folder of certificates and their keys."""
        return f"{self.path}/tls"

    @property
    def ca(self) -> str:
        """The CA's certificate, PEM."""
        return f"{self.tls}/ca.pem"

    @property
    def ca_key(self) -> str:
        """The CA's private key."""
        return f"{self.tls}/ca.key"

    @property
    def server(self) -> str:
        """The server's certificate, PEM."""
        return f"{self.tls}/server.pem"

    @property
    def server_key(self) -> str:
        """The server's private key."""
        return f"{self.tls}/server.key"

    @property
    def admins(self) -> str:
        """The folder of the administrators' keys."""
        return f"{self.path}/admin"

    @property
    def admin(self) -> str:
        """The administrators' public key, PEM."""
        return f"{self.admins}/admin.pem"

    @property
    def admin_key(self) -> str:
        """The administrators' private key; the server does not need it."""
        return f"{self.admins}/admin.key"

    @property
    def tokens(self) -> str:
        """The folder of the key of attestation tokens."""
        return f"{self.path}/token"

    @property
    def token_key(self) -> str:
        """The private key of attestation tokens."""
        return f"{self.tokens}/token.key"

    @property
    def resources(self) -> str:
        """The folder of the resources."""
        return f"{self.path}/resources"

    @property
    def store_key(self) -> str:
        """The key of the resources, unless it is kept elsewhere."""
        return f"{self.path}/store.key"

    @property
    def references(self) -> str:
        """The reference values, JSON."""
        return f"{self.path}/reference-values.json"

    @property
    def collateral(self) -> str:
        """The folder of the operator's collateral."""
        return f"{self.path}/collateral"

    @property
    def audit(self) -> str:
        """The audit log, JSON lines."""
        return f"{self.path}/audit.jsonl"


def existing(path: str) -> Directory:
    """The directory that `sealrun-broker init` made at `path`. Raises BrokerError."""
    directory = Directory(os.path.abspath(path))
    if not os.path.isfile(directory.policy) or not os.path.isdir(directory.resources):
        raise BrokerError(
            f"cannot open {path}: it is no broker's directory, make one with `sealrun-broker init`"
        )
    return directory


def read(path: str, limit: int = bounds.BODY_BYTES) -> bytes:
    """A file's content. limit: bytes. Raises BrokerError."""
    try:
        with open(path, "rb") as stream:
            return read_stream(stream, limit, path)
    except OSError as error:
        raise BrokerError(f"cannot read {path}: {error.strerror}") from error


def read_stream(stream: BinaryIO, limit: int, name: str) -> bytes:
    """What is left in it. limit: bytes. name: what to call it. Raises BrokerError, OSError."""
    content = stream.read(limit + 1)
    if len(content) > limit:
        raise BrokerError(f"cannot read {name}: it is longer than {limit} bytes")
    return content


def write(path: str, data: bytes, mode: int = 0o600) -> None:
    """Make or replace the file at one stroke: readers see the old or the new content.

    Raises OSError."""
    # A name of a resource never begins with a dot, so this one is nobody's. It is short, since the
    # resource's may be as long as names can be, and never again the one of a process that was killed.
    temporary = os.path.join(os.path.dirname(path), f".new-{os.urandom(8).hex()}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(fd, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
