"""How far the QEMU that is installed here takes the arguments for SEV-SNP and TDX.

Without the hardware none gets to a guest. What is shown is where each one stops, and that sealrun
refuses before it what QEMU would refuse. docs/tees.md has what other versions said.
"""

import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from sealrun_vmm import kvm
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.qemu import features
from sealrun_vmm.qemu.arguments import arguments
from sealrun_vmm.spec import Accelerator, Tee, VmSpec

pytestmark = pytest.mark.vm

OBJECTS = {Tee.SNP: "sev-snp-guest", Tee.TDX: "tdx-guest"}
UNKNOWN = "Parameter 'qom-type' does not accept value '{}'"
NO_HARDWARE = (
    "not supported by KVM",  # KVM is there, and has no such VM
    "KVM required",
    "failed to initialize kvm",
    "Could not access KVM kernel module",
)


@pytest.fixture
def qemu() -> str:
    found = shutil.which("qemu-system-x86_64")
    assert found
    return found


@pytest.mark.parametrize("tee", OBJECTS)
def test_how_far_it_gets(qemu: str, tee: Tee, tmp_path: Path) -> None:
    if kvm.obstacle() is None:
        pytest.skip("this machine may have the hardware: that is another test")
    for name, data in (
        ("fw", firmwares.ovmf(256)),
        ("vmlinuz", firmwares.kernel()),
        ("initrd", b"an initrd"),
    ):
        (tmp_path / name).write_bytes(data)
    spec = VmSpec(
        name="x",
        accelerator=Accelerator.KVM,
        cpus=1,
        memory_mib=256,
        kernel=str(tmp_path / "vmlinuz"),
        initrd=str(tmp_path / "initrd"),
        cmdline="quiet",
        tee=tee,
        firmware=str(tmp_path / "fw"),
        cpu_model="EPYC-v4" if tee is Tee.SNP else "",
        host_data=bytes(32 if tee is Tee.SNP else 48),
    )
    with socket.socket(socket.AF_UNIX) as channel:  # which newer ones connect before all else
        channel.bind(str(tmp_path / spec.channel))
        channel.listen(1)
        done = subprocess.run(
            arguments(qemu, spec), cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 1
    try:
        features.require(qemu, spec)
    except HostUnfit:
        assert UNKNOWN.format(OBJECTS[tee]) in done.stderr
    else:
        assert any(words in done.stderr for words in NO_HARDWARE), done.stderr
