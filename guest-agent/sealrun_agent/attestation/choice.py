"""Which attester speaks for this VM.

Rules: the hardware's, where there is one, whatever the init-data allows; else sample evidence, if
the tenant's init-data allows it by name; else none, and that is an error.
"""

from typing import Final

import msgspec
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation import event_log
from sealrun_agent.attestation.attester import Attester, detect
from sealrun_agent.attestation.sample import SampleAttester
from sealrun_agent.errors import AttestError
from sealrun_agent.policy import NO_TEE

UNUSABLE: Final = "unusable"  # there is a TEE, and this agent cannot speak for it


class Choice:
    """The attester of this VM: looked for once, and the same for as long as the VM lives."""

    def __init__(self, root: str = "") -> None:
        """`root` is put before the paths of the kernel's interfaces. Never raises for a TEE that is
        there and cannot be used: whoever asks for it is told, and nothing is obeyed then."""
        self._found: Attester | None = None
        self._refusal: AttestError | None = None
        try:
            self._found = detect(root)
        except AttestError as error:
            self._refusal = error

    @property
    def tee(self) -> str:
        """As in Hello: the kind of the hardware's evidence, NO_TEE or UNUSABLE."""
        if self._refusal is not None:
            return UNUSABLE
        return NO_TEE if self._found is None else self._found.tee

    def bind(self, init_data: InitData) -> None:
        """Have the hardware vouch for the init-data, before any of it is obeyed. Raises AttestError."""
        hardware = self._hardware()
        accepted = init_data.attestation.tees
        if accepted and self.tee not in accepted:
            raise AttestError(
                ErrorCode.TEE_UNAVAILABLE,
                f"the init-data accepts {' or '.join(accepted)} only, and this VM's TEE is {self.tee}",
            )
        if hardware is None:
            return
        hardware.bind(init_data)
        if init_data.text:
            said = {"algorithm": init_data.algorithm, "digest": init_data.digest.hex()}
            hardware.record(event_log.OURS, "InitData", said)

    def attester(self, init_data: InitData) -> Attester:
        """By the rules above. Raises AttestError(TEE_UNAVAILABLE, SAMPLE_NOT_ALLOWED)."""
        hardware = self._hardware()
        if hardware is not None:
            return hardware
        if not init_data.attestation.insecure_sample_evidence:
            raise AttestError(
                ErrorCode.SAMPLE_NOT_ALLOWED,
                "cannot get evidence: no TEE, and the init-data does not allow sample evidence",
            )
        return SampleAttester()

    def evidence(self, init_data: InitData, report_data: bytes) -> bytes:
        """Fresh evidence as JSON of {tee, evidence}. Raises AttestError."""
        attester = self.attester(init_data)
        return msgspec.json.encode(
            {"tee": attester.tee, "evidence": attester.evidence(report_data)}
        )

    def record(self, domain: str, operation: str, content: dict[str, str] | str) -> bool:
        """Write an event into the hardware's log; False where there is none. Raises AttestError."""
        hardware = self._hardware()
        return hardware is not None and hardware.record(domain, operation, content)

    def _hardware(self) -> Attester | None:
        if self._refusal is not None:
            raise self._refusal
        return self._found
