"""The key broker's client: KBS 0.4.0 (kbs-protocol, 2 and 3).

    POST auth    -> challenge (nonce), session cookie
    POST attest  -> evidence bound to nonce and the guest's fresh key; 200: attested, and a token
    GET resource -> JWE for that key

One handshake serves many resources. Who asks is said twice, by the session's cookie and by the token
as bearer: a broker that forgot its sessions, or another one of several, takes the token. A 401 on a
resource may mean that both are over: one new handshake, one more try. Trustee answers 401 also where
its policy denies or a resource is missing; the error's name tells these apart, and they are final.

A broker that cannot be reached, or is overloaded, is asked again for limits.BROKER_PATIENCE_SECONDS in
all, and one that stalls never: a request has limits.BROKER_SECONDS, of which there are at most six.

Outcomes, all AttestError: those of broker_http.py, and

    attest: 401 or 403                                EVIDENCE_REFUSED, with the broker's words
    resource: 403, PolicyDeny; still 401              KEY_DENIED
    resource: 404, PluginInternalError                KEY_NOT_FOUND
    502, 503, 504                                     BROKER_UNREACHABLE
    auth: 401, another version; anything unexpected   BROKER_PROTOCOL
"""

import re
import time
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from typing import Final, NamedTuple, TypeVar

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import Broker, InitData
from sealrun_protocol.resource_uri import ResourceNameInvalid, parse_uri

from sealrun_agent.attestation import tee_key
from sealrun_agent.attestation.attester import Attester
from sealrun_agent.attestation.broker_http import Answer, BrokerHttp
from sealrun_agent.attestation.report_data import ALGORITHMS, DEFAULT_ALGORITHM, report_data
from sealrun_agent.dial import Dial
from sealrun_agent.errors import AttestError
from sealrun_agent.jose import JweInvalid

VERSION: Final = "0.4.0"
BASE_PATH: Final = "/kbs/v0"

_COOKIE: Final = re.compile(r"(kbs-session-id=[A-Za-z0-9_-]{1,128})(?:;.*)?")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+){2}")
_NONCE: Final = re.compile(r"[ -~]{1,1024}")
_DENIED: Final = "PolicyDeny"
_MISSING: Final = "PluginInternalError"
_REFUSALS: Final = (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
_OVERLOADED: Final = (502, 503, 504)
_FIRST_PAUSE_SECONDS: Final = 0.5

_Result = TypeVar("_Result")


class _Challenge(msgspec.Struct, frozen=True, rename="kebab"):
    nonce: str
    extra_params: dict[str, object] | str = ""


class _Attested(msgspec.Struct, frozen=True):
    token: str


class Session(NamedTuple):
    """Of a client that the broker attested."""

    cookie: str
    token: str

    @property
    def proof(self) -> dict[str, str]:
        """The headers that say who asks."""
        headers = {"Cookie": self.cookie} if self.cookie else {}
        if len(self.token) <= limits.BROKER_HEADER_BYTES and _TOKEN.fullmatch(self.token):
            headers["Authorization"] = f"Bearer {self.token}"
        return headers


class _Error(msgspec.Struct, frozen=True):
    type: str = ""
    detail: str = ""


class KeyBroker:
    """A session with the tenant's key broker."""

    def __init__(
        self,
        broker: Broker,
        attester: Attester,
        dial: Dial,
        init_data: InitData,
        *,
        seconds: float = limits.BROKER_SECONDS,
        patience: float = limits.BROKER_PATIENCE_SECONDS,
    ) -> None:
        """`seconds` bounds each request with its answer, `patience` what is spent for one wish on
        asking a broker again that cannot be reached. Nothing is sent before it is needed."""
        self._attester = attester
        self._init_data = init_data
        self._url = broker.url
        self._http = BrokerHttp(broker, dial, seconds)
        self._kind = broker.key
        self._patience = self._left = patience
        self._key: tee_key.TeeKey | None = None
        self._session: Session | None = None

    def resource(self, uri: str) -> bytes:
        """The content of `kbs:///repository/type/tag`. Raises AttestError."""
        try:
            path = f"{BASE_PATH}/resource/{parse_uri(uri)}"
        except ResourceNameInvalid as error:
            raise AttestError(ErrorCode.INIT_DATA_INVALID, f"key: {error}") from error
        self._left = self._patience
        answer = self._ask(path)
        if answer.status != HTTPStatus.OK:
            raise self._no_resource(uri, answer)
        assert self._key is not None, "a session was attested with it"
        try:
            return self._key.open(answer.body)
        except JweInvalid as error:
            raise self._http.violation(f"cannot open its answer for {uri}: {error}") from error

    def token(self) -> tuple[str, "tee_key.TeeKey"]:
        """The broker's token of a fresh attestation, and the key that it is for. Raises AttestError."""
        self._left = self._patience
        session = self._patiently(self._handshake)
        assert self._key is not None
        return session.token, self._key

    def _ask(self, path: str) -> Answer:
        for _ in range(limits.BROKER_ATTEMPTS):
            if self._session is None:
                self._session = self._patiently(self._handshake)
            answer = self._patiently(partial(self._get, path, self._session))
            if answer.status != HTTPStatus.UNAUTHORIZED or _error_name(answer) in (
                _DENIED,
                _MISSING,
            ):
                break
            self._session = None
        return answer

    def _get(self, path: str, session: Session) -> Answer:
        answer = self._http.request("GET", path, None, session.proof)
        if answer.status in _OVERLOADED:
            raise self._unexpected(path, answer)
        return answer

    def _patiently(self, work: Callable[[], _Result]) -> _Result:
        """Again after a pause, and after longer ones, while the broker cannot be reached."""
        pause = _FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            try:
                return work()
            except AttestError as error:
                self._left -= time.monotonic() - started + pause
                if error.code is not ErrorCode.BROKER_UNREACHABLE or self._left <= 0:
                    raise
            time.sleep(pause)
            pause *= 2

    def close(self) -> None:
        """End the connection and forget session and key."""
        self._http.close()
        self._session = None
        self._key = None

    def _handshake(self) -> Session:
        if self._key is None:
            self._key = tee_key.generate(self._kind)
        challenge, cookie = self._challenge()
        algorithm = self._hash_algorithm(challenge.extra_params)
        bound = report_data(challenge.nonce, self._key.public, "", algorithm)
        text = self._init_data.text.decode()
        attestation = {
            "init-data": {"format": "toml", "body": text} if text else None,
            "runtime-data": {"nonce": challenge.nonce, "tee-pubkey": self._key.public},
            "tee-evidence": {
                "primary_evidence": self._attester.evidence(bound),
                "additional_evidence": "",
            },
        }
        answer = self._http.request(
            "POST", f"{BASE_PATH}/attest", msgspec.json.encode(attestation), {"Cookie": cookie}
        )
        if answer.status in _REFUSALS:
            raise AttestError(
                ErrorCode.EVIDENCE_REFUSED, f"key broker {self._url}: {_detail(answer)}"
            )
        if answer.status != HTTPStatus.OK:
            raise self._unexpected("attest", answer)
        try:
            attested = from_json(answer.body, _Attested)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._http.violation("attest: its answer is not {token}") from error
        if len(attested.token) > limits.BROKER_TOKEN_BYTES:
            raise self._http.violation(
                f"attest: its token is longer than {limits.BROKER_TOKEN_BYTES} bytes"
            )
        return Session(_session_cookie(answer) or cookie, attested.token)

    def _challenge(self) -> tuple[_Challenge, str]:
        request = {
            "version": VERSION,
            "tee": self._attester.tee,
            "extra-params": {"supported-hash-algorithms": ALGORITHMS},
        }
        answer = self._http.request("POST", f"{BASE_PATH}/auth", msgspec.json.encode(request), {})
        if answer.status != HTTPStatus.OK:
            # Nothing was judged yet: the broker speaks another version, or is no broker.
            raise self._unexpected("auth", answer)
        try:
            challenge = from_json(answer.body, _Challenge)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._http.violation("auth: its answer is not {nonce, extra-params}") from error
        cookie = _session_cookie(answer)
        if not cookie or not _NONCE.fullmatch(challenge.nonce):
            raise self._http.violation("auth: its answer has no usable nonce or session cookie")
        return challenge, cookie

    def _hash_algorithm(self, extra: dict[str, object] | str) -> str:
        name = extra.get("selected-hash-algorithm") if isinstance(extra, dict) else None
        algorithm = DEFAULT_ALGORITHM if name is None else str(name).lower()
        if algorithm not in ALGORITHMS:
            raise self._http.violation(f"auth: it selects the hash {algorithm[:40]!a}")
        return algorithm

    def _no_resource(self, uri: str, answer: Answer) -> AttestError:
        name = _error_name(answer)
        if answer.status == HTTPStatus.NOT_FOUND or name == _MISSING:
            code = ErrorCode.KEY_NOT_FOUND
        elif answer.status in _REFUSALS:
            code = ErrorCode.KEY_DENIED
        else:
            return self._unexpected(uri, answer)
        return AttestError(code, f"key broker {self._url}: {uri}: {_detail(answer)}")

    def _unexpected(self, what: str, answer: Answer) -> AttestError:
        code = (
            ErrorCode.BROKER_UNREACHABLE
            if answer.status in _OVERLOADED
            else ErrorCode.BROKER_PROTOCOL
        )
        return AttestError(
            code, f"key broker {self._url}: {what}: status {answer.status}: {_detail(answer)}"
        )


def _session_cookie(answer: Answer) -> str:
    for header in answer.cookies:
        found = _COOKIE.fullmatch(header)
        if found:
            return found[1]
    return ""


def _error(answer: Answer) -> _Error:
    try:
        return from_json(answer.body, _Error)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Error()  # a proxy's page: the status has to do


def _error_name(answer: Answer) -> str:
    """The last part of the error's type: `PolicyDeny` (kbs-protocol, 4)."""
    return _error(answer).type.rpartition("/")[2]


def _detail(answer: Answer) -> str:
    """The broker's own words, as far as a log may show them."""
    detail = _error(answer).detail[: limits.BROKER_DETAIL_CHARACTERS] or "it gives no reason"
    return "".join(character if character.isprintable() else "?" for character in detail)
