"""Who the guest is to a registry: containers-auth.json(5), which is Docker's config.json too. No I/O.

    {"auths": {"registry[:port][/namespace…]": {"auth": base64("user:password")}}}

The longest key that the repository's name begins with counts. `identitytoken` is an OAuth 2 refresh token,
`registrytoken` a bearer token as it is. A credential helper is a program of a host's: an entry that leaves
its credentials to one is an error where it would be used, not an anonymous pull.
"""

import binascii
import threading
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError

_HUB: Final = ("index.docker.io", "registry-1.docker.io")


class Credential(NamedTuple):
    """At least one of username, identity_token and registry_token is set."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    @property
    def basic(self) -> str:
        """As an Authorization header (RFC 7617)."""
        pair = f"{self.username}:{self.password}".encode()
        return f"Basic {binascii.b2a_base64(pair, newline=False).decode()}"


class _Entry(msgspec.Struct, frozen=True):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _Document(msgspec.Struct, frozen=True):
    auths: dict[str, _Entry] = {}


class Credentials:
    """All of one document."""

    def __init__(self, text: bytes) -> None:
        """Raises PullError(CREDENTIALS_INVALID)."""
        try:
            document = from_json(text, _Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            # What is wrong with it is not said: it could be a part of a password.
            raise _invalid("they are not a containers-auth.json") from None
        self._entries = {_name(key): entry for key, entry in document.auths.items()}

    def find(self, name: str) -> Credential | None:
        """For registry/repository, None where nothing is known of it. Raises
        PullError(CREDENTIALS_INVALID)."""
        key = name
        while key not in self._entries:
            key, slash, _ = key.rpartition("/")
            if not slash:
                return None
        return _credential(key, self._entries[key])


class Safe:
    """The document that the broker has under `uri`, fetched when it is first looked into. Any thread.
    uri: empty where there is none. resource: gets it."""

    def __init__(self, uri: str, resource: Callable[[str], bytes]) -> None:
        self._uri, self._resource = uri, resource
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None

    def find(self, name: str) -> Credential | None:
        """See Credentials. Raises PullError(CREDENTIALS_INVALID), and what the resource raises."""
        if not self._uri:
            return None
        with self._lock:
            if self._credentials is None:
                self._credentials = Credentials(self._resource(self._uri))
            return self._credentials.find(name)


def _credential(key: str, entry: _Entry) -> Credential:
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            text = binascii.a2b_base64(entry.auth.encode(), strict_mode=True).decode()
        except (ValueError, UnicodeError):
            raise _invalid(f"auth of {key[:200]!a} is not base64") from None
        username, colon, password = text.rstrip("\0").partition(":")
        if not colon:
            raise _invalid(f"auth of {key[:200]!a} is not user:password")
    found = Credential(username, password, entry.identitytoken, entry.registrytoken)
    if not (found.username or found.identity_token or found.registry_token):
        raise _invalid(f"{key[:200]!a} has none (a credential helper of a host is not asked)")
    if any(ord(character) < 0x20 for part in found for character in part):
        raise _invalid(f"those of {key[:200]!a} have control characters")
    return found


def _name(key: str) -> str:
    """`registry[/namespace]` of a key, which older tools wrote as a URL."""
    scheme, separator, rest = key.partition("://")
    name = rest.partition("/")[0] if separator and scheme in ("http", "https") else key
    host, slash, path = name.rstrip("/").partition("/")
    host = host.lower()
    return ("docker.io" if host in _HUB else host) + slash + path


def _invalid(cause: str) -> PullError:
    return PullError(
        ErrorCode.CREDENTIALS_INVALID, f"cannot use the registry credentials of the broker: {cause}"
    )
