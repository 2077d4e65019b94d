"""The driver around the process: what it refuses beforehand, and how it tells one end from another.

A shell script stands in for QEMU where an end is needed that the real one cannot be asked for; the
real one boots in tests/system/test_guest_image.py."""

import asyncio
import dataclasses
from pathlib import Path

import pytest
from sealrun_vmm import kvm
from sealrun_vmm.driver import Driver, DriverName, MachineExit, load
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import Accelerator, Tee, VmSpec


@pytest.fixture
def spec(tmp_path: Path) -> VmSpec:
    (tmp_path / "vmlinux").write_bytes(bytes(0x202) + b"HdrS")
    (tmp_path / "initrd").touch()
    return VmSpec(
        name="web",
        accelerator=Accelerator.TCG,
        cpus=1,
        memory_mib=256,
        kernel=str(tmp_path / "vmlinux"),
        initrd=str(tmp_path / "initrd"),
        cmdline="quiet",
    )


QEMU = """#!/bin/sh
case $1 in
--version) echo 'QEMU emulator version 7.2.22'; exit ;;
-accel) echo tcg kvm; exit ;;
esac
"""


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    """With a program that says that it is QEMU."""
    return load(DriverName.QEMU, program(tmp_path))


def program(directory: Path, script: str = "") -> str:
    """It says that it is QEMU, and is `script` when it is to start a VM."""
    path = directory / "qemu"
    path.write_text(f"{QEMU}{script}\n")
    path.chmod(0o755)
    return str(path)


def end_of(script: str, spec: VmSpec, directory: Path, *, stop: bool = False) -> MachineExit:
    """How a VM ends whose QEMU is `script`."""
    binary = program(directory, script)

    async def main() -> MachineExit:
        machine = await load(DriverName.QEMU, binary).launch(spec, str(directory))
        if stop:
            await machine.stop()
            await machine.stop()
        first = await machine.wait()
        assert await machine.wait() == first
        return first

    return asyncio.run(main())


def test_the_guest_powers_off(spec: VmSpec, tmp_path: Path) -> None:
    ended = end_of("echo warm words >&2; echo all is well", spec, tmp_path)
    assert ended == MachineExit(orderly=True, reason="the guest powered off")


def test_it_is_stopped(spec: VmSpec, tmp_path: Path) -> None:
    assert end_of("exec sleep 60", spec, tmp_path, stop=True).orderly


def test_qemu_fails(spec: VmSpec, tmp_path: Path) -> None:
    ended = end_of("echo one >&2; echo 'qemu: no such option' >&2; exit 1", spec, tmp_path)
    assert ended == MachineExit(
        orderly=False, reason="qemu ended with status 1: qemu: no such option"
    )


def test_qemu_is_killed(spec: VmSpec, tmp_path: Path) -> None:
    assert end_of("kill -KILL $$", spec, tmp_path) == MachineExit(
        orderly=False, reason="qemu ended with signal 9"
    )


@pytest.mark.parametrize(
    "words",
    [
        "sealrun-agent: boot failed: cannot load the module overlay: No such device",
        "sealrun-agent: failed: OSError: no memory (/usr/lib/sealrun/x.py:7)",
        "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100",
    ],
)
def test_the_guest_says_why_it_gave_up(spec: VmSpec, tmp_path: Path, words: str) -> None:
    script = f"printf '[ 1.0] boot\\r\\n[ 2.0] {words}\\r\\n[ 2.1] Rebooting\\r\\n'"
    assert end_of(script, spec, tmp_path) == MachineExit(
        orderly=False, reason=f"the guest failed: {words}"
    )


def test_no_qemu(spec: VmSpec) -> None:
    with pytest.raises(HostUnfit, match="cannot find /nowhere/qemu") as caught:
        load(DriverName.QEMU, "/nowhere/qemu").check(spec)
    assert "qemu-system-x86" in caught.value.remedy


def test_a_qemu_that_is_no_program(spec: VmSpec, tmp_path: Path) -> None:
    (tmp_path / "qemu").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "qemu").chmod(0o755)
    before = sorted(tmp_path.iterdir())

    async def main() -> None:
        await load(DriverName.QEMU, str(tmp_path / "qemu")).launch(spec, str(tmp_path))

    with pytest.raises(HostUnfit, match=r"cannot use .*/qemu: Exec format error"):
        asyncio.run(main())
    assert sorted(tmp_path.iterdir()) == before, "nothing was started"


def test_no_kernel(spec: VmSpec, driver: Driver) -> None:
    with pytest.raises(HostUnfit, match="cannot read the guest's kernel /nowhere"):
        driver.check(dataclasses.replace(spec, kernel="/nowhere"))


def test_a_kernel_without_pvh_is_refused(spec: VmSpec, driver: Driver) -> None:
    with pytest.raises(SpecRefused, match="no PVH entry point") as caught:
        driver.check(dataclasses.replace(spec, kernel="/bin/true"))
    assert "CONFIG_PVH" in caught.value.remedy


def test_firmware_starts_a_bzimage_only(spec: VmSpec, driver: Driver) -> None:
    by_firmware = dataclasses.replace(spec, kernel="/bin/true", firmware="/bin/true")
    with pytest.raises(SpecRefused, match="it is no bzImage, and firmware starts no other"):
        driver.check(by_firmware)


def test_too_little_memory_is_refused_before_the_kernel_panics(
    spec: VmSpec, driver: Driver
) -> None:
    with open(spec.initrd, "wb") as stream:
        stream.truncate(42 << 20)
    driver.check(dataclasses.replace(spec, memory_mib=176))
    with pytest.raises(SpecRefused, match="in 168 MiB: it needs 176 MiB") as caught:
        driver.check(dataclasses.replace(spec, memory_mib=168))
    with pytest.raises(SpecRefused, match="in 176 MiB: it needs 240 MiB"):
        driver.check(dataclasses.replace(spec, memory_mib=176, max_memory_mib=4096))
    assert "io.sealrun.memory" in caught.value.remedy


def test_more_memory_than_the_host_has_is_refused(spec: VmSpec, driver: Driver) -> None:
    with pytest.raises(
        HostUnfit, match=r"cannot give a VM 4194304 MiB: this host has \d+ MiB"
    ) as caught:
        driver.check(dataclasses.replace(spec, memory_mib=1 << 22))
    assert "lower vm.memory" in caught.value.remedy


def test_kvm_that_is_not_usable_is_refused(spec: VmSpec, driver: Driver) -> None:
    wanted = dataclasses.replace(spec, accelerator=Accelerator.KVM)
    if kvm.obstacle() is None:
        driver.check(wanted)
    else:
        with pytest.raises(HostUnfit, match="cannot use KVM: "):
            driver.check(wanted)


def test_a_tee_is_refused_before_anything_starts(spec: VmSpec, driver: Driver) -> None:
    with pytest.raises(SpecRefused):
        driver.check(dataclasses.replace(spec, tee=Tee.SNP))
