"""From settings to the VM: a pure function."""

import msgspec
import pytest
from fixtures import containers
from sealrun_runtime.demand import Demand
from sealrun_runtime.handover import Handover
from sealrun_runtime.settings import Config, VmSettings
from sealrun_runtime.shim import machine
from sealrun_runtime.shim.machine import Host
from sealrun_vmm import growth
from sealrun_vmm.assets import GuestImage
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.growth import Size
from sealrun_vmm.spec import Accelerator, Tee
from sealrun_vmm.tee.launch import Launch

IMAGE = GuestImage(
    kernel="/g/vmlinux", bzimage="/g/vmlinuz", initrd="/g/initrd", kernel_version="6.1"
)
HANDOVER = Handover(
    id="c1",
    container=containers.spec(),
    image="registry.test/app:1",
    image_source="test",
    init_data=b"",
    guest_image="/nowhere",
    config=Config(vm=VmSettings(cpus=3, memory=777)),
)


HOST = Host(Size(cpus=8, memory_mib=16384))


def test_settings_become_the_vm() -> None:
    spec = machine.vm_spec(HANDOVER, IMAGE, Accelerator.TCG, Launch(), HOST)
    assert (spec.name, spec.cpus, spec.memory_mib) == ("c1", 3, 777)
    assert (spec.max_cpus, spec.max_memory_mib) == HOST.size
    assert (spec.kernel, spec.initrd) == ("/g/vmlinux", "/g/initrd")
    assert spec.accelerator is Accelerator.TCG
    assert spec.tee is Tee.NONE
    assert spec.cmdline


def test_the_vm_does_not_depend_on_what_the_container_is() -> None:
    """What is measured must be predictable from the settings."""
    other = msgspec.structs.replace(HANDOVER, image="other.test/b:2", init_data=b"x")
    first = machine.vm_spec(HANDOVER, IMAGE, Accelerator.KVM, Launch(), HOST)
    assert machine.vm_spec(other, IMAGE, Accelerator.KVM, Launch(), HOST) == first


def test_a_vm_with_a_tee_is_as_large_as_it_is_configured() -> None:
    """That is measured, or at least predicted."""
    for tee in (Tee.TPM, Tee.SNP, Tee.TDX):
        handover = limited(memory=1 << 30, quota=800_000)
        spec = machine.vm_spec(handover, IMAGE, Accelerator.KVM, Launch(tee=tee), HOST)
        assert growth.largest(spec) == (spec.cpus, spec.memory_mib) == (3, 777)
        assert "memhp" not in spec.cmdline
        assert spec.later_devices == (machine.LATER_DEVICES if tee is Tee.TPM else 0)


def limited(**limits: int) -> Handover:
    container = msgspec.structs.replace(HANDOVER.container, demand=Demand(**limits))
    return msgspec.structs.replace(HANDOVER, container=container)


@pytest.mark.parametrize(
    ("limits", "size"),
    [
        ({"memory": 100 << 20}, (3, 877)),
        ({"memory": (100 << 20) + 1}, (3, 878)),
        ({"memory": 1 << 60}, (3, 16384)),
        ({"quota": 50_000}, (3, 777)),
        ({"quota": 400_000}, (4, 777)),
        ({"quota": 400_001}, (5, 777)),
        ({"quota": 9_000_000}, (8, 777)),
        ({"quota": 35_000, "period": 10_000}, (4, 777)),
    ],
)
def test_limits_make_the_vm_larger(limits: dict[str, int], size: tuple[int, int]) -> None:
    spec = machine.vm_spec(limited(**limits), IMAGE, Accelerator.KVM, Launch(), HOST)
    assert (spec.cpus, spec.memory_mib) == size


def test_the_operator_says_how_large_a_vm_becomes() -> None:
    config = Config(vm=VmSettings(cpus=3, memory=777, max_cpus=1, max_memory=1000))
    handover = msgspec.structs.replace(limited(memory=1 << 60, quota=1 << 40), config=config)
    spec = machine.vm_spec(handover, IMAGE, Accelerator.KVM, Launch(), HOST)
    assert (spec.cpus, spec.memory_mib) == (3, 1000)
    assert (spec.max_cpus, spec.max_memory_mib) == (3, 1000), "never less than it has"


def test_a_vm_never_becomes_larger_than_its_host() -> None:
    """QEMU would not start with more."""
    config = Config(vm=VmSettings(memory=777, max_memory=1 << 22))
    handover = msgspec.structs.replace(HANDOVER, config=config)
    spec = machine.vm_spec(handover, IMAGE, Accelerator.KVM, Launch(), HOST)
    assert spec.max_memory_mib == HOST.size.memory_mib


def test_a_host_may_have_more_cpus_than_a_vm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 768)
    assert machine.this_host().size.cpus == 254


def test_only_a_vm_that_can_grow_is_told_how() -> None:
    assert "memhp" in machine.vm_spec(HANDOVER, IMAGE, Accelerator.KVM, Launch(), HOST).cmdline
    small = machine.vm_spec(HANDOVER, IMAGE, Accelerator.KVM, Launch(), Host(Size(1, 128)))
    assert "memhp" not in small.cmdline
    assert (small.max_cpus, small.max_memory_mib) == (3, 777)


def test_demands_add_up() -> None:
    settings = VmSettings(cpus=1, memory=512)
    demands = [Demand(memory=100 << 20, quota=70_000), Demand(quota=30_000), Demand()]
    assert machine.size_for(settings, demands, HOST.size) == (1, 612)
    assert machine.size_for(settings, [*demands, Demand(quota=1)], HOST.size) == (2, 612)
    assert machine.size_for(settings, [], HOST.size) == (1, 512)


def test_no_guest_image_is_the_hosts_fault() -> None:
    with pytest.raises(HostUnfit, match="/nowhere"):
        machine.plan(HANDOVER)
