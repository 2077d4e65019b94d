"""What a QEMU binary is: its version, and what it was built with, as it says itself."""

import re
from collections.abc import Sequence
from typing import Final

from sealrun_vmm import binary
from sealrun_vmm.binary import Answer
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.spec import Tee, VmSpec

PROGRAM: Final = "qemu-system-x86_64"
REMEDY: Final = "install Debian's package qemu-system-x86, or set vm.qemu in sealrun.toml"

_VERSION: Final = re.compile(r"^QEMU emulator version (\d+)\.(\d+)", re.M)
_OLDEST: Final = (7, 2)  # that was tried; machine option i8042 came with 7.0
_LESS: Final = (
    "set vm.accelerator to auto in sealrun.toml, or vm.qemu to one that was built with it"
)

# What a TEE needs: the QEMU that has it first, and how that QEMU is asked for it.
_NEEDS: Final = {
    Tee.SNP: ((9, 1), "-object", "sev-snp-guest"),
    Tee.TDX: ((10, 1), "-object", "tdx-guest"),
    Tee.TPM: (_OLDEST, "-tpmdev", "emulator"),
}


def find(given: str) -> str:
    """QEMU's path; given: the operator's, empty: the system's own. Raises HostUnfit."""
    return binary.find(given or PROGRAM, REMEDY)


def require(path: str, spec: VmSpec) -> None:
    """Raise HostUnfit where the program `path` cannot do what `spec` asks for."""
    # Both at once: each is a start of QEMU, of which most is the loading of its libraries.
    version, accelerators = binary.ask(path, ("--version",), ("-accel", "help"), remedy=REMEDY)
    _require_version(path, version, spec.tee)
    if spec.accelerator.value not in _said(path, accelerators):
        raise HostUnfit(
            f"cannot use {path}: it was built without the accelerator {spec.accelerator}",
            remedy=_LESS,
        )
    if spec.tee not in _NEEDS:
        return
    _, option, word = _NEEDS[spec.tee]
    (listed,) = binary.ask(path, (option, "help"), remedy=REMEDY)
    if word not in listed.text.split():
        raise HostUnfit(
            f"cannot start a VM with {spec.tee} by {path}: it was built without {word}",
            remedy="install a QEMU that was built with it, or set vm.qemu in sealrun.toml",
        )


def _require_version(path: str, answer: Answer, tee: Tee) -> None:
    _said(path, answer)
    match = _VERSION.search(answer.text)
    if match is None:
        raise HostUnfit(f"cannot use {path}: it does not say that it is QEMU", remedy=REMEDY)
    oldest = _NEEDS[tee][0] if tee in _NEEDS else _OLDEST
    if (int(match[1]), int(match[2])) < oldest:
        what = f"a VM with {tee}" if tee is not Tee.NONE else "a VM"
        raise HostUnfit(
            f"cannot start {what} by QEMU {match[1]}.{match[2]}: it is too old",
            remedy=f"install QEMU {'.'.join(map(str, oldest))} or newer, or set vm.qemu in sealrun.toml",
        )


def _said(path: str, answer: Answer) -> Sequence[str]:
    """The words of an answer. Raises HostUnfit where the program failed instead."""
    if (failure := answer.failure()) is not None:
        raise HostUnfit(f"cannot use {path}: {failure}", remedy=REMEDY)
    return answer.text.split()
