"""What a TEE asks of a VM's launch, and from what that is chosen.

Each module of this folder but `platform` and `choice` is one TEE and has these names:

    DRIVERS    the VMMs that can start it, the preferred one first
    require    raises HostUnfit where this machine does not have the TEE, naming the missing piece
    launch     the `Launch` for one VMM; raises HostUnfit, SpecRefused for what cannot be honoured
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.spec import Tee


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the operator says and the tenant gave.

    firmware: path of the firmware's file; empty: the system's own. swtpm: path of the TPM emulator;
    empty: the system's own. quote_service: socket of the service that signs TDX quotes.
    digest: of the init-data; empty where there is none."""

    firmware: str = ""
    swtpm: str = ""
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


def firmware(given: str, places: Sequence[str], what: str, remedy: str) -> str:
    """The file `given`, or the first of `places` that is there. Raises HostUnfit."""
    for path in (given,) if given else places:
        if os.access(path, os.R_OK):
            return path
    where = given or " or ".join(places)
    raise HostUnfit(
        f"cannot find {what}" + (f": there is no {where}" if where else ""), remedy=remedy
    )
