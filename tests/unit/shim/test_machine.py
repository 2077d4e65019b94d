"""From settings to the VM: a pure function."""

import msgspec
import pytest
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.handover import Handover
from sealrun_runtime.settings import Config, VmSettings
from sealrun_runtime.shim import machine
from sealrun_vmm.assets import GuestImage
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.spec import Accelerator, Tee
from sealrun_vmm.tee.launch import Launch

IMAGE = GuestImage(
    kernel="/g/vmlinux", bzimage="/g/vmlinuz", initrd="/g/initrd", kernel_version="6.1"
)
HANDOVER = Handover(
    id="c1",
    container=ContainerSpec(
        bundle="/b",
        oci_version="1.0.2",
        rootfs="/b/rootfs",
        args=("/program",),
        terminal=False,
        hostname="",
        mounts=(),
        annotations={},
        namespaces=(),
        cgroups_path="",
    ),
    image="registry.test/app:1",
    image_source="test",
    init_data=b"",
    guest_image="/nowhere",
    config=Config(vm=VmSettings(cpus=3, memory=777)),
)


def test_settings_become_the_vm() -> None:
    spec = machine.vm_spec(HANDOVER, IMAGE, Accelerator.TCG, Launch())
    assert (spec.name, spec.cpus, spec.memory_mib) == ("c1", 3, 777)
    assert (spec.kernel, spec.initrd) == ("/g/vmlinux", "/g/initrd")
    assert spec.accelerator is Accelerator.TCG
    assert spec.tee is Tee.NONE
    assert spec.cmdline


def test_the_vm_does_not_depend_on_what_the_container_is() -> None:
    """What is measured must be predictable from the settings."""
    other = msgspec.structs.replace(HANDOVER, image="other.test/b:2", init_data=b"x")
    first = machine.vm_spec(HANDOVER, IMAGE, Accelerator.KVM, Launch())
    assert machine.vm_spec(other, IMAGE, Accelerator.KVM, Launch()) == first


def test_no_guest_image_is_the_hosts_fault() -> None:
    with pytest.raises(HostUnfit, match="/nowhere"):
        machine.plan(HANDOVER)
