"""What the broker decides for its clients, without HTTP: each method is one step of KBS
(kbs-protocol, 2 and 3).

Order of the checks on a resource: attested, then policy, then existence. Who may not have a name
does not learn whether it exists.
"""

import time
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol.resource_uri import ResourceName, ResourceNameInvalid, parse_name

from sealrun_broker import appraisal, jwe, jwt, trustworthiness
from sealrun_broker.collateral import Collateral
from sealrun_broker.ear import Attested, Tokens
from sealrun_broker.errors import BrokerError, Refusal
from sealrun_broker.journal import Journal
from sealrun_broker.policy import Client, Policy, PolicyFile
from sealrun_broker.reference_values import ReferenceValues
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
    """The clients' side of one broker."""

    def __init__(
        self,
        *,
        store: Store,
        policy: PolicyFile,
        references: ReferenceValues,
        collateral: Collateral,
        sessions: Sessions,
        tokens: Tokens,
        journal: Journal,
    ) -> None:
        self._store = store
        self._policy, self._references, self._collateral = policy, references, collateral
        self._sessions = sessions
        self._tokens = tokens
        self._journal = journal

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
        self._record(caller, "auth", "ok", session)
        return session

    def attest(self, caller: Caller, body: bytes) -> Session:
        """POST /attest: the session, now with a token. Raises Refusal.

        A nonce serves once: evidence that is refused ends the session."""
        session = self._session(caller)
        if session.token:
            return session
        try:
            appraised, trust = self._appraise(session, body)
        except Refusal as refusal:
            self._sessions.end(session)
            self._record(caller, "attest", refusal.name, session, detail=refusal.detail)
            raise
        session.token = self._tokens.issue(appraised, trust)
        self._record(caller, "attest", "ok", session, detail=trust.status)
        return session

    def resource(self, caller: Caller, path: str) -> bytes:
        """GET /resource: the JWE. Raises Refusal."""
        attested = self._attested(caller)
        name = resource_name(path)
        objection = self._objection(name, attested)
        if objection:
            self._record_resource(caller, name, "PolicyDeny", attested, objection)
            raise Refusal(
                403, "PolicyDeny", f"the policy does not give {name} to this VM: {objection}"
            )
        content = self._stored(name)
        if content is None:
            self._record_resource(caller, name, "not-found", attested)
            raise Refusal(404, "PluginInternalError", f"there is no resource {name}")
        self._record_resource(caller, name, "ok", attested)
        return jwe.seal(content, jwe.recipient(attested.tee_pubkey))

    def sessions(self) -> int:
        """How many are open."""
        return len(self._sessions)

    def _appraise(
        self, session: Session, body: bytes
    ) -> tuple[appraisal.Appraisal, trustworthiness.Trust]:
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
        policy = self._current_policy().evidence
        try:
            appraised = appraisal.appraise(
                session.tee, attestation, policy, self._collateral, time.time()
            )
            references = self._references.current()
        except BrokerError as error:  # the operator's files: told to the operator, in the log
            raise Refusal(500, "AttestationError", str(error)) from error
        trust = trustworthiness.appraise(session.tee, appraised.verified.claims, references)
        return appraised, trust

    def _objection(self, name: ResourceName, attested: Attested) -> str:
        """Why the policy of now does not give the resource; empty: it does."""
        policy = self._current_policy()
        try:
            references = self._references.current()
        except BrokerError as error:
            raise Refusal(403, "RvpsError", "the reference values cannot be read") from error
        trust = trustworthiness.appraise(attested.tee, attested.claims, references)
        client = Client(
            tee=attested.tee,
            claims=attested.claims,
            init_data=attested.init_data,
            images=attested.images,
            status=trust.status,
            reasons=attested.missing + trust.reasons,
        )
        return policy.objection(name, client)

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
        self._journal.record(
            peer=caller.peer,
            event=event,
            outcome=outcome,
            session=session.id,
            tee=session.tee,
            detail=detail,
        )

    def _record_resource(
        self, caller: Caller, name: ResourceName, outcome: str, attested: Attested, detail: str = ""
    ) -> None:
        self._journal.record(
            peer=caller.peer,
            event="get",
            outcome=outcome,
            session=caller.session,
            tee=attested.tee,
            resource=str(name),
            detail=detail,
        )


def resource_name(path: str) -> ResourceName:
    """repository/type/tag. Raises Refusal."""
    try:
        return parse_name(path)
    except ResourceNameInvalid as error:
        raise Refusal(404, "InvalidRequestPath", str(error)) from error
