"""How far the Cloud Hypervisor on PATH takes what sealrun asks of it for SEV-SNP.

Without the hardware none gets to a guest. One that was built for it takes the configuration and reads the IGVM file, and
stops where KVM has no such VM; any other is refused before it starts. It needs a /dev/kvm that it can open,
and no CPU that can run a VM.
"""

import asyncio
import os
import shutil
from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from fixtures.recording import Recording
from sealrun_vmm.cloud_hypervisor import landlock, program
from sealrun_vmm.cloud_hypervisor.confidential import FEATURES
from sealrun_vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from sealrun_vmm.errors import HostUnfit, LaunchFailed
from sealrun_vmm.spec import Accelerator, Tee, VmSpec
from sealrun_vmm.tee import platform

BINARY = shutil.which("cloud-hypervisor")

pytestmark = [
    pytest.mark.vm,
    pytest.mark.skipif(BINARY is None, reason="there is no cloud-hypervisor on PATH"),
]


def snp_spec(directory: Path) -> VmSpec:
    """A VM with SEV-SNP, of files that are made in `directory`."""
    for name, data in (
        ("firmware", firmwares.igvm(firmwares.ovmf(256), [bytes(4096)])),
        ("vmlinuz", firmwares.kernel()),
        ("initrd", b"an initrd"),
    ):
        (directory / name).write_bytes(data)
    return VmSpec(
        name="x",
        accelerator=Accelerator.KVM,
        cpus=1,
        memory_mib=256,
        kernel=str(directory / "vmlinuz"),
        initrd=str(directory / "initrd"),
        cmdline="quiet",
        tee=Tee.SNP,
        firmware=str(directory / "firmware"),
        host_data=bytes(range(32)),
        landlock=landlock.obstacle() is None,
    )


def test_how_far_snp_gets(tmp_path: Path) -> None:
    assert BINARY is not None
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("cloud-hypervisor does not start without a /dev/kvm that it can open")
    if platform.probe().is_on(Tee.SNP):
        pytest.skip("this machine has SEV-SNP: that is another test")
    recording = Recording(BINARY, tmp_path / "recording")
    driver = CloudHypervisorDriver(recording.binary, kvm_obstacle=lambda: None)
    (tmp_path / "sandbox").mkdir()
    launch = driver.launch(snp_spec(tmp_path), str(tmp_path / "sandbox"))
    missing = FEATURES[Tee.SNP] - program.identify(BINARY).features
    if missing:
        with pytest.raises(HostUnfit) as unfit:
            asyncio.run(launch)
        without = ", ".join(sorted(missing))
        assert str(unfit.value).endswith(f": it was built without {without}")
        assert f"install a Cloud Hypervisor that was built with {without}" in unfit.value.remedy
        assert recording.lives() == [], "it was not started"
        return
    with pytest.raises(LaunchFailed) as failed:
        asyncio.run(launch)
    # It panics, which is the last thing that it says of it.
    assert "cloud-hypervisor refused vm.boot: " in str(failed.value)
    assert "VmCreate(Invalid argument (os error 22)" in str(failed.value)
    recording.judge()
    (said,) = recording.lives()
    taken = [(exchange.name, exchange.status) for exchange in said]
    assert taken[:3] == [("vmm.ping", 200), ("vm.create", 204), ("vm.boot", 500)]
