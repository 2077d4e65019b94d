"""What Cloud Hypervisor is given: golden files, its own description of them, and what is refused."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from sealrun_vmm import cmdline
from sealrun_vmm.cloud_hypervisor import config, program
from sealrun_vmm.cloud_hypervisor.confidential import FEATURES
from sealrun_vmm.cloud_hypervisor.program import Build
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import Accelerator, Disk, Nic, Share, Tee, VmSpec
from simulators import openapi

GOLDEN = Path(__file__).parents[2] / "golden/vmm"

PLAIN = VmSpec(
    name="web",
    accelerator=Accelerator.KVM,
    cpus=2,
    memory_mib=512,
    kernel="/guest/vmlinux",
    initrd="/guest/initrd",
    cmdline=cmdline.base(Accelerator.KVM),
)
EVERYTHING = dataclasses.replace(
    PLAIN,
    max_cpus=4,
    max_memory_mib=4100,
    cmdline=cmdline.growing(PLAIN.cmdline),
    disks=(
        Disk(serial="block-8-16", readonly=False),
        Disk(serial="block-7-0", readonly=True),
    ),
    nodes=6,
    scratch=5,
    nics=(
        Nic(tap_fd=7, mac="02:00:00:00:00:01", mtu=1450),
        Nic(tap_fd=8, mac="02:00:00:00:00:02", mtu=1500),
    ),
    shares=(Share(socket="share.sock", tag="bundle"), Share(socket="/run/x.sock", tag="y")),
)
SPECS = {
    "plain": PLAIN,
    "everything": EVERYTHING,
    "pmem": dataclasses.replace(
        PLAIN,
        disks=(
            Disk(serial="block-259-0", readonly=False, pmem_bytes=64 << 20),
            Disk(serial="block-7-0", readonly=True),
        ),
        nodes=6,
        pmem_mib=4096,
    ),
    "no-landlock": dataclasses.replace(PLAIN, landlock=False),
    "snp": dataclasses.replace(
        PLAIN,
        kernel="/guest/vmlinuz",
        tee=Tee.SNP,
        firmware="/firmware/stage0.igvm",
        host_data=bytes(range(32)),
    ),
    "tpm": dataclasses.replace(PLAIN, tee=Tee.TPM, tpm="tpm.sock"),
}


def calls(spec: VmSpec) -> list[tuple[str, dict[str, object]]]:
    """The calls with a body, in order."""
    nets = [config.net_config(f"nic{index}", nic) for index, nic in enumerate(spec.nics)]
    # As those that come later.
    disks = [config.disk_config(spec, disk) for disk in spec.disks if not disk.pmem_bytes]
    pmem = [config.pmem_config(spec, disk) for disk in spec.disks if disk.pmem_bytes]
    return [
        ("vm.create", config.vm_config(spec)),
        *(("vm.add-net", net) for net in nets),
        *(("vm.add-disk", disk) for disk in disks),
        *(("vm.add-pmem", one) for one in pmem),
    ]


@pytest.mark.parametrize("name", SPECS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    spec = SPECS[name]
    command = config.command("/usr/bin/cloud-hypervisor", api=10, events=11)
    lines = [" ".join(command)]
    lines += [f"{call} {json.dumps(body, indent=2)}" for call, body in calls(spec)]
    rendered = "\n".join(lines) + "\n"
    path = GOLDEN / f"cloud-hypervisor-{name}.txt"
    if request.config.getoption("--golden"):
        path.write_text(rendered)
    assert rendered == path.read_text()


@pytest.mark.skipif(
    openapi.SPECIFICATION is None, reason="../shared/reference has no OpenAPI description"
)
@pytest.mark.parametrize("name", SPECS)
def test_cloud_hypervisors_own_description_allows_it(name: str) -> None:
    for call, body in calls(SPECS[name]):
        openapi.check_request("PUT", call, json.dumps(body).encode())


@pytest.mark.skipif(
    openapi.SPECIFICATION is None, reason="../shared/reference has no OpenAPI description"
)
def test_the_judge_sees_what_is_wrong() -> None:
    for body in (
        {**config.vm_config(PLAIN), "vsok": {}},
        {**config.vm_config(PLAIN), "serial": {"mode": "tty"}},
        {"cpus": {"boot_vcpus": 1}},
        [],
    ):
        with pytest.raises(openapi.Violation):
            openapi.check_request("PUT", "vm.create", json.dumps(body).encode())
    for method, call, sent in (("PUT", "vm.boot", b"{}"), ("GET", "vm.boot", b"")):
        with pytest.raises(openapi.Violation):
            openapi.check_request(method, call, sent)
    for status, answer in ((405, b'["x"]'), (204, b"{}"), (500, b"{}")):
        with pytest.raises(openapi.Violation):
            openapi.check_answer("PUT", "vm.create", status, answer)


def test_memory_is_shared_only_with_a_reason() -> None:
    assert config.vm_config(PLAIN)["memory"] == {"size": 512 << 20, "shared": False}
    assert config.vm_config(EVERYTHING)["memory"]["shared"] is True


def test_landlock_is_left_out_only_where_the_spec_says_so() -> None:
    assert config.vm_config(PLAIN)["landlock_enable"] is True
    loose = dataclasses.replace(PLAIN, landlock=False)
    assert config.vm_config(loose)["landlock_enable"] is False


@pytest.mark.parametrize("tee", [tee for tee in Tee if tee is not Tee.NONE])
def test_a_tee_is_never_left_out_silently(tee: Tee) -> None:
    with pytest.raises(SpecRefused, match=f"cannot start a VM with {tee}"):
        config.vm_config(dataclasses.replace(PLAIN, tee=tee))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shares": (Share(socket="s", tag="t"),)}, "cannot share directories"),
        ({"host_data": bytes(31)}, "has 32 bytes"),
        ({"accelerator": Accelerator.TCG}, "which knows only kvm"),
    ],
)
def test_a_tee_is_never_weakened_silently(change: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecRefused, match=words):
        config.vm_config(dataclasses.replace(SPECS["snp"], **change))


def test_firmware_that_would_not_run_is_refused() -> None:
    with pytest.raises(SpecRefused, match="starts the kernel without firmware"):
        config.vm_config(dataclasses.replace(SPECS["tpm"], firmware="/firmware/OVMF.fd"))


def test_what_is_built_in_decides() -> None:
    assert FEATURES[Tee.SNP] == {"kvm", "sev_snp", "igvm", "fw_cfg"}
    built = Build("v52.0", frozenset({"kvm", "io_uring"}))
    with pytest.raises(HostUnfit, match="was built without fw_cfg, igvm, sev_snp"):
        program.require(built, FEATURES[Tee.SNP])
    program.require(built, FEATURES[Tee.NONE])


def test_emulation_is_refused_with_the_remedy() -> None:
    with pytest.raises(SpecRefused, match="with tcg in Cloud Hypervisor") as caught:
        config.vm_config(dataclasses.replace(PLAIN, accelerator=Accelerator.TCG))
    assert "qemu" in caught.value.remedy
