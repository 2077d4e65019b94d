"""Which attester speaks for this VM.

Rules: the hardware's, where there is one, whatever the init-data allows; else sample evidence, if
the tenant's init-data allows it by name; else none, and that is an error.
"""

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation.attester import Attester, detect
from sealrun_agent.attestation.sample import SampleAttester
from sealrun_agent.errors import AttestError


def choose(init_data: InitData, root: str = "") -> Attester:
    """The attester by the rules above. `root` is put before the paths of the kernel's interfaces.

    Raises AttestError(TEE_UNAVAILABLE, SAMPLE_NOT_ALLOWED)."""
    hardware = detect(root)
    if hardware is not None:
        return hardware
    if not init_data.attestation.insecure_sample_evidence:
        raise AttestError(
            ErrorCode.SAMPLE_NOT_ALLOWED,
            "cannot get evidence: no TEE, and the init-data does not allow sample evidence",
        )
    return SampleAttester()
