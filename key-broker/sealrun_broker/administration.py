"""What an administrator may change over the network, without HTTP (kbs-protocol, 10).

Everything here asks for an administrator's token first, and is written into the audit log.
"""

from typing import NoReturn

import msgspec

from sealrun_broker import admin, base64url, jwt, reference_values
from sealrun_broker.errors import BrokerError, Refusal
from sealrun_broker.journal import Journal
from sealrun_broker.policy import PolicyFile
from sealrun_broker.reference_values import ReferenceValues
from sealrun_broker.service import Caller, resource_name
from sealrun_broker.store import Store


class _Policy(msgspec.Struct, frozen=True):
    policy: str


class Administration:
    """The administrators' side of one broker."""

    def __init__(
        self,
        *,
        key: jwt.PublicKey,
        store: Store,
        policy: PolicyFile,
        references: ReferenceValues,
        journal: Journal,
    ) -> None:
        self._key = key
        self._store, self._policy, self._references = store, policy, references
        self._journal = journal

    def put(self, caller: Caller, path: str, content: bytes) -> None:
        """POST /resource. Raises Refusal."""
        self._authorize(caller, "put")
        name = resource_name(path)
        try:
            self._store.put(name, content)
        except BrokerError as error:
            self._failed(caller, "put", error, str(name))
        self._done(caller, "put", str(name))

    def delete(self, caller: Caller, path: str) -> None:
        """DELETE /resource. Raises Refusal."""
        self._authorize(caller, "delete")
        name = resource_name(path)
        try:
            existed = self._store.delete(name)
        except BrokerError as error:
            self._failed(caller, "delete", error, str(name))
        self._done(caller, "delete", str(name), "ok" if existed else "not-found")
        if not existed:
            raise Refusal(404, "PluginInternalError", f"there is no resource {name}")

    def set_references(self, caller: Caller, body: bytes) -> None:
        """POST /reference-value: an RVPS message. Raises Refusal."""
        self._authorize(caller, "set-reference")
        try:
            values = reference_values.from_message(body)
        except (ValueError, RecursionError) as error:
            raise Refusal(401, "RvpsError", f"reference values: {error}") from error
        try:
            self._references.set(values)
        except BrokerError as error:
            self._failed(caller, "set-reference", error)
        self._done(caller, "set-reference", detail=" ".join(sorted(values)))

    def reference(self, caller: Caller, name: str) -> bytes:
        """GET /reference-value/{name}: the value as JSON. Raises Refusal."""
        self._authorize(caller, "get-reference")
        try:
            values = self._references.current()
        except BrokerError as error:
            self._failed(caller, "get-reference", error)
        if name not in values:
            raise Refusal(404, "RvpsError", "there is no such reference value")
        return msgspec.json.encode(values[name])

    def set_policy(self, caller: Caller, body: bytes) -> None:
        """POST /resource-policy: {"policy": base64url of policy.toml}. Raises Refusal."""
        self._authorize(caller, "set-policy")
        try:
            text = base64url.decode(msgspec.json.decode(body, type=_Policy).policy)
            self._policy.replace(text)
        except (ValueError, RecursionError) as error:
            raise Refusal(401, "ParsePolicyError", f"policy: {error}") from error
        except BrokerError as error:
            raise Refusal(401, "ParsePolicyError", str(error)) from error
        self._done(caller, "set-policy")

    def _authorize(self, caller: Caller, event: str) -> None:
        try:
            admin.authorize(caller.authorization, self._key)
        except Refusal as refusal:
            self._journal.record(
                peer=caller.peer, event=event, outcome=refusal.name, detail=refusal.detail
            )
            raise

    def _done(
        self, caller: Caller, event: str, resource: str = "", outcome: str = "ok", detail: str = ""
    ) -> None:
        self._journal.record(
            peer=caller.peer, event=event, outcome=outcome, resource=resource, detail=detail
        )

    def _failed(
        self, caller: Caller, event: str, error: BrokerError, resource: str = ""
    ) -> NoReturn:
        self._done(caller, event, resource, "PluginInternalError", str(error))
        raise Refusal(500, "PluginInternalError", str(error)) from error
