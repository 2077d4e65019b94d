"""What the broker decides, without HTTP: each method is one step of KBS (kbs-protocol, 2, 3, 10).

Order of the checks on a resource: attested, then policy, then existence. Who may not have a name
does not learn whether it exists.
"""

from typing import Final, NamedTuple

import msgspec
from sealrun_protocol.resource_uri import ResourceName, ResourceNameInvalid, parse_name

from sealrun_broker import admin, appraisal, jwe, jwt
from sealrun_broker.audit import Audit
from sealrun_broker.ear import Attested, Tokens
from sealrun_broker.errors import BrokerError, Refusal
from sealrun_broker.policy import Policy, PolicyFile
from sealrun_broker.sessions import Session, Sessions
from sealrun_broker.store import Store

VERSION: Final = "0.4.0"


class Caller(NamedTuple):
    """Who asks. session: the cookie's value; authorization: the header; both may be empty."""

    peer: str
    session: str = ""
    authorization: str = ""


class _Auth(msgspec.Struct, frozen=True):
    version: str
    tee: str
    extra_params: msgspec.Raw = msgspec.field(name="extra-params")


class Service:
    """One broker."""

    def __init__(
        self,
        *,
        store: Store,
        policy: PolicyFile,
        sessions: Sessions,
        tokens: Tokens,
        admin_key: jwt.PublicKey,
        audit: Audit,
    ) -> None:
        self._store = store
        self._policy = policy
        self._sessions = sessions
        self._tokens = tokens
        self._admin_key = admin_key
        self._audit = audit

    def auth(self, caller: Caller, body: bytes) -> Session:
        """POST /auth: a session with a fresh nonce. Raises Refusal."""
        try:
            request = msgspec.json.decode(body, type=_Auth)
        except (ValueError, RecursionError) as error:
            raise Refusal(401, "SerdeError", f"auth: {error}") from error
        if request.version != VERSION:
            raise Refusal(
                401,
                "AttestationError",
                f"auth: protocol version {request.version[:40]!a} is not {VERSION}",
            )
        session = self._sessions.open(request.tee)
        self._audit.record(
            peer=caller.peer, event="auth", outcome="ok", session=session.id, tee=session.tee
        )
        return session

    def attest(self, caller: Caller, body: bytes) -> Session:
        """POST /attest: the session, now with a token. Raises Refusal.

        A nonce serves once: evidence that is refused ends the session."""
        session = self._session(caller)
        if session.token:
            return session
        try:
            session.token = self._appraise(session, body)
        except Refusal as refusal:
            self._sessions.end(session)
            self._record(caller, "attest", refusal.name, session, detail=refusal.detail)
            raise
        self._record(caller, "attest", "ok", session)
        return session

    def resource(self, caller: Caller, path: str) -> bytes:
        """GET /resource: the JWE. Raises Refusal."""
        attested = self._attested(caller)
        name = _name(path)
        if not self._current_policy().allows(name, attested.tee, attested.init_data):
            self._record_resource(caller, "get", name, "PolicyDeny", attested)
            raise Refusal(403, "PolicyDeny", f"the policy does not give {name} to this VM")
        content = self._stored(name)
        if content is None:
            self._record_resource(caller, "get", name, "not-found", attested)
            raise Refusal(404, "PluginInternalError", f"there is no resource {name}")
        self._record_resource(caller, "get", name, "ok", attested)
        return jwe.seal(content, jwe.recipient(attested.tee_pubkey))

    def put(self, caller: Caller, path: str, content: bytes) -> None:
        """POST /resource, by an administrator. Raises Refusal."""
        self._authorize(caller, "put")
        name = _name(path)
        try:
            self._store.put(name, content)
        except BrokerError as error:
            raise Refusal(500, "PluginInternalError", str(error)) from error
        self._record_resource(caller, "put", name, "ok")

    def delete(self, caller: Caller, path: str) -> None:
        """DELETE /resource, by an administrator. Raises Refusal."""
        self._authorize(caller, "delete")
        name = _name(path)
        try:
            existed = self._store.delete(name)
        except BrokerError as error:
            raise Refusal(500, "PluginInternalError", str(error)) from error
        self._record_resource(caller, "delete", name, "ok" if existed else "not-found")
        if not existed:
            raise Refusal(404, "PluginInternalError", f"there is no resource {name}")

    def _appraise(self, session: Session, body: bytes) -> str:
        try:
            attestation = msgspec.json.decode(body, type=appraisal.Attestation)
        except (ValueError, RecursionError) as error:
            raise Refusal(401, "SerdeError", f"attest: {error}") from error
        if attestation.runtime_data.nonce != session.nonce:
            raise Refusal(401, "AttestationError", "the nonce is not that of this session")
        try:
            jwe.recipient(attestation.runtime_data.tee_pubkey)
        except jwe.KeyInvalid as error:
            raise Refusal(401, "JweError", str(error)) from error
        appraised = appraisal.appraise(session.tee, attestation, self._current_policy())
        return self._tokens.issue(appraised)

    def _session(self, caller: Caller) -> Session:
        session = self._sessions.get(caller.session)
        if session is None:
            raise Refusal(401, "AttestationError", "there is no such session, or it is over")
        return session

    def _attested(self, caller: Caller) -> Attested:
        """By the cookie of an attested session, else by a token as bearer."""
        session = self._sessions.get(caller.session)
        scheme, _, bearer = caller.authorization.partition(" ")
        if session is not None and session.token:
            token = session.token
        elif scheme.lower() == "bearer":
            token = bearer.strip()
        else:
            raise Refusal(401, "TokenNotFound", "attest first: there is no token")
        try:
            return self._tokens.verify(token)
        except jwt.TokenInvalid as error:
            raise Refusal(401, "TokenVerifierError", str(error)) from error

    def _authorize(self, caller: Caller, event: str) -> None:
        try:
            admin.authorize(caller.authorization, self._admin_key)
        except Refusal as refusal:
            self._audit.record(
                peer=caller.peer, event=event, outcome=refusal.name, detail=refusal.detail
            )
            raise

    def _current_policy(self) -> Policy:
        try:
            return self._policy.current()
        except BrokerError as error:
            raise Refusal(403, "PolicyEngineError", "the broker's policy cannot be read") from error

    def _stored(self, name: ResourceName) -> bytes | None:
        try:
            return self._store.get(name)
        except BrokerError as error:
            raise Refusal(500, "PluginInternalError", str(error)) from error

    def _record(
        self, caller: Caller, event: str, outcome: str, session: Session, detail: str = ""
    ) -> None:
        self._audit.record(
            peer=caller.peer,
            event=event,
            outcome=outcome,
            session=session.id,
            tee=session.tee,
            detail=detail,
        )

    def _record_resource(
        self,
        caller: Caller,
        event: str,
        name: ResourceName,
        outcome: str,
        attested: Attested | None = None,
    ) -> None:
        self._audit.record(
            peer=caller.peer,
            event=event,
            outcome=outcome,
            session=caller.session,
            tee=attested.tee if attested else "",
            resource=str(name),
        )


def _name(path: str) -> ResourceName:
    try:
        return parse_name(path)
    except ResourceNameInvalid as error:
        raise Refusal(404, "InvalidRequestPath", str(error)) from error
