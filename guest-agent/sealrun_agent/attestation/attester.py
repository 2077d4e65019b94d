"""What every kind of evidence offers, and which kind this VM has.

One module per TEE; each has one required method, `quote`. Detection looks at the hardware alone:
sample evidence is no TEE and never found, only chosen (choice.py).
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import ClassVar, Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation import event_log
from sealrun_agent.attestation.report_data import canonical
from sealrun_agent.errors import AttestError

# Kernel interfaces through which a TEE gives evidence (kbs-protocol, 7), and the module for each, in
# the order in which they are looked for: a VM with a TEE may have a TPM besides.
_INTERFACES: Final = (
    ("/dev/tdx_guest", "tdx"),
    ("/dev/sev-guest", "snp"),
    ("/dev/tpm0", "tpm"),
)


class Attester(ABC):
    """A source of evidence about this VM. Any thread.

    tee: the kind, as KBS names it. algorithm: of the register that the agent extends.
    register: its number in event logs; None where there is no such register."""

    tee: ClassVar[str]
    algorithm: ClassVar[str] = "sha384"

    def __init__(self, register: int | None = None) -> None:
        self.register = register
        self._lock = threading.Lock()
        self._entries: dict[bytes, bytes] = {}  # by digest

    @abstractmethod
    def quote(self, report_data: bytes, entries: bytes) -> dict[str, object]:
        """KBS's `primary_evidence`: a JSON object that binds `report_data`, a hash of 32 to 64 bytes,
        into what the TEE signs. entries: the agent's events, to stand behind the firmware's.

        Raises AttestError(TEE_UNAVAILABLE)."""

    def bind(self, init_data: InitData) -> None:
        """Make sure that the TEE vouches for this init-data: compare it with what the VM was launched
        with, or extend a register with it. Once, before any of it is obeyed.

        Raises AttestError(INIT_DATA_MISMATCH, INIT_DATA_INVALID, TEE_UNAVAILABLE)."""
        raise AttestError(
            ErrorCode.TEE_UNAVAILABLE, f"cannot compare the init-data with the launch of {self.tee}"
        )

    def extend(self, digest: bytes) -> None:
        """Extend `register`. Raises AttestError(TEE_UNAVAILABLE)."""
        raise AttestError(ErrorCode.TEE_UNAVAILABLE, f"{self.tee} has no register to extend")

    def evidence(self, report_data: bytes) -> dict[str, object]:
        """As `quote`, with all that was recorded until now."""
        with self._lock:
            return self.quote(report_data, b"".join(self._entries.values()))

    def record(self, domain: str, operation: str, content: Mapping[str, str] | str) -> bool:
        """Write an event into the log and the register: the first of its kind, since what a host may
        repeat at will must not fill the log. False where there is no register. content: JSON, or text
        without line feeds.

        Raises AttestError(TEE_UNAVAILABLE)."""
        if self.register is None:
            return False
        text = content if isinstance(content, str) else canonical(content).decode()
        new = event_log.entry(self.register, self.algorithm, domain, operation, text)
        with self._lock:
            if new.digest in self._entries:
                return True
            if len(self._entries) >= limits.EVENTS:
                raise AttestError(ErrorCode.TEE_UNAVAILABLE, "cannot record: the event log is full")
            self.extend(new.digest)
            self._entries[new.digest] = new.data
        return True


def detect(root: str = "") -> Attester | None:
    """The hardware's attester; None where the kernel offers no TEE. `root` is put before the paths.

    Raises AttestError(TEE_UNAVAILABLE) where there is a TEE that cannot be used: it must not be
    mistaken for a machine without one."""
    for path, name in _INTERFACES:
        if os.path.exists(root + path):
            module = import_module(f"sealrun_agent.attestation.{name}")
            found: Attester = module.attester(root)
            return found
    return None


def unavailable(what: str, error: OSError) -> AttestError:
    """The error for a TEE that does not answer. what: as in "cannot …"."""
    return AttestError(ErrorCode.TEE_UNAVAILABLE, f"cannot {what}: {error.strerror or error}")


def mismatch(tee: str, field: str) -> AttestError:
    """The error for init-data that is not what the VM was launched with."""
    return AttestError(
        ErrorCode.INIT_DATA_MISMATCH, f"the init-data is not what {field} of this {tee} VM says"
    )
