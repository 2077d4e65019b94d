"""A VM with a TPM, measured by OVMF: what its PCRs say, how it lives, and what is left of it."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import oci, traces
from fixtures import podman as podmans
from fixtures import workload as workloads
from sealrun_protocol.init_data import decode_annotation

pytestmark = [pytest.mark.vm, pytest.mark.tpm, pytest.mark.podman, pytest.mark.root]

PCRS = "/sys/class/tpm/tpm0/pcr-sha256"
SHOW = f"for n in $(seq 0 13); do cat {PCRS}/$n; done; echo end; sleep 1000"
CONTAINER = "tpm-container-one"
UNTOUCHED = "0" * 64


@pytest.fixture(scope="module")
def settings() -> Iterator[Callable[[str], None]]:
    """settings(toml) holds for every container created until the end of the module."""
    path = Path("/etc/sealrun/sealrun.toml.d/60-tpm.toml")

    def write(text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    yield write
    path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def tpm_state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tpm")


@pytest.fixture(scope="module")
def runtime(
    settings: Callable[[str], None], busybox_annotations: workloads.Annotations, tpm_state: Path
) -> Iterator[oci.Runtime]:
    settings(f'tee = "tpm"\n[vm]\ntpm_state = "{tpm_state}"\n')
    binary = shutil.which("sealrun")
    assert binary
    runtime = oci.Runtime("sealrun", binary, podmans.STATE_ROOT, busybox_annotations)
    yield runtime
    runtime.clean()


@pytest.fixture(scope="module")
def pcrs(
    runtime: oci.Runtime, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[int, str]:
    """The PCRs of a container's VM, as its kernel shows them; the container runs on."""
    place = tmp_path_factory.mktemp("running")
    bundle = oci.bundle(place / "bundle", rootfs, SHOW, runtime.annotations)
    created = runtime.create(bundle, CONTAINER)
    assert created.ok, created.stderr
    assert runtime("start", CONTAINER).ok
    deadline = time.monotonic() + 60
    while not (lines := (bundle / "stdout").read_text()).endswith("end\n"):
        assert time.monotonic() < deadline, lines
        time.sleep(0.1)
    return dict(enumerate(line.lower() for line in lines.splitlines()[:-1]))


def test_the_firmware_measured_what_it_booted(runtime: oci.Runtime, pcrs: dict[int, str]) -> None:
    state = runtime.state(CONTAINER)
    assert state is not None
    assert state["annotations"]["io.sealrun.tee"] == "tpm"
    measured = {number for number, value in pcrs.items() if value != UNTOUCHED}
    assert {0, 1, 2, 3, 4, 5, 6, 7, 9} <= measured


def test_measure_says_what_the_vm_measured(
    runtime: oci.Runtime, pcrs: dict[int, str], tmp_path: Path
) -> None:
    """The same VmSpec, booted and computed; the init-data is put into PCR 8 by the agent."""
    annotation = runtime.annotations["io.sealrun.init-data"]
    (tmp_path / "init-data.toml").write_bytes(decode_annotation(annotation))
    options = ("--init-data", str(tmp_path / "init-data.toml"), "--format", "broker")
    measured = json.loads(runtime("measure", *options).stdout)
    expected = {int(name.removeprefix("tpm_pcr")): value for name, value in measured.items()}
    assert set(expected) == {2, 3, 4, 5, 6, 7, 8, 9}
    assert {number: [pcrs[number]] for number in expected} == expected


def test_check_says_that_it_boots(runtime: oci.Runtime) -> None:
    checked = runtime("check")
    assert checked.ok
    last = checked.stdout.decode().splitlines()[-1]
    assert last.startswith("ok  a container: boots by qemu with ")
    assert last.endswith(", tee tpm")


def test_the_emulator_is_confined(pcrs: dict[int, str]) -> None:
    (pid,) = traces.processes(CONTAINER, "swtpm")
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["Uid"].split() == ["65534"] * 4
    assert status["Groups"].strip() == ""
    assert status["CapEff"] == "0" * 16
    assert status["Seccomp"] == "2"
    assert (podmans.STATE_ROOT / CONTAINER / "tpm").stat().st_uid == 65534


def test_every_tpm_of_this_host_has_the_same_seeds(pcrs: dict[int, str], tpm_state: Path) -> None:
    (state,) = tpm_state.iterdir()
    assert state.stat().st_mode & 0o077 == 0


def test_nothing_is_left_of_a_tpm(runtime: oci.Runtime, pcrs: dict[int, str]) -> None:
    """Without its TPM the VM is lost; who asks is told why."""
    (pid,) = traces.processes(CONTAINER, "swtpm")
    os.kill(pid, signal.SIGKILL)
    state = runtime.wait_for(CONTAINER, "stopped")
    assert state["annotations"]["io.sealrun.exit-code"] == "137"
    assert "the VM's TPM emulator ended" in state["annotations"]["io.sealrun.exit-reason"]
    assert runtime("delete", CONTAINER).ok
    traces.wait_until_gone(CONTAINER, podmans.STATE_ROOT)


@pytest.mark.parametrize("victim", ["tpm-crb,tpmdev=tpm0", "/runtime/bin/sealrun-shim"])
def test_a_process_dies_while_the_vm_boots(
    runtime: oci.Runtime, rootfs: Path, tmp_path: Path, victim: str
) -> None:
    container = f"tpm-container-{len(victim)}"
    bundle = oci.bundle(tmp_path / "bundle", rootfs, "true", runtime.annotations)
    ended: list[oci.Outcome] = []
    creating = threading.Thread(target=lambda: ended.append(runtime.create(bundle, container)))
    creating.start()
    deadline = time.monotonic() + 60
    while not (traces.processes(container, "--tpmstate") and traces.processes(container, victim)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(traces.processes(container, victim)[0], signal.SIGKILL)
    creating.join()
    assert not ended[0].ok
    traces.wait_until_gone(container, podmans.STATE_ROOT)


def test_too_little_memory_for_the_firmware(
    runtime: oci.Runtime, rootfs: Path, tmp_path: Path
) -> None:
    annotations = runtime.annotations | {"io.sealrun.memory": "256"}
    bundle = oci.bundle(tmp_path / "bundle", rootfs, "true", annotations)
    refused = runtime.create(bundle, "tpm-container-small")
    assert "cannot boot this guest image in 256 MiB: it needs" in refused.stderr
    traces.wait_until_gone("tpm-container-small", podmans.STATE_ROOT)
