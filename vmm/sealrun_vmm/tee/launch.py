"""What a TEE asks of a VM's launch, and from what that is chosen.

The modules of this folder that are called as one TEE have these names:

    DRIVERS    the VMMs that can start it, the preferred one first
    require    raises HostUnfit where this machine does not have the TEE, naming the missing piece
    launch     the `Launch` for one VMM; raises HostUnfit, SpecRefused for what cannot be honoured
"""

from dataclasses import dataclass

from sealrun_vmm.spec import Tee


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator says and the tenant gave.

    firmware: path of the firmware's file; empty: the system's own. swtpm: path of the TPM emulator;
    empty: the system's own. tpm_state: the directory with the seeds of its keys. quote_service: socket of the service that signs TDX quotes.
    digest: of the init-data; empty where there is none."""

    firmware: str = ""
    swtpm: str = ""
    tpm_state: str = ""
    quote_service: str = ""
    digest: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The members of VmSpec that depend on the TEE; see there."""

    tee: Tee = Tee.NONE
    firmware: str = ""
    tpm: str = ""
    cpu_model: str = ""
    host_data: bytes = b""
    quote_service: str = ""
