"""Whether this host can run a VM by hardware.

The device node alone says nothing: software implementations of KVM exist on which a stock kernel
does not boot, and they show neither vmx nor svm.
"""

import fcntl
import os
import re
from typing import Final

from sealrun_vmm.spec import Accelerator

_KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h
_API_VERSION = 12
JOIN: Final = "add the user to the group kvm and log in again"
_FLAG = re.compile(r"^flags\s*:.*\b(?:vmx|svm)\b", re.M)


def obstacle(device: str = "/dev/kvm", cpuinfo: str = "/proc/cpuinfo") -> str | None:
    """Why KVM cannot be used here, as the end of a sentence; None where it can."""
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{device}: {error.strerror}"
    try:
        version = fcntl.ioctl(descriptor, _KVM_GET_API_VERSION)
    except OSError as error:
        return f"{device} is no KVM device: {error.strerror}"
    finally:
        os.close(descriptor)
    if version != _API_VERSION:
        return f"{device} speaks version {version} of KVM's interface, not {_API_VERSION}"
    with open(cpuinfo, encoding="utf-8", errors="replace") as stream:
        if not _FLAG.search(stream.read()):
            return "the CPU shows neither vmx nor svm"
    return None


def denied(device: str = "/dev/kvm") -> bool:
    """Whether there is a KVM that is not this user's to open: a matter of groups (`JOIN`)."""
    try:
        os.stat(device)
    except OSError:
        return False
    return not os.access(device, os.R_OK | os.W_OK, effective_ids=True)


def remedy(other: str) -> str:
    """What is to be done where KVM cannot be used; `other` where the user may use it."""
    return JOIN if denied() else other


def choose_accelerator() -> Accelerator:
    """What `accelerator = auto` means on this host."""
    return Accelerator.TCG if obstacle() else Accelerator.KVM
