"""The host's half of a sandbox's scratch disk: a sparse file without a name, which the VMM inherits.

Nothing has to remove it: it goes with the last process that has it open, whatever ends that.
"""

import errno
import os
import secrets
from typing import Final

from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import NO_SCRATCH

from sealrun_runtime.settings import VmSettings

LEAST_MIB: Final = 16
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
        file = _nameless(place)
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


def _nameless(place: str) -> int:
    """Raises OSError."""
    try:
        return os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    # As on overlayfs before Linux 6.3: a name for a moment. A shim that is killed in it leaves no more than
    # an empty file.
    path = os.path.join(place, f"sealrun-scratch-{secrets.token_hex(16)}")
    file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return file
