"""What can go wrong below «give me a VM with this spec».

    VmmError
    ├── HostUnfit      this machine lacks something (a binary, a device, a version); names it
    ├── SpecRefused    the driver cannot honour the VmSpec, or a change of it; nothing was done
    ├── LaunchFailed   the VMM did not start, or died during the start; carries its last words
    ├── ChangeFailed   the VMM did not carry out a change of the running VM
    └── CannotMeasure  a firmware, an IGVM file or a kernel is not what it would have to be

Texts are lower case, without a full stop: "cannot start qemu: …"; `remedy` says what to do.
"""


class VmmError(Exception):
    """Base of all errors of this package."""

    def __init__(self, text: str, *, remedy: str = "") -> None:
        super().__init__(text)
        self.remedy = remedy


class HostUnfit(VmmError):
    """The host lacks what the spec needs."""


class SpecRefused(VmmError):
    """The spec asks for something that this driver cannot do."""


class ChangeFailed(VmmError):
    """A change of the running VM came to nothing."""


class LaunchFailed(VmmError):
    """The VMM process could not be started, or ended before the VM ran."""


class CannotMeasure(VmmError):
    """What a TEE will say of a VM cannot be computed from the files that are there."""
