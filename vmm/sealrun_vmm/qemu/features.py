"""What a QEMU binary is: its version, and what it was built with, as it says itself."""

import re
import subprocess
from typing import Final

from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.process import printable
from sealrun_vmm.spec import Tee, VmSpec

_SECONDS: Final = 20.0
_VERSION: Final = re.compile(r"version (\d+)\.(\d+)")

# What a TEE needs: the QEMU that has it first, and how that QEMU is asked for it.
_NEEDS: Final = {
    Tee.SNP: ((9, 1), "-object", "sev-snp-guest"),
    Tee.TDX: ((10, 1), "-object", "tdx-guest"),
    Tee.TPM: ((2, 11), "-tpmdev", "emulator"),
}


def require(binary: str, spec: VmSpec) -> None:
    """Raise HostUnfit where the program `binary` cannot do what `spec` asks for."""
    if spec.tee not in _NEEDS:
        return
    oldest, option, word = _NEEDS[spec.tee]
    needed = ".".join(map(str, oldest))
    match = _VERSION.search(_ask(binary, "--version"))
    if match is None:
        raise HostUnfit(f"cannot use {binary}: it does not tell its version like QEMU")
    if (int(match[1]), int(match[2])) < oldest:
        raise HostUnfit(
            f"cannot start a VM with {spec.tee} by QEMU {match[1]}.{match[2]}: it is too old",
            remedy=f"install QEMU {needed} or newer, or set vm.qemu in sealrun.toml",
        )
    if word not in _ask(binary, option, "help").split():
        raise HostUnfit(
            f"cannot start a VM with {spec.tee} by {binary}: it was built without {word}",
            remedy="install a QEMU that was built with it, or set vm.qemu in sealrun.toml",
        )


def _ask(binary: str, *words: str) -> str:
    """What it prints. Raises HostUnfit."""
    try:
        done = subprocess.run(
            [binary, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # where it lists its TPMs
            text=True,
            errors="replace",
            timeout=_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        words_of_it = (error.strerror if isinstance(error, OSError) else "") or "it hangs"
        raise HostUnfit(f"cannot run {binary}: {printable(words_of_it)}") from error
    return done.stdout
