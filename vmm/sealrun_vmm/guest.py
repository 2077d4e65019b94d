"""What every driver knows of the guest: what its image takes to boot, and what it said at its end."""

import os
from typing import Final

from sealrun_vmm import growth, kernel, process
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import VmSpec

_KERNEL_MIB: Final = 92  # measured: 176 MiB boots with an initrd of 42 MiB, 168 does not
_FIRMWARE_MIB: Final = 64  # measured, OVMF: 288 MiB boots with an initrd of 42 MiB, 256 does not
_BOUNCE_MIB: Final = 64  # which the kernel sets aside where memory can come to lie above 4 GiB
_CONSOLE_TAIL_BYTES: Final = 16 << 10
_FAILURES: Final = (
    "sealrun-agent: boot failed: ",
    "sealrun-agent: failed: ",
    "Kernel panic - not syncing: ",
)


def check(spec: VmSpec) -> None:
    """Raise HostUnfit where the image cannot be read or the host has not the memory, SpecRefused where the
    image's kernel cannot be booted or it gets too little memory."""
    files = (("kernel", spec.kernel), ("initrd", spec.initrd), ("firmware", spec.firmware))
    for what, path in files:
        if path and not os.access(path, os.R_OK):
            raise HostUnfit(f"cannot read the guest's {what} {path}", remedy="run install.sh")
    cause = kernel.obstacle(spec.kernel, by_firmware=bool(spec.firmware))
    if cause is not None:
        raise SpecRefused(
            f"cannot boot the guest's kernel {spec.kernel}: {cause}",
            remedy="build the guest image with guest-agent/image/build, or use a kernel with "
            "CONFIG_PVH",
        )
    here = _host_memory_mib()
    if spec.memory_mib > here:
        raise HostUnfit(
            f"cannot give a VM {spec.memory_mib} MiB: this host has {here} MiB, swap included",
            remedy="lower vm.memory in sealrun.toml or io.sealrun.memory",
        )
    needed = least_memory_mib(spec)
    if spec.memory_mib < needed:
        raise SpecRefused(
            f"cannot boot this guest image in {spec.memory_mib} MiB: it needs {needed} MiB",
            remedy="raise vm.memory in sealrun.toml or io.sealrun.memory",
        )


def least_memory_mib(spec: VmSpec) -> int:
    """What the guest image takes to boot: for a moment the initrd is there twice, and the firmware
    has a copy of its own of all that it is given. With less, the kernel panics for reasons that
    nobody would guess, and the firmware offers a shell."""
    initrd = os.path.getsize(spec.initrd)
    if not spec.firmware:
        bounce = _BOUNCE_MIB if growth.room_mib(spec) else 0
        return 2 * initrd // 2**20 + _KERNEL_MIB + bounce
    given = initrd + os.path.getsize(spec.kernel)
    return (2 * initrd + given) // 2**20 + _KERNEL_MIB + _FIRMWARE_MIB


def _host_memory_mib() -> int:
    """What Linux gives a process at most, in its usual mode: all memory and swap (vm/overcommit-accounting)."""
    with open("/proc/meminfo", encoding="ascii") as stream:
        sizes = dict(line.split(":", 1) for line in stream)
    return sum(int(sizes[name].split()[0]) for name in ("MemTotal", "SwapTotal")) >> 10


def failure(console: str) -> str | None:
    """What the guest's kernel or agent said on the console before it gave up, if it did."""
    for line in reversed(process.tail(console, _CONSOLE_TAIL_BYTES)):
        for mark in _FAILURES:
            _, found, words = line.partition(mark)
            if found:
                return mark + words
    return None
