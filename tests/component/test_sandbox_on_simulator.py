"""A sandbox with nothing simulated but the hypervisor: the command line, the shim, the Cloud
Hypervisor driver, the agent, crun and the container are real, and a life takes a second.

The life cycle's cases are those of tests/system/test_lifecycle.py, which run there in a real VM and
against runc, and of test_vm_life.py. What follows them here is what no real VM can be asked for.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import cli, oci, simulated
from sealrun_vmm.cloud_hypervisor.machine import STOP_SECONDS
from simulators import openapi, simulated_guest
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
)
from system.test_vm_life import (  # noqa: F401 - they are collected here
    SETTINGS,
    test_a_paused_container_whose_vmm_is_killed,
    test_a_vm_that_hangs_does_not_hold_up_a_delete,
    test_a_vm_that_was_frozen_catches_up_and_one_that_hangs_is_ended,
    test_the_vmm_is_killed,
)

pytestmark = pytest.mark.root

SECONDS = 60.0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sealrun` below a prefix."""
    return simulated.install(tmp_path_factory.mktemp("prefix"), settings=SETTINGS)


@pytest.fixture
def runtime(program: Path, tmp_path: Path) -> Iterator[oci.Runtime]:
    """The command line with a state root of its own; nothing of it may be left at the end."""
    runtime = oci.Runtime(
        "sealrun", str(program), tmp_path / "root", {"io.sealrun.image": simulated.IMAGE}
    )
    runtime.limits = simulated_guest.has_limits()
    yield runtime
    runtime.clean()
    wait_until(lambda: not processes(runtime))
    assert not runtime.root.exists() or not list(runtime.root.iterdir())
    simulated_guest.remove_cgroups()


@pytest.fixture
def make(runtime: oci.Runtime, tmp_path: Path):
    """make(script, **process) -> a bundle."""

    def make_bundle(script: str | list[str], name: str = "bundle", **process: object) -> Path:
        return simulated.bundle(tmp_path / name, script, runtime.annotations, **process)

    return make_bundle


@pytest.fixture
def sandbox(runtime: oci.Runtime, make):
    """sandbox(script, **annotations of the test): a container that was created, its directory."""

    def create(script: str = "sleep 1000", **switches: str) -> Path:
        runtime.annotations |= {
            f"test.{name.replace('_', '-')}": value for name, value in switches.items()
        }
        created = runtime.create(make(script), "c1")
        assert created.ok, created.stderr
        return runtime.root / "c1"

    return create


def wait_until(holds: Callable[[], bool], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes(runtime: oci.Runtime) -> list[str]:
    """What runs in or for a sandbox of this test: shim, VMM and the guest's processes."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            if str(runtime.root) in command + os.readlink(f"/proc/{pid}/cwd"):
                found.append(command)
    return found


def ended(runtime: oci.Runtime) -> str:
    """Why the sandbox ended; its stand-in has gone with it."""
    state = runtime.wait_for("c1", "stopped", SECONDS)
    assert state["annotations"]["io.sealrun.exit-code"] == "137"
    reason: str = state["annotations"]["io.sealrun.exit-reason"]
    return reason


# --- the sandbox's ends that its VMM brings about ------------------------------------------------


def test_the_state_names_the_vmm(runtime: oci.Runtime, sandbox) -> None:
    sandbox()
    state = runtime.state("c1")
    assert state is not None
    assert state["annotations"]["io.sealrun.vmm"] == "cloud-hypervisor/kvm"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGKILL, "cloud-hypervisor ended with signal 9"),
        (signal.SIGUSR1, "the guest failed: it reset itself"),
        (signal.SIGTERM, "the guest powered off"),
    ],
)
def test_the_vm_ends(runtime: oci.Runtime, sandbox, number: int, reason: str) -> None:
    directory = sandbox()
    assert runtime("start", "c1").ok
    pid = runtime.wait_for("c1", "running")["pid"]
    simulated.Sandbox(directory).kill("vmm", number)
    assert reason in ended(runtime)
    wait_until(lambda: not oci.alive(pid))


def test_a_reset_is_not_survived_by_a_second_guest(runtime: oci.Runtime, sandbox) -> None:
    """Cloud Hypervisor boots the guest anew in the same process, and it would come to greet."""
    directory = sandbox()
    simulated.Sandbox(directory).kill("vmm", signal.SIGUSR1)
    assert "the guest failed" in ended(runtime)
    assert (directory / "shim.log").read_text().count("hello: ") == 1


def test_a_vm_grows_before_its_container_may(runtime: oci.Runtime, sandbox, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    sandbox(simulator=f"trace={trace}")
    runtime("update", "--memory", "600m", "--cpu-quota", "150000", "c1")
    calls = [json.loads(line) for line in trace.read_text().splitlines()]
    resizes = [json.loads(body) for _, name, body, _ in calls if name == "vm.resize"]
    assert resizes[:2] == [{"desired_vcpus": 2}, {"desired_ram": (512 + 640) << 20}]
    assert runtime.state("c1")["status"] == "created"


@pytest.mark.parametrize("call", ["vm.resize", "vm.info"])
@pytest.mark.parametrize(
    ("misbehaviour", "text"),
    [
        ("die", "cloud-hypervisor gave no answer to {call}"),
        ("hang", "cloud-hypervisor did not answer {call} in 10 s"),
        ("garble", "cloud-hypervisor gave no answer to {call}: an answer does not begin"),
    ],
)
def test_a_vmm_that_is_lost_at_an_update_ends_the_sandbox(
    runtime: oci.Runtime, sandbox, call: str, misbehaviour: str, text: str
) -> None:
    sandbox(simulator=f"{misbehaviour}={call}")
    outcome = runtime("update", "--memory", "600m", "c1")
    assert outcome.status == 1
    text = text.format(call=call)
    assert f"cannot resize the VM: {text}" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    reason = ended(runtime)
    assert text in reason or "cloud-hypervisor ended with status 1" in reason


def test_a_vmm_that_refuses_an_update_goes_on(runtime: oci.Runtime, sandbox) -> None:
    sandbox(simulator="refuse=vm.resize")
    outcome = runtime("update", "--memory", "600m", "c1")
    assert "cannot resize the VM: cloud-hypervisor refused vm.resize" in outcome.stderr
    assert runtime("start", "c1").ok


@pytest.mark.parametrize("misbehaviour", ["die", "hang", "garble", "refuse"])
def test_a_vmm_that_is_lost_at_its_end_does_not_hold_up_a_delete(
    runtime: oci.Runtime, sandbox, misbehaviour: str
) -> None:
    sandbox(simulator=f"{misbehaviour}=vmm.shutdown")
    assert runtime("start", "c1").ok
    began = time.monotonic()
    deleted = runtime("delete", "--force", "c1")
    assert deleted.ok, deleted.stderr
    assert time.monotonic() - began < STOP_SECONDS + SECONDS
    assert runtime.state("c1") is None


def test_a_vmm_that_hangs_at_its_end_takes_no_exit_code_away(runtime: oci.Runtime, sandbox) -> None:
    sandbox("exit 7", simulator="hang=vmm.shutdown")
    assert runtime("start", "c1").ok
    state = runtime.wait_for("c1", "stopped", STOP_SECONDS + SECONDS)
    assert state["annotations"]["io.sealrun.exit-code"] == "7"
    assert runtime("delete", "c1").ok


# --- and a create that fails because of it -------------------------------------------------------


@pytest.mark.parametrize("call", ["vmm.ping", "vm.create", "vm.boot"])
@pytest.mark.parametrize(
    ("misbehaviour", "text"),
    [
        ("die", "cloud-hypervisor gave no answer to {call}: "),
        ("hang", "cloud-hypervisor did not answer {call} in 4 s"),
        ("garble", "cloud-hypervisor gave no answer to {call}: an answer does not begin"),
        ("refuse", "cloud-hypervisor refused {call}: The VM could not boot: it was told to: "),
    ],
)
def test_a_vmm_that_fails_fails_the_create(
    runtime: oci.Runtime, make, call: str, misbehaviour: str, text: str
) -> None:
    runtime.annotations |= {
        "test.simulator": f"{misbehaviour}={call}",
        "test.launch-seconds": "4",
    }
    outcome = runtime.create(make("true"), "c1")
    assert outcome.status == 1
    assert f"cannot boot the VM: {text.format(call=call)}" in outcome.stderr
    assert len(outcome.stderr.splitlines()) == 1
    assert runtime.state("c1") is None


def test_too_old_a_vmm_is_refused_with_the_remedy(runtime: oci.Runtime, make) -> None:
    runtime.annotations |= {"test.simulator": "version=51.0.0"}
    outcome = runtime.create(make("true"), "c1")
    assert outcome.status == 1
    assert "cannot use cloud-hypervisor v51.0.0-simulated: it is too old; install" in outcome.stderr


def test_a_guest_that_never_says_a_word(runtime: oci.Runtime, make, tmp_path: Path) -> None:
    (tmp_path / "prefix").mkdir()
    runtime.binary = str(simulated.install(tmp_path / "prefix", boot_seconds=3, settings=SETTINGS))
    runtime.annotations |= {"test.simulator": "guest=none"}
    outcome = runtime.create(make("true"), "c1")
    assert outcome.status == 1
    assert "the guest did not say a word within 3 s" in outcome.stderr


# --- the simulator itself ------------------------------------------------------------------------


def test_every_request_was_judged() -> None:
    if openapi.SPECIFICATION is None:
        pytest.skip("../shared/reference has no OpenAPI description: nothing was judged here")
    with pytest.raises(openapi.Violation):
        openapi.check_request("PUT", "vm.create", b"{}")


def test_an_installed_sealrun_cannot_select_it() -> None:
    """No product file names it, and configuration leads to the look at the host's own KVM."""
    for room in ("runtime", "vmm", "guest-agent", "key-broker", "config", "install.sh"):
        place = cli.ROOT / room
        files = (
            [place] if place.is_file() else (path for path in place.rglob("*") if path.is_file())
        )
        for path in files:
            if "__pycache__" not in path.parts:
                text = path.read_bytes()
                assert b"simulators" not in text, path
                assert b"kvm_obstacle=" not in text, path


def test_a_killed_exec_leaves_nobody_to_be_reaped(
    runtime: oci.Runtime, make, tmp_path: Path
) -> None:
    """conmon does it to a probe that takes too long; the container's stand-in inherits what is left."""
    runtime.run(make("sleep 1000"))
    first = (runtime.state("c1") or {})["pid"]
    file = tmp_path / "pid"
    words = ("--detach", "--pid-file", str(file), "c1", "/bin/sleep", "1000")
    for _ in range(3):
        with open(os.devnull, "r+b") as null:
            command = [runtime.binary, "--root", str(runtime.root), "exec", *words]
            subprocess.run(command, stdin=null, stdout=null, stderr=null, check=True, timeout=60)
        os.kill(int(file.read_text()), signal.SIGKILL)
    wait_until(lambda: oci.descendants(first) == [])
    assert runtime("exec", "c1", "/bin/true").ok


def _limited(runtime: oci.Runtime, limit: str, directory: Path) -> oci.Runtime:
    """The same, called by an engine with this `ulimit`."""
    wrapper = directory / "limited"
    wrapper.write_text(f'#!/bin/sh\nulimit {limit} && exec {runtime.binary} "$@"\n')
    wrapper.chmod(0o755)
    return dataclasses.replace(runtime, binary=str(wrapper))


def test_a_small_soft_limit_of_open_files_is_raised(
    runtime: oci.Runtime, make, tmp_path: Path
) -> None:
    """A shim and a hypervisor need more than 20."""
    limited = _limited(runtime, "-Sn 12", tmp_path)
    limited.run(make("sleep 1000"))
    done = limited("exec", "c1", "sh", "-c", "exit 7")
    assert done.status == 7, done.stderr


def test_a_small_hard_limit_of_open_files_is_named(
    runtime: oci.Runtime, make, tmp_path: Path
) -> None:
    created = _limited(runtime, "-n 20", tmp_path).create(make("sleep 1000"), "c1")
    text = (
        "sealrun: cannot start a VM where a process may have no more than 20 files open; give the engine a "
        "hard limit of 128 or more (ulimit -Hn, LimitNOFILE= of its unit)\n"
    )
    assert (created.status, created.stderr) == (1, text)
    assert not runtime.root.exists() or not os.listdir(runtime.root)
