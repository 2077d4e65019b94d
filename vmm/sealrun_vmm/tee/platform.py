"""What this machine's CPU and kernel offer: read once, then only looked at.

A kernel that cannot use a TEE hides its CPU flag (SNP: where firmware or IOMMU do not play along), so
a flag that is shown means that it can be had; the parameters of the KVM module say that it is on.
"""

import fcntl
import os
import re
from dataclasses import dataclass
from typing import Final

from sealrun_vmm import kvm
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.spec import Tee

_KVM_CHECK_EXTENSION: Final = 0xAE03  # linux/kvm.h, with the following
_KVM_CAP_VM_TYPES: Final = 235
SNP_VM: Final = 4  # KVM_X86_SNP_VM
TDX_VM: Final = 5  # KVM_X86_TDX_VM
_FLAGS: Final = re.compile(r"^flags\s*:(.*)$", re.M)
_RELEASE: Final = re.compile(r"(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """cpu_flags: of the first CPU. kernel: version, such as (6, 11). kvm: why KVM cannot be used, empty
    where it can. vm_types: a bit for each kind of VM that KVM starts. devices: those of `DEVICES` that
    are there. parameters: of the KVM modules, by "module.name"; what is not there is not in it."""

    cpu_flags: frozenset[str] = frozenset()
    kernel: tuple[int, int] = (0, 0)
    kvm: str = ""
    vm_types: int = 0
    devices: frozenset[str] = frozenset()
    parameters: dict[str, str]

    def starts(self, vm_type: int) -> bool:
        """Whether KVM says that it can start this type of VM."""
        return bool(self.vm_types >> vm_type & 1)

    def is_on(self, tee: Tee) -> bool:
        """Whether a KVM module was loaded with the parameter set that is for this TEE."""
        return self.parameters.get(SWITCHES.get(tee, ""), "").upper() in ("Y", "1")

    def require_kernel(self, oldest: tuple[int, int], tee: str) -> None:
        """Raise HostUnfit where the kernel is older than the first one that can use `tee`."""
        if self.kernel < oldest:
            raise HostUnfit(
                f"cannot use {tee}: Linux {_dotted(self.kernel)} is too old",
                remedy=f"boot Linux {_dotted(oldest)} or newer",
            )


DEVICES: Final = ("/dev/sev",)
SWITCHES: Final = {Tee.SNP: "kvm_amd.sev_snp", Tee.TDX: "kvm_intel.tdx"}
"""The parameters of KVM's modules that say that the kernel has a TEE."""


def probe(root: str = "") -> Platform:
    """This machine. `root` is put before the paths that are read; with one, KVM is not asked."""
    match = _FLAGS.search(_read(f"{root}/proc/cpuinfo"))
    release = _RELEASE.match(_read(f"{root}/proc/sys/kernel/osrelease"))
    values = {
        name: _read(f"{root}/sys/module/{name.replace('.', '/parameters/')}").strip()
        for name in SWITCHES.values()
    }
    return Platform(
        cpu_flags=frozenset(match[1].split() if match else ()),
        kernel=(int(release[1]), int(release[2])) if release else (0, 0),
        kvm=(kvm.obstacle(f"{root}/dev/kvm", f"{root}/proc/cpuinfo") or ""),
        vm_types=_vm_types(f"{root}/dev/kvm"),
        devices=frozenset(path for path in DEVICES if os.path.exists(root + path)),
        parameters={name: value for name, value in values.items() if value},
    )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _vm_types(device: str) -> int:
    try:
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return max(0, fcntl.ioctl(descriptor, _KVM_CHECK_EXTENSION, _KVM_CAP_VM_TYPES))
    except OSError:
        return 0
    finally:
        os.close(descriptor)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""
