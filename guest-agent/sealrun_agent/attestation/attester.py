"""What every kind of evidence offers, and which kind this VM has.

One module per TEE; each has one required method. Detection looks at the hardware alone: sample
evidence is no TEE and never found, only chosen (choice.py).
"""

import os
from typing import Final, Protocol

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import AttestError

# Kernel interfaces through which a TEE gives evidence (kbs-protocol, 7).
_INTERFACES: Final = (
    "/dev/sev-guest",
    "/dev/tdx_guest",
    "/sys/kernel/config/tsm/report",
)


class Attester(Protocol):
    """A source of evidence about this VM."""

    @property
    def tee(self) -> str:
        """The kind, as KBS names it: `snp`, `tdx`, `sample`, …"""

    def evidence(self, report_data: bytes) -> dict[str, object]:
        """KBS's `primary_evidence`: a JSON object that binds `report_data`, a hash of 32 to 64 bytes,
        into what the TEE signs. Raises AttestError(TEE_UNAVAILABLE)."""


def detect(root: str = "") -> Attester | None:
    """The hardware's attester; None where the kernel offers no TEE. `root` is put before the paths.

    Raises AttestError(TEE_UNAVAILABLE) where there is a TEE that this agent cannot use: it must not
    be mistaken for a machine without one."""
    for path in _INTERFACES:
        if os.path.exists(root + path):
            raise AttestError(
                ErrorCode.TEE_UNAVAILABLE,
                f"cannot get evidence: the kernel offers {path}, which this agent does not support",
            )
    return None
