"""Whether this host's kernel can confine the VMM to its files (linux/landlock.h)."""

import ctypes
import os
from typing import Final

ABI: Final = 3  # what Cloud Hypervisor insists on; Linux 6.2
_SYS_LANDLOCK_CREATE_RULESET: Final = 444
_VERSION: Final = 1

_libc = ctypes.CDLL(None, use_errno=True)


def obstacle() -> str | None:
    """Why Landlock cannot be used here, as the end of a sentence; None where it can."""
    version = _libc.syscall(_SYS_LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < 0:
        return f"the kernel has none: {os.strerror(ctypes.get_errno())}"
    if version < ABI:
        return f"the kernel's is of version {version}, and it must be {ABI} at least"
    return None
