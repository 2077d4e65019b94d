"""The firmware of a VM with a TEE: where it is, and that it is of the kind that TEE and VMM need.

A file of another kind is told by the VMM in words of its own, or by a VM that never speaks. So what the
format defines is looked for before: OVMF's table of entries, SEV's and TDX's metadata in it (see
measurement/ovmf.py), the headers of an IGVM file (measurement/igvm.py).
"""

import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

from sealrun_vmm.errors import CannotMeasure, HostUnfit
from sealrun_vmm.measurement import igvm, snp
from sealrun_vmm.measurement.ovmf import Ovmf

_BYTES: Final = 64 << 20  # OVMF has 4 MiB at most


def find(
    given: str,
    places: Sequence[str],
    what: str,
    remedy: str,
    look: Callable[[bytes], object],
) -> str:
    """The absolute path of the file `given`, or else of the first of `places` that is there.

    what: it is to be. look: one of the functions below. Raises HostUnfit."""
    found = next((path for path in ([given] if given else places) if os.path.lexists(path)), None)
    if found is None:
        where = given or " or ".join(places)
        raise HostUnfit(
            f"cannot find {what}" + (f": there is no {where}" if where else ""), remedy=remedy
        )
    try:
        look(_content(found))
    except FileNotFoundError as error:
        raise HostUnfit(
            f"cannot use {found} as {what}: it is a link to nothing", remedy=remedy
        ) from error
    except (OSError, CannotMeasure) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise HostUnfit(f"cannot use {found} as {what}: {why}", remedy=remedy) from error
    return os.path.abspath(found)


def ovmf(data: bytes) -> None:
    """Any build of OVMF's. Raises CannotMeasure."""
    Ovmf(data)


def ovmf_for_sev(data: bytes) -> None:
    """One that has the measured page for the hashes of what it boots. Raises CannotMeasure."""
    snp.require_hashes(Ovmf(data))


def ovmf_for_tdx(data: bytes) -> None:
    """One that says what a TD begins with. Raises CannotMeasure."""
    if not Ovmf(data).tdx_sections():
        raise CannotMeasure("the firmware's TDVF metadata is empty")


def igvm_for_snp(data: bytes) -> None:
    """An IGVM file of Cloud Hypervisor's. Raises CannotMeasure."""
    igvm.require_snp(data)


def _content(path: str) -> bytes:
    """Raises OSError, CannotMeasure."""
    # Looked at before it is opened: whoever opens a pipe waits for somebody who writes.
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode):
        raise CannotMeasure("it is no file")
    if about.st_size > _BYTES:
        raise CannotMeasure(f"it is larger than {_BYTES >> 20} MiB")
    with open(path, "rb") as stream:
        return stream.read(_BYTES)
