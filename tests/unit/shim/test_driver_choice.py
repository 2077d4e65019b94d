"""Which VMM boots a sandbox: what is asked for, and what `auto` takes."""

import dataclasses
from pathlib import Path

import pytest
from sealrun_runtime.settings import VmSettings
from sealrun_runtime.shim import machine
from sealrun_vmm import kvm
from sealrun_vmm.cloud_hypervisor import landlock
from sealrun_vmm.driver import DriverName
from sealrun_vmm.spec import Accelerator, VmSpec

SIMULATOR = str(Path(__file__).parents[2] / "simulators/cloud_hypervisor.py")


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    (tmp_path / "vmlinuz").write_bytes(bytes(0x202) + b"HdrS")
    (tmp_path / "initrd").touch()
    return VmSpec(
        name="x",
        accelerator=Accelerator.KVM,
        cpus=1,
        memory_mib=256,
        kernel=str(tmp_path / "vmlinuz"),
        initrd=str(tmp_path / "initrd"),
        cmdline="",
        landlock=landlock.obstacle() is None,
    )


@pytest.fixture
def settings() -> VmSettings:
    return VmSettings(cloud_hypervisor=SIMULATOR)


@pytest.mark.parametrize("name", DriverName)
@pytest.mark.parametrize("accelerator", Accelerator)
def test_what_is_asked_for_is_taken(
    name: DriverName, accelerator: Accelerator, spec: VmSpec
) -> None:
    asked = VmSettings(driver=name.value, cloud_hypervisor="/nowhere")
    assert machine.choose_driver(asked, dataclasses.replace(spec, accelerator=accelerator)) is name


def test_auto_takes_cloud_hypervisor_where_it_can(settings: VmSettings, spec: VmSpec) -> None:
    able = kvm.obstacle() is None
    expected = DriverName.CLOUD_HYPERVISOR if able else DriverName.QEMU
    assert machine.choose_driver(settings, spec) is expected


def test_auto_takes_qemu_where_cloud_hypervisor_cannot(settings: VmSettings, spec: VmSpec) -> None:
    missing = VmSettings(cloud_hypervisor="/nowhere")
    assert machine.choose_driver(missing, spec) is DriverName.QEMU
    no_pvh = dataclasses.replace(spec, kernel="/bin/true")
    assert machine.choose_driver(settings, no_pvh) is DriverName.QEMU
    emulated = dataclasses.replace(spec, accelerator=Accelerator.TCG)
    assert machine.choose_driver(settings, emulated) is DriverName.QEMU
