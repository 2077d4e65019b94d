"""Which TEE and which VMM boot a sandbox: what is asked for, what `auto` takes, what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from sealrun_runtime import machine
from sealrun_runtime.machine import Tenant
from sealrun_runtime.settings import Config, VmSettings
from sealrun_vmm import kvm
from sealrun_vmm.cloud_hypervisor import landlock
from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import Accelerator, Tee
from sealrun_vmm.tee.platform import Platform

BARE = Platform(parameters={})
SNP = Platform(
    cpu_flags=frozenset({"svm", "sev_snp"}),
    kernel=(6, 12),
    vm_types=0b10011,
    devices=frozenset({"/dev/sev"}),
    parameters={"kvm_amd.sev_snp": "Y"},
)
TDX = Platform(
    cpu_flags=frozenset({"vmx", "tdx_host_platform"}),
    kernel=(6, 16),
    vm_types=0b100001,
    parameters={"kvm_intel.tdx": "Y"},
)
DIGEST = bytes(range(32))

CLOUD_HYPERVISOR = """#!/bin/sh
echo cloud-hypervisor v52.0
echo 'Enabled features: ["kvm", "io_uring"]'
"""


def program(path: Path, text: str) -> str:
    """A stand-in for a VMM: it says what it is."""
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def image(tmp_path: Path) -> str:
    directory = tmp_path / "guest"
    directory.mkdir()
    (directory / "vmlinux").write_bytes(bytes(0x202) + b"HdrS")
    (directory / "vmlinuz").write_bytes(bytes(0x202) + b"HdrS")
    (directory / "initrd").touch()
    kernel = {"bytes": 0x206, "version": "6.12.95-1~bpo12+1"}
    manifest = {
        "kernel": {"file": "vmlinux", **kernel},
        "bzimage": {"file": "vmlinuz", **kernel},
        "initrd": {"file": "initrd", "bytes": 0},
    }
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return str(directory)


@pytest.fixture
def firmware(tmp_path: Path) -> str:
    """One for all: OVMF's own can be for SEV and TDX at once."""
    path = tmp_path / "OVMF.fd"
    path.write_bytes(firmwares.ovmf(4, tdx=[(0, 0x4000, (1 << 32) - 0x4000, 0x4000, 0, 1)]))
    return str(path)


@pytest.fixture
def swtpm(tmp_path: Path) -> str:
    says = '{ "type": "swtpm", "features": [ "tpm-2.0", "cmdarg-seccomp" ] }'
    return program(tmp_path / "swtpm", f"#!/bin/sh\necho '{says}'\n")


def qemu(tmp_path: Path, version: str = "10.2.0", objects: str = "sev-snp-guest\ntdx-guest") -> str:
    text = f'#!/bin/sh\ncase $1 in --version) echo "QEMU emulator version {version}";;\n'
    text += "-accel) echo tcg kvm;;\n"
    text += f'-object) printf "{objects}\\n";; -tpmdev) echo emulator;; esac\n'
    return program(tmp_path / "qemu", text)


def planned(
    image: str,
    vm: VmSettings,
    tee: str = "auto",
    tenant: Tenant = Tenant(),  # noqa: B008 - immutable
    here: Platform = BARE,
) -> machine.Plan:
    return machine.plan("web", Config(tee=tee, vm=vm), image, tenant, here)


@pytest.mark.parametrize("name", DriverName)
@pytest.mark.parametrize("accelerator", Accelerator)
def test_what_is_asked_for_is_taken(name: DriverName, accelerator: Accelerator, image: str) -> None:
    vm = VmSettings(driver=name.value, accelerator=accelerator.value, cloud_hypervisor="/nowhere")
    plan = planned(image, vm)
    assert plan.name is name
    assert plan.spec.accelerator is accelerator
    assert plan.spec.tee is Tee.NONE


def test_auto_takes_cloud_hypervisor_where_it_can(image: str, tmp_path: Path) -> None:
    vm = VmSettings(
        cloud_hypervisor=program(tmp_path / "ch", CLOUD_HYPERVISOR),
        insecure_no_landlock=landlock.obstacle() is not None,
    )
    able = kvm.obstacle() is None
    assert planned(image, vm).name is (DriverName.CLOUD_HYPERVISOR if able else DriverName.QEMU)
    assert planned(image, VmSettings(cloud_hypervisor="/nowhere")).name is DriverName.QEMU


def test_the_vm_starts_the_kernel_itself_without_a_tee(image: str) -> None:
    spec = planned(image, VmSettings()).spec
    assert spec.kernel.endswith("/vmlinux")
    assert (spec.firmware, spec.tpm, spec.host_data) == ("", "", b"")


def test_a_tpm_comes_with_firmware_that_measures(
    image: str, swtpm: str, firmware: str, tmp_path: Path
) -> None:
    vm = VmSettings(firmware=firmware, swtpm=swtpm, qemu=qemu(tmp_path), accelerator="tcg")
    plan = planned(image, vm, "tpm")
    assert plan.name is DriverName.QEMU
    assert plan.spec.kernel.endswith("/vmlinuz")
    assert (plan.spec.firmware, plan.spec.tpm) == (firmware, "tpm.sock")


def test_a_vmm_without_firmware_starts_the_kernel_of_a_vm_with_a_tpm(
    image: str, swtpm: str
) -> None:
    vm = VmSettings(swtpm=swtpm, driver="cloud-hypervisor")
    spec = planned(image, vm, "tpm").spec
    assert spec.kernel.endswith("/vmlinux")
    assert (spec.tee, spec.firmware, spec.tpm) == (Tee.TPM, "", "tpm.sock")


def test_no_tpm_emulator(image: str) -> None:
    with pytest.raises(HostUnfit, match="cannot find /nowhere, the TPM emulator") as caught:
        planned(image, VmSettings(swtpm="/nowhere"), "tpm")
    assert "install Debian's package swtpm" in caught.value.remedy


def test_no_firmware(image: str, swtpm: str) -> None:
    vm = VmSettings(swtpm=swtpm, firmware="/nowhere", accelerator="tcg")
    with pytest.raises(HostUnfit, match="there is no /nowhere") as caught:
        planned(image, vm, "tpm")
    assert "ovmf" in caught.value.remedy


def test_snp_on_a_host_without_it(image: str) -> None:
    with pytest.raises(HostUnfit, match="cannot use SEV-SNP: the CPU does not show sev_snp"):
        planned(image, VmSettings(), "snp")


def test_auto_uses_what_the_node_has(image: str, firmware: str, tmp_path: Path) -> None:
    vm = VmSettings(firmware=firmware, qemu=qemu(tmp_path), driver="qemu", quote_service="")
    tenant = Tenant(digest=DIGEST)
    snp = planned(image, vm, tenant=tenant, here=SNP).spec
    assert (snp.tee, snp.host_data, snp.cpu_model) == (Tee.SNP, DIGEST, "EPYC-v4")
    assert snp.accelerator is Accelerator.KVM
    tdx = planned(image, vm, tenant=tenant, here=TDX).spec
    assert (tdx.tee, tdx.host_data) == (Tee.TDX, DIGEST + bytes(16))
    assert planned(image, vm, tenant=tenant, here=BARE).spec.tee is Tee.NONE


def test_auto_does_not_do_without_what_the_node_has(image: str, tmp_path: Path) -> None:
    vm = VmSettings(firmware="/nowhere", qemu=qemu(tmp_path), cloud_hypervisor="/nowhere")
    with pytest.raises(HostUnfit, match="no VMM can start a VM with snp: cloud-hypervisor: "):
        planned(image, vm, here=SNP)


@pytest.mark.parametrize("here", [SNP, TDX])
def test_auto_does_not_do_without_because_of_a_user_s_rights(image: str, here: Platform) -> None:
    denied = dataclasses.replace(here, kvm="/dev/kvm: Permission denied", vm_types=0)
    with pytest.raises(HostUnfit, match=r"cannot use .*: /dev/kvm: Permission denied"):
        planned(image, VmSettings(), here=denied)


def test_the_tenant_names_what_it_accepts(
    image: str, swtpm: str, firmware: str, tmp_path: Path
) -> None:
    vm = VmSettings(
        firmware=firmware, qemu=qemu(tmp_path), driver="qemu", swtpm=swtpm, quote_service=""
    )
    both = Tenant(accepted=("snp", "tdx"))
    assert planned(image, vm, tenant=both, here=TDX).spec.tee is Tee.TDX
    with pytest.raises(HostUnfit, match="accepts snp or tdx only: cannot use SEV-SNP: the CPU"):
        planned(image, vm, tenant=both)
    with pytest.raises(SpecRefused, match="accepts snp or tdx only, and this host is set to none"):
        planned(image, vm, "none", tenant=both, here=SNP)
    tpm = Tenant(accepted=("tpm",))
    assert planned(image, vm, tenant=tpm, here=SNP).spec.tee is Tee.TPM


@pytest.mark.parametrize(("tee", "here"), [("snp", SNP), ("tdx", TDX)])
def test_a_guest_that_could_not_attest_is_refused(
    image: str, firmware: str, tmp_path: Path, tee: str, here: Platform
) -> None:
    manifest = Path(image) / "manifest.json"
    manifest.write_text(manifest.read_text().replace("6.12.95-1~bpo12+1", "6.1.192-2"))
    vm = VmSettings(firmware=firmware, qemu=qemu(tmp_path), driver="qemu", quote_service="")
    with pytest.raises(HostUnfit, match=r"the guest image's kernel 6\.1\.192-2 has no") as caught:
        planned(image, vm, tee, here=here)
    assert "--kernel-suite backports" in caught.value.remedy


def test_tdx_is_never_started_by_cloud_hypervisor(image: str) -> None:
    vm = VmSettings(driver="cloud-hypervisor")
    with pytest.raises(SpecRefused, match="switched off since v53") as caught:
        planned(image, vm, "tdx", here=TDX)
    assert caught.value.remedy == "set vm.driver to qemu in sealrun.toml"


def test_nobody_signs_tdx_quotes(image: str, firmware: str, tmp_path: Path) -> None:
    vm = VmSettings(firmware=firmware, qemu=qemu(tmp_path), quote_service="/nowhere")
    with pytest.raises(HostUnfit, match="cannot sign TDX quotes: there is no /nowhere"):
        planned(image, vm, "tdx", here=TDX)


def test_no_guest_image() -> None:
    with pytest.raises(HostUnfit, match="/nowhere"):
        planned("/nowhere", VmSettings())
