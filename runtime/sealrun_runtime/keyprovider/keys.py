"""Where a key provider's keys are: files of a directory, and a key broker that gets a copy of each.

A directory has a key in DIRECTORY/repository/type/tag, 32 raw bytes, readable by its owner. A broker is
told of keys as an administrator (KBS: POST /kbs/v0/resource/…), and never asked for them.
"""

import os
import ssl
import time
import urllib.error
import urllib.request
from binascii import b2a_base64
from typing import Final

import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from sealrun_protocol.resource_uri import ResourceName

from sealrun_runtime import named_file
from sealrun_runtime.errors import cause
from sealrun_runtime.keyprovider.exchange import RequestInvalid, Wish
from sealrun_runtime.keyprovider.packet import KEY_BYTES

_TOKEN_SECONDS: Final = 300
_SECONDS: Final = 60


class Broker:
    """A key broker's administration. admin_key: PEM, Ed25519 or P-256. ca: a file of certificates;
    empty: the system's."""

    def __init__(self, url: str, admin_key: bytes, ca: str = "") -> None:
        """Raises RequestInvalid."""
        self._url = url.rstrip("/")
        self._key = _private_key(admin_key)
        try:
            self._context = ssl.create_default_context(cafile=ca or None)
        except OSError as error:
            raise RequestInvalid(f"cannot read the broker's CA certificates: {error}") from error

    def put(self, name: ResourceName, content: bytes) -> None:
        """Store a resource. Raises RequestInvalid."""
        headers = {"Authorization": f"Bearer {_token(self._key)}"}
        address = f"{self._url}/kbs/v0/resource/{name}"
        try:
            request = urllib.request.Request(address, content, headers)
            with urllib.request.urlopen(request, timeout=_SECONDS, context=self._context):
                pass
        except urllib.error.HTTPError as error:
            raise RequestInvalid(f"the key broker answers {error.code} to {name}") from error
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise RequestInvalid(f"cannot reach the key broker at {self._url}: {reason}") from error


class KeyStore:
    """exchange.Keys. directory: empty where keys are not kept here. broker: is told of each key."""

    def __init__(self, directory: str, broker: Broker | None) -> None:
        self._directory, self._broker = directory, broker

    def for_wrapping(self, wish: Wish) -> bytes:
        """See exchange.Keys."""
        if wish.path:
            key = _read(wish.path)
            if self._directory:
                self._keep(wish.name, key)
        elif self._directory:
            key = self._kept(wish.name)
        elif self._broker is not None and not wish.named:
            key = os.urandom(KEY_BYTES)
        else:
            # Called once for each layer: each would get another key under the one name.
            raise RequestInvalid(f"no key for {wish.name}: give keypath=FILE, or --keys DIRECTORY")
        if self._broker is not None:
            self._broker.put(wish.name, key)
        return key

    def for_unwrapping(self, wish: Wish) -> bytes:
        """See exchange.Keys."""
        if not wish.path and not self._directory:
            raise RequestInvalid(f"no key for {wish.name}: give keypath=FILE, or --keys DIRECTORY")
        return _read(wish.path or self._path(wish.name))

    def _path(self, name: ResourceName) -> str:
        return os.path.join(self._directory, *name)

    def _kept(self, name: ResourceName) -> bytes:
        """The key of that name, a new one where there is none."""
        if not os.path.exists(self._path(name)):
            self._keep(name, os.urandom(KEY_BYTES))
        return _read(self._path(name))

    def _keep(self, name: ResourceName, key: bytes) -> None:
        """Another key of that name is not overwritten: what it wrapped could not be opened any more."""
        path = self._path(name)
        draft = f"{path}.{os.getpid()}"
        try:
            os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(key)
            try:
                os.link(draft, path)  # the first of several layers' calls
            except FileExistsError:
                pass
            finally:
                os.unlink(draft)
        except OSError as error:
            raise RequestInvalid(f"cannot write the key {path}: {cause(error)}") from error


def _read(path: str) -> bytes:
    try:
        key = named_file.read(path, KEY_BYTES, pipe=True)
    except OSError as error:
        raise RequestInvalid(f"cannot read the key {path}: {cause(error)}") from error
    if len(key) != KEY_BYTES:
        raise RequestInvalid(f"the key {path} does not have {KEY_BYTES} bytes")
    return key


def _private_key(pem: bytes) -> ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise RequestInvalid("cannot read the administrators' private key: it is no PEM") from error
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise RequestInvalid("the administrators' private key is neither Ed25519 nor P-256")


def _token(key: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey) -> str:
    """An administrator's bearer token (JWT, RFC 7519)."""
    now = int(time.time())
    edwards = isinstance(key, ed25519.Ed25519PrivateKey)
    head = {"alg": "EdDSA" if edwards else "ES256", "typ": "JWT"}
    claims = {"role": "admin", "iat": now, "exp": now + _TOKEN_SECONDS}
    text = f"{_base64url(msgspec.json.encode(head))}.{_base64url(msgspec.json.encode(claims))}"
    if isinstance(key, ed25519.Ed25519PrivateKey):
        signature = key.sign(text.encode())
    else:
        r, s = decode_dss_signature(key.sign(text.encode(), ec.ECDSA(SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return f"{text}.{_base64url(signature)}"


def _base64url(data: bytes) -> str:
    encoded = b2a_base64(data, newline=False).decode()
    return encoded.translate(str.maketrans("+/", "-_")).rstrip("=")
