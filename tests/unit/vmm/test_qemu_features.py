"""What a QEMU binary can do is asked of it before anything starts."""

import dataclasses
import shutil
from pathlib import Path

import pytest
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.qemu import features
from sealrun_vmm.spec import Accelerator, Tee, VmSpec

PLAIN = VmSpec(
    name="x", accelerator=Accelerator.KVM, cpus=1, memory_mib=1, kernel="", initrd="", cmdline=""
)


def qemu(tmp_path: Path, script: str) -> str:
    path = tmp_path / "qemu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def required(binary: str, tee: Tee) -> None:
    features.require(binary, dataclasses.replace(PLAIN, tee=tee))


VERSION = "[ $1 = --version ] && echo 'QEMU emulator version %s (Debian 1:x)' && exit"


def test_a_plain_vm_asks_nothing() -> None:
    required("/nowhere", Tee.NONE)


@pytest.mark.parametrize(
    ("tee", "old", "needed"), [(Tee.SNP, "9.0.2", "9.1"), (Tee.TDX, "10.0.2", "10.1")]
)
def test_too_old(tmp_path: Path, tee: Tee, old: str, needed: str) -> None:
    with pytest.raises(HostUnfit, match=f"with {tee} by QEMU .*: it is too old") as caught:
        required(qemu(tmp_path, VERSION % old), tee)
    assert f"install QEMU {needed} or newer" in caught.value.remedy


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.TDX, Tee.TPM])
def test_built_without_it(tmp_path: Path, tee: Tee) -> None:
    binary = qemu(tmp_path, VERSION % "11.0.1" + "\necho 'List of: sev-guest'")
    with pytest.raises(HostUnfit, match="it was built without"):
        required(binary, tee)


def test_built_with_it(tmp_path: Path) -> None:
    binary = qemu(tmp_path, VERSION % "11.0.1" + "\necho '  sev-snp-guest'")
    required(binary, Tee.SNP)


def test_no_qemu_at_all(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="does not tell its version"):
        required("/bin/true", Tee.SNP)
    with pytest.raises(HostUnfit, match="cannot run /nowhere: No such file"):
        required("/nowhere", Tee.SNP)


def test_this_machines_qemu_has_a_tpm_and_no_tdx() -> None:
    binary = shutil.which("qemu-system-x86_64")
    assert binary, "qemu-system-x86 is not installed: run tests/run"
    required(binary, Tee.TPM)
    with pytest.raises(HostUnfit, match="cannot start a VM with tdx"):
        required(binary, Tee.TDX)  # Debian 12's is 7.2, its backport 10.0
