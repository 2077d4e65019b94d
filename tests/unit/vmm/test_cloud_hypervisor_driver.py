"""The driver with a program that behaves as Cloud Hypervisor does (simulators/cloud_hypervisor.py):
every way a launch fails and a VM ends, with its reason, in time, and with nothing left behind."""

import asyncio
import dataclasses
import json
import os
import queue
import signal
import threading
import time
from pathlib import Path

import pytest
from fixtures.simulated_hypervisor import BUSY, SECONDS, SIMULATOR, running, send, stop, tap
from sealrun_runtime import namespaces
from sealrun_vmm import kvm
from sealrun_vmm.cloud_hypervisor import landlock
from sealrun_vmm.cloud_hypervisor import machine as machines
from sealrun_vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from sealrun_vmm.cloud_hypervisor.machine import STOP_SECONDS, CloudHypervisorMachine
from sealrun_vmm.driver import DriverName, MachineExit, load
from sealrun_vmm.errors import (
    ChangeFailed,
    HostUnfit,
    LaunchFailed,
    SpecRefused,
    VmmError,
)
from sealrun_vmm.spec import PMEM_STEP, Disk, Nic, Tee, VmSpec

# --- ends ----------------------------------------------------------------------------------------


def test_stopped(boot, directory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machines, "STOP_SECONDS", SECONDS)

    async def use(machine: CloudHypervisorMachine) -> None:
        started = time.monotonic()
        await machine.stop()
        assert time.monotonic() - started < SECONDS, "in order, not by patience"
        await machine.stop()

    assert boot(use) == MachineExit(orderly=True, reason="the VM was stopped")
    assert Path(directory, "vmm.log").stat().st_mode & 0o777 == 0o600


def test_stopped_while_it_hangs(boot) -> None:
    async def use(machine: CloudHypervisorMachine) -> None:
        os.kill(machine.pid, signal.SIGSTOP)
        started = time.monotonic()
        await machine.stop()
        assert STOP_SECONDS <= time.monotonic() - started < STOP_SECONDS + BUSY

    assert boot(use).reason == "the VM was stopped"


@pytest.mark.parametrize(
    ("misbehaviour", "patience"),
    [("die", SECONDS), ("garble", SECONDS), ("refuse", SECONDS), ("hang", 0.5)],
)
def test_it_is_lost_when_it_is_stopped(
    boot, misbehaviour: str, patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed: at once, or when its time is over."""
    monkeypatch.setattr(machines, "STOP_SECONDS", patience)

    async def use(machine: CloudHypervisorMachine) -> None:
        started = time.monotonic()
        await machine.stop()
        lasted = time.monotonic() - started
        assert patience <= lasted < patience + BUSY if misbehaviour == "hang" else lasted < patience

    ended = boot(use, f"{misbehaviour}=vmm.shutdown")
    assert ended == MachineExit(orderly=True, reason="the VM was stopped")


def test_the_guest_powers_off(boot) -> None:
    async def use(machine: CloudHypervisorMachine) -> None:
        children = Path(f"/proc/{machine.pid}/task/{machine.pid}/children").read_text()
        os.kill(int(children), signal.SIGKILL)

    assert boot(use) == MachineExit(orderly=True, reason="the guest powered off")


def test_the_vmm_dies(boot) -> None:
    ended = boot(send(signal.SIGKILL))
    assert ended == MachineExit(orderly=False, reason="cloud-hypervisor ended with signal 9")


def test_the_guest_resets(boot, directory: str) -> None:
    ended = boot(send(signal.SIGUSR1))
    assert ended == MachineExit(orderly=False, reason="the guest failed: it reset itself")


def test_the_guest_panics_and_says_why(boot, directory: str) -> None:
    async def use(machine: CloudHypervisorMachine) -> None:
        words = b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\r\n[ 1.1] CPU: 0\r\n"
        with open(f"{directory}/console.log", "ab") as file:
            file.write(words)
        os.kill(machine.pid, signal.SIGUSR1)

    ended = boot(use)
    assert ended.reason == ("the guest failed: Kernel panic - not syncing: Attempted to kill init!")


def test_it_gives_up_with_status_0(boot, directory: str) -> None:
    """As after an error of a virtual CPU."""

    async def use(machine: CloudHypervisorMachine) -> None:
        with open(f"{directory}/vmm.log", "ab") as file:
            file.write(b"cloud-hypervisor: 1.2s: <vcpu0> ERROR:vmm/src/cpu.rs:1 -- VCPU error\n")
        os.kill(machine.pid, signal.SIGTERM)

    ended = boot(use)
    assert not ended.orderly
    assert ended.reason.startswith("cloud-hypervisor gave up: ")
    assert ended.reason.endswith("VCPU error")


@pytest.mark.parametrize(
    ("event", "number"), [("rebooting", signal.SIGUSR1), ("shutdown", signal.SIGTERM)]
)
def test_events_that_cannot_be_read_end_it(boot, event: str, number: int) -> None:
    ended = boot(send(number), f"garble-event={event}")
    assert ended == MachineExit(
        orderly=False, reason="cloud-hypervisor reports events that cannot be read"
    )


def test_events_that_cannot_be_read_during_the_launch(boot) -> None:
    with pytest.raises(LaunchFailed) as caught:
        boot(switches="garble-event=starting hang=vm.create")
    assert str(caught.value) == (
        "cannot boot the VM: cloud-hypervisor reports events that cannot be read"
    )


def test_many_events_are_drained(boot) -> None:
    """More than the pipe holds."""
    assert boot(stop, "events=300") == MachineExit(orderly=True, reason="the VM was stopped")


# --- launches that fail --------------------------------------------------------------------------

CALLS = ("vmm.ping", "vm.create", "vm.boot")


@pytest.mark.parametrize("call", CALLS)
def test_it_dies_at_a_call(boot, call: str) -> None:
    with pytest.raises(LaunchFailed) as caught:
        boot(switches=f"die={call}")
    text = str(caught.value)
    assert text.startswith(f"cannot boot the VM: cloud-hypervisor gave no answer to {call}: ")
    assert text.endswith("it dies here")


@pytest.mark.parametrize("call", CALLS)
def test_it_hangs_at_a_call(boot, call: str) -> None:
    started = time.monotonic()
    with pytest.raises(LaunchFailed) as caught:
        boot(switches=f"hang={call}", launch_seconds=4)
    assert 4 <= time.monotonic() - started < 4 + BUSY
    assert str(caught.value) == (
        f"cannot boot the VM: cloud-hypervisor did not answer {call} in 4 s"
    )


@pytest.mark.parametrize("call", CALLS)
def test_it_answers_garbage(boot, call: str) -> None:
    with pytest.raises(LaunchFailed, match=f"gave no answer to {call}: an answer does not begin"):
        boot(switches=f"garble={call}")


@pytest.mark.parametrize("call", CALLS)
def test_it_refuses(boot, call: str) -> None:
    with pytest.raises(LaunchFailed) as caught:
        boot(switches=f"refuse={call}")
    assert str(caught.value) == (
        f"cannot boot the VM: cloud-hypervisor refused {call}: "
        "The VM could not boot: it was told to: by a test"
    )


def test_it_refuses_and_does_not_end_then(boot) -> None:
    """What it said first is told, and the wait for its end is bounded."""
    started = time.monotonic()
    with pytest.raises(LaunchFailed, match=r"refused vm\.boot: .*it was told to: by a test$"):
        boot(switches="refuse=vm.boot hang=vmm.shutdown")
    assert time.monotonic() - started < STOP_SECONDS + SECONDS


def test_it_ends_at_once(spec: VmSpec, directory: str, tmp_path: Path) -> None:
    binary = tmp_path / "cloud-hypervisor"
    binary.write_text(
        f"#!/bin/sh\n[ $1 = --version ] && exec {SIMULATOR} $*\n"
        "echo 'Error: cannot create hypervisor' >&2\nexit 1\n"
    )
    binary.chmod(0o755)
    driver = CloudHypervisorDriver(str(binary), kvm_obstacle=lambda: None)
    started = time.monotonic()
    with pytest.raises(LaunchFailed, match=r"its log ends with: Error: cannot create hypervisor$"):
        asyncio.run(driver.launch(dataclasses.replace(spec, landlock=False), directory))
    assert time.monotonic() - started < BUSY


def test_it_panics_over_a_kvm_without_snp(boot, tmp_path: Path) -> None:
    """Its own words for that are the first thing it says; what it says last is of no use."""
    (tmp_path / "igvm").touch()
    with pytest.raises(LaunchFailed) as caught:
        boot(tee=Tee.SNP, firmware=str(tmp_path / "igvm"), host_data=bytes(32))
    assert str(caught.value) == (
        "cannot boot the VM: cloud-hypervisor refused vm.boot: The VM could not boot: API response receive error: "
        "receiving on a closed channel; its log ends with: thread 'vmm' (4711) panicked at vmm/src/vm.rs:1459:47: "
        "called `Result::unwrap()` on an `Err` value: VmCreate(Invalid argument (os error 22)"
    )


def test_a_disk_that_is_missing(boot) -> None:
    disk = Disk(serial="block-9-9", readonly=True)
    with open(os.devnull) as nothing:
        words = r"refused vm.boot: .*Cannot open disk path: Not a directory"
        with pytest.raises(LaunchFailed, match=words):
            boot(disks=(disk,), nodes=nothing.fileno())


def test_disks_come_and_go(boot, tmp_path: Path) -> None:
    """Whether the VM was born with them or not; one that cannot be opened leaves the VM as it was."""
    (tmp_path / "block-7-1").touch()
    nodes = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    born = Disk(serial="block-7-1", readonly=True)
    later = Disk(serial="block-7-2", readonly=False)

    async def use(machine: CloudHypervisorMachine) -> None:
        with pytest.raises(ChangeFailed, match=r"refused vm\.add-disk: .*No such file"):
            await machine.add_disk(later)
        (tmp_path / "block-7-2").touch()
        await machine.add_disk(later)
        with pytest.raises(ChangeFailed, match=r"refused vm\.add-disk: .*is not unique"):
            await machine.add_disk(later)
        for disk in (born, later):
            await machine.remove_disk(disk.serial)
        with pytest.raises(ChangeFailed, match=r"refused vm\.remove-device: "):
            await machine.remove_disk(later.serial)
        await machine.stop()

    try:
        assert boot(use, disks=(born,), nodes=nodes).orderly
    finally:
        os.close(nodes)


def test_persistent_memory_comes_and_goes(boot, tmp_path: Path) -> None:
    """And where it lies is told, whether the VM was born with it or not."""
    for name in ("block-259-0", "block-259-1"):
        (tmp_path / name).write_bytes(bytes(PMEM_STEP))
    nodes = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    born = Disk(serial="block-259-0", readonly=False, pmem_bytes=PMEM_STEP)
    later = Disk(serial="block-259-1", readonly=False, pmem_bytes=PMEM_STEP)

    async def use(machine: CloudHypervisorMachine) -> None:
        with pytest.raises(ChangeFailed, match=r"refused vm\.add-pmem: .*multiple of 2MiB"):
            await machine.add_disk(dataclasses.replace(later, pmem_bytes=PMEM_STEP + 1))
        await machine.add_disk(later)
        for disk in (born, later):
            assert await machine.pmem_address(disk.serial) % PMEM_STEP == 0
            await machine.remove_disk(disk.serial)
        # One that does not know its own devices is of no use.
        with pytest.raises(ChangeFailed, match="does not say where block-259-0 lies"):
            await machine.pmem_address(born.serial)

    try:
        assert not boot(use, disks=(born,), nodes=nodes, pmem_mib=4).orderly
    finally:
        os.close(nodes)


@pytest.mark.parametrize("version", ["52.0", "53.1.0", "54.0.0-dev", "100.2"])
def test_new_enough(boot, version: str) -> None:
    assert boot(stop, f"version={version}").orderly


def test_a_launch_that_is_called_off(
    spec: VmSpec, directory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATOR", "hang=vm.boot")
    driver = CloudHypervisorDriver(SIMULATOR, kvm_obstacle=lambda: None)

    async def main() -> None:
        task = asyncio.ensure_future(
            driver.launch(dataclasses.replace(spec, landlock=False), directory)
        )
        async with asyncio.timeout(SECONDS):
            while not running(directory):
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not running(directory)

    asyncio.run(main())


# --- what is asked of it -------------------------------------------------------------------------


def test_the_calls_in_their_order_with_open_taps(boot, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    with tap() as first, tap() as second:
        nics = (
            Nic(tap_fd=first, mac="02:00:00:00:00:01", mtu=1450),
            Nic(tap_fd=second, mac="02:00:00:00:00:02", mtu=1500),
        )
        assert boot(stop, f"trace={trace}", nics=nics).orderly
    calls = [json.loads(line) for line in trace.read_text().splitlines()]
    assert [(method, name, fds) for method, name, _, fds in calls] == [
        ("GET", "vmm.ping", 0),
        ("PUT", "vm.create", 0),
        ("PUT", "vm.add-net", 1),
        ("PUT", "vm.add-net", 1),
        ("PUT", "vm.boot", 0),
        ("PUT", "vmm.shutdown", 0),
    ]
    assert json.loads(calls[3][2]) == {"id": "nic1", "mac": "02:00:00:00:00:02"}


def test_a_tap_of_another_network_namespace(boot) -> None:
    """The VMM cannot find it by its name, so it must not be told to set its MTU."""
    ready: queue.Queue[int] = queue.Queue()
    done = threading.Event()

    def elsewhere() -> None:
        namespaces.unshare(namespaces.CLONE["network"])  # this thread
        with tap() as descriptor:
            ready.put(descriptor)
            done.wait()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        nic = Nic(tap_fd=ready.get(timeout=BUSY), mac="02:00:00:00:00:01", mtu=1400)

        async def use(machine: CloudHypervisorMachine) -> None:
            with open(os.devnull) as nothing:
                wrong = dataclasses.replace(nic, tap_fd=nothing.fileno())
                with pytest.raises(ChangeFailed, match="Using existing tap: "):
                    await machine.add_nic("nic1", wrong)
            await machine.add_nic("nic1", nic)
            await machine.remove_nic("nic1")
            with pytest.raises(ChangeFailed, match=r"refused vm\.remove-device: "):
                await machine.remove_nic("nic1")
            await machine.stop()

        assert boot(use, nics=(nic,)).orderly
    finally:
        done.set()
        thread.join()


def test_something_else_than_a_tap(boot) -> None:
    with open(os.devnull) as nothing:
        nic = Nic(tap_fd=nothing.fileno(), mac="02:00:00:00:00:01", mtu=1500)
        with pytest.raises(LaunchFailed, match=r"refused vm.boot: .*Using existing tap: "):
            boot(nics=(nic,))


def test_the_guests_way_to_the_shim(boot, directory: str) -> None:
    """Whoever connects as the guest does lands where the shim listens."""

    async def use(machine: CloudHypervisorMachine) -> None:
        place = Path(directory, "vsock.sock_1024")
        assert place.is_symlink()
        assert os.readlink(place) == "channel.sock"
        await machine.stop()

    assert boot(use).orderly


# --- what is refused beforehand ------------------------------------------------------------------


def refused(spec: VmSpec, binary: str = SIMULATOR, **options: object) -> VmmError:
    driver = CloudHypervisorDriver(binary, **{"kvm_obstacle": lambda: None, **options})  # type: ignore[arg-type]
    with pytest.raises(VmmError) as caught:
        driver.check(spec)
    assert caught.value.remedy
    return caught.value


def test_no_binary(spec: VmSpec) -> None:
    error = refused(spec, "/nowhere/cloud-hypervisor")
    assert str(error) == "cannot find /nowhere/cloud-hypervisor"


@pytest.mark.parametrize("version", ["51.1.0", "28.0.0", "?"])
def test_too_old(spec: VmSpec, version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR", f"version={version}")
    error = refused(spec)
    assert str(error) == f"cannot use cloud-hypervisor v{version}-simulated: it is too old"
    assert "52 or newer" in error.remedy


def test_too_old_for_a_tpm(spec: VmSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR", "version=52.1.0")
    error = refused(dataclasses.replace(spec, tee=Tee.TPM, tpm="tpm.sock", landlock=False))
    assert str(error) == "cannot use cloud-hypervisor v52.1.0-simulated: it is too old"
    assert "53 or newer" in error.remedy


def test_built_without_what_the_vm_takes(spec: VmSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATOR", "features=io_uring,mshv")
    error = refused(spec)
    assert str(error).endswith("-simulated: it was built without kvm")
    assert "built with kvm" in error.remedy


def test_another_program(spec: VmSpec, tmp_path: Path) -> None:
    assert str(refused(spec, "/bin/true")) == (
        "cannot use /bin/true: it does not say that it is cloud-hypervisor"
    )
    (tmp_path / "binary").write_bytes(b"\x7fELF nonsense")
    (tmp_path / "binary").chmod(0o755)
    assert "Exec format error" in str(refused(spec, str(tmp_path / "binary")))


def test_what_the_running_vmm_says_counts_too(spec: VmSpec, directory: str, tmp_path: Path) -> None:
    """The binary may have been replaced."""
    binary = tmp_path / "cloud-hypervisor"
    binary.write_text(
        f"#!/bin/sh\n[ $1 = --version ] || SIMULATOR=version=51.0.0\n"
        f"export SIMULATOR\nexec {SIMULATOR} $*\n"
    )
    binary.chmod(0o755)
    driver = CloudHypervisorDriver(str(binary), kvm_obstacle=lambda: None)
    with pytest.raises(HostUnfit, match=r"cannot use cloud-hypervisor 51\.0\.0: it is too old"):
        asyncio.run(driver.launch(dataclasses.replace(spec, landlock=False), directory))
    assert not running(directory)


def test_no_kvm(spec: VmSpec) -> None:
    error = refused(spec, kvm_obstacle=lambda: "the CPU shows neither vmx nor svm")
    assert isinstance(error, HostUnfit)
    assert str(error) == "cannot use KVM: the CPU shows neither vmx nor svm"


def test_the_look_at_kvm_is_the_hosts_own_unless_a_test_says_otherwise(spec: VmSpec) -> None:
    driver = load(DriverName.CLOUD_HYPERVISOR, SIMULATOR)
    loose = dataclasses.replace(spec, landlock=False)
    if kvm.obstacle() is None:
        driver.check(loose)
    else:
        with pytest.raises(HostUnfit, match="cannot use KVM: "):
            driver.check(loose)


def test_no_landlock(spec: VmSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "obstacle", lambda: "the kernel has none")
    error = refused(spec)
    assert str(error) == "cannot confine cloud-hypervisor by Landlock: the kernel has none"
    assert "vm.insecure_no_landlock" in error.remedy
    driver = CloudHypervisorDriver(SIMULATOR, kvm_obstacle=lambda: None)
    driver.check(dataclasses.replace(spec, landlock=False))


def test_a_kernel_without_pvh(spec: VmSpec) -> None:
    loose = dataclasses.replace(spec, kernel="/bin/true", landlock=False)
    error = refused(loose)
    assert isinstance(error, SpecRefused)
    assert str(error) == "cannot boot the guest's kernel /bin/true: it has no PVH entry point"


def test_no_kernel_and_too_little_memory(spec: VmSpec) -> None:
    loose = dataclasses.replace(spec, landlock=False)
    assert "guest's kernel /nowhere" in str(refused(dataclasses.replace(loose, kernel="/nowhere")))
    assert "MiB" in str(refused(dataclasses.replace(loose, memory_mib=64)))
