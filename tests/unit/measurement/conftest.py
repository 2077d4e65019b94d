"""A VM whose kernel, initrd and firmware are small files."""

from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from sealrun_vmm.spec import Accelerator, Tee, VmSpec


@pytest.fixture
def measured(tmp_path: Path) -> VmSpec:
    files = {
        "vmlinuz": firmwares.kernel(),
        "initrd": bytes(range(256)) * 40,
        "OVMF.fd": firmwares.ovmf(),
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    return VmSpec(
        name="x",
        accelerator=Accelerator.KVM,
        cpus=1,
        memory_mib=1024,
        kernel=str(tmp_path / "vmlinuz"),
        initrd=str(tmp_path / "initrd"),
        cmdline="console=ttyS0 quiet",
        tee=Tee.TPM,
        firmware=str(tmp_path / "OVMF.fd"),
        tpm="tpm.sock",
    )
