"""What a QEMU binary can do is asked of it before anything starts."""

import dataclasses
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


def program(tmp_path: Path, version: str, listed: str = "", accelerators: str = "tcg kvm") -> str:
    script = f"case $1 in --version) echo 'QEMU emulator version {version} (Debian 1:x)';;\n"
    script += f"-accel) printf 'Accelerators:\\n{accelerators}\\n';; *) echo '{listed}';; esac"
    return qemu(tmp_path, script)


@pytest.mark.parametrize(
    ("tee", "old", "needed"),
    [
        (Tee.NONE, "6.2.0", "7.2"),
        (Tee.TPM, "7.1.0", "7.2"),
        (Tee.SNP, "9.0.2", "9.1"),
        (Tee.TDX, "10.0.2", "10.1"),
    ],
)
def test_too_old(tmp_path: Path, tee: Tee, old: str, needed: str) -> None:
    with pytest.raises(HostUnfit, match=r"by QEMU .*: it is too old") as caught:
        required(program(tmp_path, old), tee)
    assert f"install QEMU {needed} or newer" in caught.value.remedy


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.TDX, Tee.TPM])
def test_built_without_it(tmp_path: Path, tee: Tee) -> None:
    with pytest.raises(HostUnfit, match="it was built without") as caught:
        required(program(tmp_path, "11.0.1", "List of: sev-guest"), tee)
    assert "set vm.qemu" in caught.value.remedy


def test_built_with_it(tmp_path: Path) -> None:
    required(program(tmp_path, "11.0.1", "  sev-snp-guest"), Tee.SNP)


def test_built_without_the_accelerator(tmp_path: Path) -> None:
    with pytest.raises(HostUnfit, match="it was built without the accelerator kvm") as caught:
        required(program(tmp_path, "11.0.1", accelerators="tcg"), Tee.NONE)
    assert "set vm.accelerator to auto" in caught.value.remedy


@pytest.mark.parametrize("name", ["qemu-img", "qemu-nbd"])
def test_another_program_of_qemus(tmp_path: Path, name: str) -> None:
    with pytest.raises(HostUnfit, match="it does not say that it is QEMU"):
        required(qemu(tmp_path, f"echo '{name} version 10.2.0 (Debian 1:x)'"), Tee.NONE)


def test_this_machines_qemu_has_a_tpm_and_no_tdx() -> None:
    binary = features.find("")
    required(binary, Tee.NONE)
    required(binary, Tee.TPM)
    with pytest.raises(HostUnfit, match="cannot start a VM with tdx"):
        required(binary, Tee.TDX)  # Debian 12's is 7.2, its backport 10.0
