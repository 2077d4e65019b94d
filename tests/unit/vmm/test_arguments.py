"""What QEMU is started with: golden files, rules that hold for any spec, and QEMU's own opinion."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_vmm import cmdline
from sealrun_vmm.errors import SpecRefused
from sealrun_vmm.qemu.arguments import arguments
from sealrun_vmm.spec import Accelerator, Disk, Nic, Share, Tee, VmSpec

GOLDEN = Path(__file__).parents[2] / "golden/vmm"

PLAIN = VmSpec(
    name="web",
    accelerator=Accelerator.TCG,
    cpus=2,
    memory_mib=512,
    kernel="/guest/vmlinux",
    initrd="/guest/initrd",
    cmdline=cmdline.base(Accelerator.TCG),
)
SPECS = {
    "plain-tcg": PLAIN,
    "plain-kvm": dataclasses.replace(
        PLAIN, accelerator=Accelerator.KVM, cmdline=cmdline.base(Accelerator.KVM)
    ),
    "growing": dataclasses.replace(
        PLAIN,
        max_cpus=4,
        max_memory_mib=4100,
        cmdline=cmdline.growing(PLAIN.cmdline),
    ),
    "everything": dataclasses.replace(
        PLAIN,
        max_cpus=4,
        max_memory_mib=4100,
        disks=(
            Disk(serial="block-8-16", readonly=False),
            Disk(serial="block-7-0", readonly=True),
        ),
        scratch=5,
        nics=(Nic(tap_fd=7, mac="02:00:00:00:00:01", mtu=1450),),
        nodes=6,
        later_devices=2,
        shares=(Share(socket="share.sock", tag="bundle"),),
    ),
    "pmem": dataclasses.replace(
        PLAIN,
        max_memory_mib=1024,
        disks=(
            Disk(serial="block-259-0", readonly=False, pmem_bytes=64 << 20),
            Disk(serial="block-7-0", readonly=True),
        ),
        nodes=6,
        pmem_mib=4096,
        later_devices=1,
    ),
    "snp": dataclasses.replace(
        PLAIN,
        accelerator=Accelerator.KVM,
        cmdline=cmdline.base(Accelerator.KVM),
        kernel="/guest/vmlinuz",
        tee=Tee.SNP,
        firmware="/firmware/OVMF.amdsev.fd",
        cpu_model="EPYC-v4",
        host_data=bytes(range(32)),
    ),
    "tdx": dataclasses.replace(
        PLAIN,
        accelerator=Accelerator.KVM,
        cmdline=cmdline.base(Accelerator.KVM),
        kernel="/guest/vmlinuz",
        tee=Tee.TDX,
        firmware="/firmware/OVMF.inteltdx.fd",
        host_data=bytes(range(48)),
        quote_service="/run/tdx-qgs/qgs.socket",
    ),
    "tpm": dataclasses.replace(
        PLAIN,
        kernel="/guest/vmlinuz",
        tee=Tee.TPM,
        firmware="/firmware/OVMF.fd",
        tpm="tpm.sock",
    ),
}


@pytest.mark.parametrize("name", SPECS)
def test_golden(name: str, request: pytest.FixtureRequest) -> None:
    lines = []
    for word in arguments("/usr/bin/qemu-system-x86_64", SPECS[name], control=9):
        lines.append(f"  {shlex.quote(word)}" if lines and not word.startswith("-") else word)
    rendered = "\n".join(lines) + "\n"
    path = GOLDEN / f"qemu-{name}.txt"
    if request.config.getoption("--golden"):
        path.write_text(rendered)
    assert rendered == path.read_text()


def test_memory_is_shared_only_with_a_reason() -> None:
    assert "share=on" not in " ".join(arguments("qemu", PLAIN))
    shared = " ".join(arguments("qemu", SPECS["everything"]))
    assert "memory-backend=ram" in shared
    assert "memory-backend-memfd,id=ram,size=512M,share=on" in shared


@pytest.mark.parametrize("tee", [Tee.SNP, Tee.TDX])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"accelerator": Accelerator.TCG}, "cannot emulate a VM with"),
        ({"firmware": ""}, "without firmware"),
        ({"shares": (Share(socket="s", tag="t"),)}, "cannot share directories"),
        ({"host_data": b"short"}, "the host data of a VM with"),
    ],
)
def test_a_tee_is_never_weakened_silently(tee: Tee, change: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecRefused, match=words):
        arguments("qemu", dataclasses.replace(SPECS[tee.value], **change))


def test_a_tpm_is_never_left_out_silently() -> None:
    with pytest.raises(SpecRefused, match="without a TPM"):
        arguments("qemu", dataclasses.replace(PLAIN, tee=Tee.TPM))


@given(st.text(min_size=1, max_size=40))
def test_a_value_cannot_become_an_option(name: str) -> None:
    command = arguments("qemu", dataclasses.replace(PLAIN, name=name))
    value = command[command.index("-name") + 1]
    assert value == "guest=" + name.replace(",", ",,")
    assert len(command) == len(arguments("qemu", PLAIN))


def test_relative_names_stay_in_the_state_directory() -> None:
    # QEMU reads «nbd:x» or «fd:3» as a protocol where it expects a file.
    command = " ".join(arguments("qemu", dataclasses.replace(PLAIN, channel="fd:3")))
    assert "path=./fd:3," in command


def test_an_emulated_guest_has_a_clock_that_needs_no_calibration() -> None:
    assert "clocksource=acpi_pm" in cmdline.base(Accelerator.TCG).split()
    assert "clocksource=acpi_pm" not in cmdline.base(Accelerator.KVM).split()


@pytest.mark.parametrize("word", ["noreplace-smp", "initcall_blacklist=trace_eval_init"])
def test_only_an_emulated_guest_leaves_work_of_the_kernel_out(word: str) -> None:
    assert word in cmdline.base(Accelerator.TCG).split()
    assert word not in cmdline.base(Accelerator.KVM).split()


def test_only_a_guest_that_can_grow_goes_without_bounce_buffers() -> None:
    # A TEE's cannot grow, and all of its devices need them.
    words = cmdline.base(Accelerator.KVM)
    assert "swiotlb" not in words
    assert "swiotlb=noforce" in cmdline.growing(words).split()


@pytest.mark.parametrize("accelerator", Accelerator)
def test_a_panic_ends_the_vm(accelerator: Accelerator) -> None:
    assert "panic=-1" in cmdline.base(accelerator).split()
    spec = dataclasses.replace(PLAIN, accelerator=accelerator)
    assert "-no-reboot" in arguments("qemu", spec)
