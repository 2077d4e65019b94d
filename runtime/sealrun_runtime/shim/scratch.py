"""The host's half of a sandbox's scratch disk: a sparse file without a name, which the VMM inherits.

Nothing has to remove it: it goes with the last process that has it open, whatever ends that.
"""

import os
from typing import Final

from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import NO_SCRATCH

from sealrun_runtime.settings import VmSettings

LEAST_MIB: Final = 64
_MIB: Final = 1 << 20


def make(settings: VmSettings) -> int:
    """A descriptor of the file, or NO_SCRATCH where the settings want none. Raises HostUnfit,
    SpecRefused."""
    if settings.scratch == 0:
        return NO_SCRATCH
    if settings.scratch < LEAST_MIB:
        raise SpecRefused(
            f"cannot make a scratch disk of {settings.scratch} MiB: it needs {LEAST_MIB} MiB",
            remedy="raise vm.scratch in sealrun.toml or io.sealrun.scratch, or set it to 0",
        )
    place = settings.scratch_directory
    try:
        file = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            os.truncate(file, settings.scratch * _MIB)
        except OSError:
            os.close(file)
            raise
    except OSError as error:
        raise HostUnfit(
            f"cannot make a scratch disk of {settings.scratch} MiB in {place}: {error.strerror}",
            remedy="set vm.scratch_directory in sealrun.toml to a directory on a disk with space",
        ) from error
    return file
