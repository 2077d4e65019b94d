"""How one repository of a registry is authorized: distribution's token authentication, and Basic.

- Bearer (spec/auth/token): anonymous; or user and password as Basic to the token service (GET); or, with
  an identity token, `grant_type=refresh_token` (POST, spec/auth/oauth). The scope is pull of this
  repository, whatever the registry asks for.
- A token that is about to expire is replaced before it is sent, one that the registry refuses once.
- Credentials are fetched when a registry first asks for any, and only those for this registry are used.
- All connections of a pull share a repository's token: one of them fetches it, the others wait for that.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final
from urllib.parse import urlencode

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError
from sealrun_agent.image.challenge import Challenge
from sealrun_agent.image.connection import Endpoint
from sealrun_agent.image.credentials import Credential
from sealrun_agent.image.http_client import HttpClient, Place, is_printable
from sealrun_agent.image.refusal import refusal

ANSWER_BYTES: Final = 64 * limits.KIB  # of a token service
_LIFE_SECONDS: Final = 60.0  # of a token that does not say, and the least of one that does
_MARGIN_SECONDS: Final = 5.0
_CLIENT: Final = "sealrun"


class _Token(msgspec.Struct, frozen=True):
    token: str = ""
    access_token: str = ""
    refresh_token: str = ""
    expires_in: float = _LIFE_SECONDS


class Authorizations:
    """Of all repositories of one pull. Any thread. credential: of registry/repository."""

    def __init__(self, credential: Callable[[str], Credential | None]) -> None:
        self._credential = credential
        self._lock = threading.Lock()
        self._made: dict[tuple[Endpoint, str], Authorization] = {}

    def of(self, home: Endpoint, name: str) -> "Authorization":
        """For registry/repository, whose registry is at `home`."""
        with self._lock:
            if (home, name) not in self._made:
                self._made[home, name] = Authorization(home, name, self._credential)
            return self._made[home, name]


class Authorization:
    """For registry/repository (name) at `home`. Any thread. credential: None for an anonymous one."""

    def __init__(
        self, home: Endpoint, name: str, credential: Callable[[str], Credential | None]
    ) -> None:
        self._home = home
        self._repository = name.partition("/")[2]
        self._credential = partial(credential, name)
        self._lock = threading.Lock()
        self._identity_token = ""
        self._header = ""
        self._expires = float("inf")
        self._challenge: Challenge | None = None

    def header(self, http: HttpClient, what: str) -> str:
        """What to send now, "" for nothing. http: to ask a token service by. Raises Broken, PullError."""
        with self._lock:
            if self._challenge is not None and time.monotonic() > self._expires:
                self._header = self._token(http, self._challenge, what)
            return self._header

    def meet(
        self, http: HttpClient, challenges: tuple[Challenge, ...], sent: str, what: str
    ) -> None:
        """Get what the registry asks for, which refused what was sent. Raises Broken, PullError."""
        with self._lock:
            if self._header == sent:
                self._meet(http, challenges, what)
            # Else another connection was faster.

    def _meet(self, http: HttpClient, challenges: tuple[Challenge, ...], what: str) -> None:
        offered = {challenge.scheme: challenge for challenge in reversed(challenges)}
        bearer, basic = offered.get("bearer"), offered.get("basic")
        if bearer is not None and bearer.parameters.get("realm"):
            self._challenge = bearer
            self._header = self._token(http, bearer, what)
            return
        credential = self._credential() if basic is not None else None
        if credential is None or not credential.username or self._header == credential.basic:
            raise self._denied(
                what, "refuses the credentials" if self._header else "wants credentials"
            )
        self._header = credential.basic

    def _token(self, http: HttpClient, challenge: Challenge, what: str) -> str:
        credential = self._credential()
        if credential is not None and credential.registry_token:
            return f"Bearer {credential.registry_token}"
        wish = {"scope": f"repository:{self._repository}:pull"}
        if service := challenge.parameters.get("service"):
            wish["service"] = service
        realm = challenge.parameters["realm"]
        place = http.place(realm, Place(self._home, "/"), "a token")
        answer = self._asked(http, place, wish, credential, what)
        token = answer.token or answer.access_token
        if not token or not is_printable(token):
            raise PullError(
                ErrorCode.REGISTRY_PROTOCOL, f"cannot fetch {what}: {place.endpoint} gave no token"
            )
        life = max(_LIFE_SECONDS, answer.expires_in) - _MARGIN_SECONDS
        self._expires = time.monotonic() + life
        self._identity_token = answer.refresh_token or self._identity_token
        return f"Bearer {token}"

    def _asked(
        self,
        http: HttpClient,
        place: Place,
        wish: dict[str, str],
        credential: Credential | None,
        what: str,
    ) -> _Token:
        authorization, body, headers = "", None, {}
        identity = self._identity_token or (credential.identity_token if credential else "")
        if credential is not None and identity:
            wish |= {"grant_type": "refresh_token", "refresh_token": identity, "client_id": _CLIENT}
            body = urlencode(wish).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        else:
            if credential is not None:
                authorization = credential.basic
                wish |= {"account": credential.username}
            separator = "&" if "?" in place.target else "?"
            place = Place(place.endpoint, f"{place.target}{separator}{urlencode(wish)}")
        exchange = http.ask(
            place, headers, f"a token for {what}", authorization=authorization, body=body
        )
        try:
            status = exchange.response.status
            if status in (400, 401, 403):
                how = "refuses the credentials" if credential else "wants credentials"
                raise self._denied(what, how, place.endpoint)
            if status != 200:
                raise refusal(exchange, f"a token for {what}")
            return _decoded(exchange.body(ANSWER_BYTES))
        finally:
            http.finish(exchange)

    def _denied(self, what: str, cause: str, by: Endpoint | None = None) -> PullError:
        return PullError(
            ErrorCode.REGISTRY_DENIED, f"cannot fetch {what}: {by or self._home} {cause}"
        )


def _decoded(body: bytes | None) -> _Token:
    """An empty one for what is none."""
    try:
        return from_json(body or b"", _Token)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Token()
