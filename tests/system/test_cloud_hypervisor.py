"""The real Cloud Hypervisor, the one on PATH; it is no package of Debian's, so there may be none, and
then these tests are skipped and say so.

It needs KVM. Where this host has it, the tests run on this host. Where not, one test boots a machine
that QEMU emulates with KVM in it, on this host's own files, and runs this file there.
"""

import asyncio
import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import hypervisor_cases, netns, oci
from fixtures import workload as workloads
from fixtures.loop import Loop
from fixtures.outer_machine import PERSISTENT, OuterMachine
from fixtures.recording import Recording
from sealrun_vmm import assets, cmdline, kvm
from sealrun_vmm.cloud_hypervisor import landlock
from sealrun_vmm.cloud_hypervisor.driver import CloudHypervisorDriver
from sealrun_vmm.driver import MachineExit
from sealrun_vmm.spec import Accelerator, VmSpec
from simulators import openapi
from system import test_block_devices
from system.test_block_devices import (  # noqa: F401 - they are collected here
    disks,
    memories,
    test_a_container_has_what_it_was_given,
    test_a_pods_vm_gets_it_while_it_runs,
    test_persistent_memory_is_that_for_the_container_too,
)
from system.test_lifecycle import (  # noqa: F401 - they are collected here
    test_a_bad_id_is_refused,
    test_a_malformed_config_is_an_error_before_anything_starts,
    test_a_missing_bundle_is_named,
    test_a_missing_program_is_named,
    test_a_paused_container_stands_still,
    test_a_program_that_is_not_executable_is_named,
    test_a_whole_life,
    test_an_unknown_container,
    test_death_by_signal_is_128_plus_n,
    test_delete_force_of_a_created_and_of_a_running_container,
    test_kill_ends_a_program_by_name_and_number,
    test_limits_are_changed_while_it_runs,
    test_list_and_features,
    test_programs_are_executed_in_a_running_container,
    test_run_passes_stdio_and_the_exit_code,
    wait_for_output,
)
from system.test_tee_cloud_hypervisor import test_how_far_snp_gets  # noqa: F401 - the same
from system.test_vm_life import (  # noqa: F401 - they are collected here
    SETTINGS,
    test_a_paused_container_whose_vmm_is_killed,
    test_a_vm_is_as_large_as_its_container_is_allowed,
    test_a_vm_that_hangs_does_not_hold_up_a_delete,
    test_a_vm_that_was_frozen_catches_up_and_one_that_hangs_is_ended,
    test_the_vm_grows_and_shrinks_with_the_limits,
    test_the_vmm_is_killed,
)

BINARY = shutil.which("cloud-hypervisor")
KVM_OBSTACLE = kvm.obstacle()
ROOT = Path(__file__).parents[2]
OUTER_SECONDS = 2400
CONFINED = (
    "landlock_keeps or whole_life or pods_vm or that_for_the_container_too"
    " or volume_is_live or its_tpm"
)
CACHE = "/var/cache/sealrun/guest-image"  # install.sh filled it

pytestmark = [
    pytest.mark.vm,
    pytest.mark.root,
    pytest.mark.skipif(BINARY is None, reason="there is no cloud-hypervisor on PATH"),
]


@pytest.fixture(autouse=True)
def place(request: pytest.FixtureRequest) -> None:
    """Most of these tests need KVM, and one is for hosts without."""
    outer = request.function in (test_in_a_machine_with_kvm, test_landlock_in_a_machine_with_kvm)
    if outer and KVM_OBSTACLE is None:
        pytest.skip("this host has KVM: the tests run on it")
    if not outer and KVM_OBSTACLE is not None:
        pytest.skip(f"KVM cannot be used here ({KVM_OBSTACLE}): see test_in_a_machine_with_kvm")


def test_in_a_machine_with_kvm(tmp_path: Path) -> None:
    console = in_a_machine(tmp_path, "auto", "")
    assert "status: 0" in console.splitlines()
    assert " passed" in console


def test_landlock_in_a_machine_with_kvm(tmp_path: Path) -> None:
    """Debian's own kernel has no Landlock of the version that it takes, a newer one has; it runs steadily
    only where that is slow, so this is what needs it and no more."""
    if landlock.obstacle() is None and KVM_OBSTACLE is None:
        pytest.skip("this host has Landlock: the tests run on it")
    console = in_a_machine(tmp_path, "backports", f"-k '{CONFINED}'")
    assert "status: 0" in console.splitlines()
    assert " 7 passed" in console


def in_a_machine(directory: Path, kernels: str, choice: str) -> str:
    assert BINARY is not None
    options = "-v -p no:cacheprovider --color=no --basetemp=/run/pytest -o faulthandler_timeout=120"
    command = f"{sys.executable} -I -m pytest {options} {choice} {__file__}"
    path = os.pathsep.join([os.path.dirname(BINARY), os.environ["PATH"]])
    return OuterMachine(directory, CACHE, kernels).run(command, ROOT, path, OUTER_SECONDS)


# --- with KVM ------------------------------------------------------------------------------------


@pytest.fixture
def recording(tmp_path: Path) -> Iterator[Recording]:
    """Cloud Hypervisor; what was said to it, and what it answered, is put to its OpenAPI description."""
    assert BINARY is not None
    recording = Recording(BINARY, tmp_path / "recording")
    yield recording
    recording.judge()


@pytest.fixture
def settings(recording: Recording, operator_settings: Callable[[str], None]) -> None:
    """The driver is chosen by configuration alone."""
    bare = str(landlock.obstacle() is not None).lower()
    driver = f'driver = "cloud-hypervisor"\ncloud_hypervisor = "{recording.binary}"\n'
    operator_settings(f"{SETTINGS}{driver}insecure_no_landlock = {bare}\n")


@pytest.fixture
def runtime(settings: None, workload: workloads.Workload, tmp_path: Path) -> Iterator[oci.Runtime]:
    binary = shutil.which("sealrun")
    assert binary, "sealrun is not installed: run tests/run"
    allowed = test_block_devices.allowed(workload)
    runtime = oci.Runtime("sealrun", binary, tmp_path / "root", dict(allowed))
    yield runtime
    runtime.clean()


def guest_image() -> Path:
    """The guest image of the installed sealrun, or of a checkout's."""
    library = Path(shutil.which("sealrun") or "").resolve().parents[2]
    installed = library.parents[1] / "share/sealrun/guest"
    return installed if installed.is_dir() else library / "build/guest"


@pytest.fixture
def spec() -> VmSpec:
    guest = assets.locate(str(guest_image()))
    return VmSpec(
        name="x",
        accelerator=Accelerator.KVM,
        cpus=1,
        memory_mib=512,
        kernel=guest.kernel,
        initrd=guest.initrd,
        cmdline=cmdline.base(Accelerator.KVM),
        landlock=landlock.obstacle() is None,
    )


def test_the_interface(spec: VmSpec, tmp_path: Path) -> None:
    """It is what the simulator stands for."""
    assert BINARY is not None
    recording = Recording(BINARY, tmp_path / "recording")
    (tmp_path / "vmm").mkdir()
    asyncio.run(hypervisor_cases.run(recording.binary, tmp_path / "vmm", spec))
    assert recording.names() >= hypervisor_cases.CALLS
    recording.judge(wrong_requests=True)


def test_what_is_said_is_judged() -> None:
    if openapi.SPECIFICATION is None:
        pytest.skip("../shared/reference has no OpenAPI description: nothing was judged here")
    with pytest.raises(openapi.Violation):
        openapi.check_answer("PUT", "vm.create", 204, b"{}")


def test_a_guest_that_panics_is_not_booted_again(
    spec: VmSpec, recording: Recording, tmp_path: Path
) -> None:
    (tmp_path / "cut").write_bytes(Path(spec.initrd).read_bytes()[: 8 << 20])
    broken = dataclasses.replace(spec, initrd=str(tmp_path / "cut"))

    async def end() -> MachineExit:
        machine = await CloudHypervisorDriver(recording.binary).launch(broken, str(tmp_path))
        return await asyncio.wait_for(machine.wait(), hypervisor_cases.SECONDS)

    ended = asyncio.run(end())
    assert not ended.orderly
    assert ended.reason.startswith("the guest failed: Kernel panic - not syncing: ")
    assert (tmp_path / "console.log").read_text(errors="replace").count("Kernel panic") <= 2


@pytest.mark.parametrize("confined", [True, False])
def test_landlock_keeps_it_to_its_files(
    spec: VmSpec, recording: Recording, tmp_path: Path, confined: bool
) -> None:
    if confined and (obstacle := landlock.obstacle()) is not None:
        pytest.skip(f"Landlock cannot be used here: {obstacle}")
    changed = dataclasses.replace(spec, landlock=confined)
    reaching = hypervisor_cases.reach_out(recording.binary, tmp_path, changed, refused=confined)
    asyncio.run(reaching)


def test_the_state_names_it(runtime: oci.Runtime, recording: Recording, make) -> None:
    assert runtime.create(make("sleep 1000"), "c1").ok
    (said,) = recording.lives()
    booted = [("vmm.ping", 200), ("vm.create", 204), ("vm.boot", 204)]
    assert [(exchange.name, exchange.status) for exchange in said] == booted
    state = runtime.state("c1")
    assert state is not None
    assert state["annotations"]["io.sealrun.vmm"] == "cloud-hypervisor/kvm"


def test_a_volume_is_live_in_both_directions(
    runtime: oci.Runtime, rootfs: Path, workload: workloads.Workload, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/given").write_text("of the host\n")
    allowed = workloads.open_annotations(
        workload.plain,
        workload.registry.address,
        '[host]\ninsecure_shared_directories = ["/data"]',
    )
    script = "cat /data/given; echo of the guest >/data/made; sleep 1000"
    bundle = oci.bundle(tmp_path / "bundle", rootfs, script, allowed)
    volume = {"destination": "/data", "type": "bind", "source": str(tmp_path / "data")}
    mounts = [*oci.read(bundle)["mounts"], volume | {"options": ["rbind", "rw"]}]
    runtime.run(oci.edit(bundle, {"mounts": mounts}))
    wait_for_output(bundle / "stdout", b"of the host\n")
    made = tmp_path / "data/made"
    _wait(lambda: made.exists() and made.read_text() == "of the guest\n")


def test_a_pmem_namespace_is_mapped(runtime: oci.Runtime, rootfs: Path, tmp_path: Path) -> None:
    """One that Linux itself takes for persistent memory, and the host has what the guest wrote."""
    if PERSISTENT not in Path("/proc/cmdline").read_text().split():
        pytest.skip("only the emulated machine's persistent memory is there to be overwritten")
    pmem = Loop(Path("/dev/pmem0"), "/dev/pmem0")
    assert Path("/sys/block/pmem0/queue/dax").read_text() == "1\n"
    test_block_devices.format_for_direct_access(pmem.node)
    bundle = oci.bundle(tmp_path / "b", rootfs, "sleep 1000", runtime.annotations)
    given = test_block_devices.linux((pmem, "/dev/xvda", "rw"))
    runtime.run(oci.edit(bundle, {"linux": oci.read(bundle)["linux"] | given}))
    shell = ("busybox", "sh", "-ec", test_block_devices.MAP)
    mapped = runtime("exec", "--cap", "CAP_SYS_ADMIN", "c1", *shell)
    assert mapped.ok, mapped.stderr
    assert b"dax=always" in mapped.stdout
    written = test_block_devices.read_from(pmem.node, "file")
    assert written == b"written without a cache\n"


def test_it_has_the_networks_of_its_namespace_and_follows_them(runtime: oci.Runtime, make) -> None:
    with netns.pair() as (inside, outside):
        inside("ip address add 10.1.1.2/24 dev eth0")
        outside("ip address add 10.1.1.1/24 dev far")
        bundle = make("sleep 1000")
        linux = oci.read(bundle)["linux"]
        own = [one for one in linux["namespaces"] if one["type"] != "network"]
        own.append({"type": "network", "path": inside.path})
        runtime.run(oci.edit(bundle, {"linux": linux | {"namespaces": own}}))

        def reached(address: str) -> bool:
            ping = ("busybox", "ping", "-c", "3", "-w", "60", address)
            return runtime("exec", "--cap", "CAP_NET_RAW", "c1", *ping).ok

        assert reached("10.1.1.1")
        netns.connect(inside, "eth1", outside, "far1")
        inside("ip address add 10.1.2.2/24 dev eth1")
        outside("ip address add 10.1.2.1/24 dev far1")
        _wait(lambda: reached("10.1.2.1"))
        inside("ip link delete eth1")
        _wait(lambda: not runtime("exec", "c1", "busybox", "ip", "link", "show", "eth1").ok)
        assert reached("10.1.1.1")
        assert runtime("delete", "--force", "c1").ok
        assert not inside.redirected("eth0")


def _wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + hypervisor_cases.SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_its_tpm_is_the_guests(
    operator_settings: Callable[[str], None],
    recording: Recording,
    runtime: oci.Runtime,
    make,
    tmp_path: Path,
) -> None:
    """The emulator's TPM is the guest's, who finds measured what was booted, and quotes it."""
    bare = str(landlock.obstacle() is not None).lower()
    operator_settings(
        f'tee = "tpm"\n{SETTINGS}driver = "cloud-hypervisor"\ncloud_hypervisor = "{recording.binary}"\n'
        f'insecure_no_landlock = {bare}\ntpm_state = "{tmp_path}/seeds"\n'
    )
    pcrs = "/sys/class/tpm/tpm0/pcr-sha256"
    bundle = make(f"for n in $(seq 0 9); do cat {pcrs}/$n; done; echo end; sleep 1000")
    created = runtime.create(bundle, "c1")
    assert created.ok, created.stderr
    assert runtime("start", "c1").ok
    output = bundle / "stdout"
    wait_for_output(output, b"end")
    found = [value.lower() for value in output.read_text().split()[:-1]]
    measured = json.loads(runtime("measure", "--format", "broker").stdout)
    expected = {int(name.removeprefix("tpm_pcr")): value for name, value in measured.items()}
    assert set(expected) == {0, 1, 2, 3, 4, 5, 6, 7, 9}
    assert {number: [found[number]] for number in expected} == expected
    untouched = {number for number, value in enumerate(found) if value == "0" * 64}
    assert untouched.isdisjoint({4, 8, 9})  # kernel, init-data, command line and initrd
    evidence = tmp_path / "evidence.json"
    done = runtime("attest", "--no-verify", "--output", str(evidence), "c1")
    assert done.ok, done.stderr
    assert json.loads(evidence.read_text())["tee"] == "tpm"
    state = runtime.state("c1")
    assert state is not None
    assert state["annotations"]["io.sealrun.tee"] == "tpm"
