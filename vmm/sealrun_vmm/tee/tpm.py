"""A virtual TPM: measured boot and signed quotes, by an emulator (swtpm) that runs on the host.

It protects nothing from the host, which runs the emulator. Its use is where the host is trusted, to
prove to others what was booted; and it is the one kind of evidence that every machine can produce.
"""

from typing import Final

from sealrun_vmm import binary
from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.spec import Tee
from sealrun_vmm.tee import tpm_state
from sealrun_vmm.tee.launch import Launch, Options
from sealrun_vmm.tee.platform import Platform

DRIVERS: Final = (DriverName.QEMU, DriverName.CLOUD_HYPERVISOR)
PROGRAM: Final = "swtpm"
SOCKET: Final = "tpm.sock"
_REMEDY: Final = "install Debian's package swtpm, or set vm.swtpm in sealrun.toml"
_SAYS: Final = ("swtpm", "cmdarg-seccomp")  # its type, and the feature that is used; swtpm(8)

# One file with code and an empty store of variables: every VM starts from the same.
FIRMWARE: Final = ("/usr/share/ovmf/OVMF.fd", "/usr/share/edk2/ovmf/OVMF_CODE.fd")


def require(_platform: Platform, options: Options) -> None:
    """Raise HostUnfit where there is no emulator, or no place for the seeds of its keys."""
    emulator(options.swtpm)
    tpm_state.require(options.tpm_state)


def emulator(given: str = "") -> str:
    """The TPM emulator's path. Raises HostUnfit."""
    path = binary.find(given or PROGRAM, _REMEDY, ", the TPM emulator")
    (answer,) = binary.ask(path, ("socket", "--print-capabilities"), remedy=_REMEDY)
    if (failure := answer.failure()) is not None:
        raise HostUnfit(f"cannot use {path}: {failure}", remedy=_REMEDY)
    if not all(f'"{word}"' in answer.text for word in _SAYS):
        raise HostUnfit(f"cannot use {path}: it does not say that it is {PROGRAM}", remedy=_REMEDY)
    return path


def launch(driver: DriverName, options: Options) -> Launch:
    """A VM with a TPM that is told kernel, initrd and command line: by the firmware that starts them, or,
    where the VMM starts the kernel itself, by whoever launches the VM (tpm_relay.py).

    Raises HostUnfit."""
    if driver is DriverName.CLOUD_HYPERVISOR:
        return Launch(tee=Tee.TPM, tpm=SOCKET)
    from sealrun_vmm.tee import firmware  # with Cloud Hypervisor there is none

    found = firmware.find(
        options.firmware,
        FIRMWARE,
        "firmware that measures what it boots",
        "install Debian's package ovmf, or set vm.firmware in sealrun.toml",
        firmware.ovmf,
    )
    return Launch(tee=Tee.TPM, tpm=SOCKET, firmware=found)
