"""The tenant's broker, for what the containers need of it: sealed secrets, and the workload's own wishes.

One session serves all of the sandbox; it is made when it is first needed. Called by workers and by the
workload's API, one at a time.
"""

import threading
from contextlib import closing
from typing import TYPE_CHECKING

import msgspec
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation.choice import Choice
from sealrun_agent.dial import Dial
from sealrun_agent.errors import AttestError

if TYPE_CHECKING:
    from sealrun_agent.attestation.kbs import KeyBroker


class Vault:
    """Of one sandbox. dial: for the broker."""

    def __init__(self, init_data: InitData, choice: Choice, dial: Dial) -> None:
        self._init_data, self._choice, self._dial = init_data, choice, dial
        self._lock = threading.Lock()
        self._broker: KeyBroker | None = None

    @property
    def tee(self) -> str:
        """As in Hello."""
        return self._choice.tee

    def unseal(self, text: bytes, place: str) -> bytes:
        """The value of a sealed secret that stands at `place`. Raises AttestError."""
        from sealrun_agent.attestation import sealed_secret

        return sealed_secret.unseal(text, place, self.resource)

    def resource(self, uri: str) -> bytes:
        """What the broker has under a kbs:/// URI. Raises AttestError."""
        with self._lock:
            if self._broker is None:
                self._broker = self._new_broker()
            try:
                return self._broker.resource(uri)
            except AttestError as error:
                if error.code not in (ErrorCode.KEY_NOT_FOUND, ErrorCode.KEY_DENIED):
                    self._forget()  # whatever is wrong with the session, the next wish has a new one
                raise

    def token(self) -> bytes:
        """JSON of {token, tee_keypair}: a token of a fresh attestation, and the key (PEM) that is bound to
        it, which is nobody else's. Raises AttestError."""
        with self._lock, closing(self._new_broker()) as broker:
            token, key = broker.token()
            return msgspec.json.encode({"token": token, "tee_keypair": key.pem().decode()})

    def evidence(self, report_data: bytes) -> bytes:
        """KBS's `primary_evidence` as JSON, over at most 64 bytes. Raises AttestError."""
        attester = self._choice.attester(self._init_data)
        return msgspec.json.encode(attester.evidence(report_data))

    def record(self, domain: str, operation: str, content: str) -> bool:
        """Write an event into the TEE's log; False where there is none. Raises AttestError."""
        return self._choice.record(domain, operation, content)

    def close(self) -> None:
        """Forget session and keys."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        broker, self._broker = self._broker, None
        if broker is not None:
            broker.close()

    def _new_broker(self) -> "KeyBroker":
        from sealrun_agent.attestation.kbs import KeyBroker

        if self._init_data.broker is None:
            raise AttestError(
                ErrorCode.BROKER_NOT_CONFIGURED,
                "a secret is asked for, and the init-data names no key broker",
            )
        attester = self._choice.attester(self._init_data)
        return KeyBroker(self._init_data.broker, attester, self._dial, self._init_data)
