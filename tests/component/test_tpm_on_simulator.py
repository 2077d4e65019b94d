"""A VM with a TPM by Cloud Hypervisor, which is simulated: its way with the emulator, and the 100 ms that it
waits for an answer. Command line, shim, driver, relay, emulator, agent and container are real.

The same on the real one: test_its_tpm_is_the_guests in tests/system/test_cloud_hypervisor.py.
"""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fixtures import oci, simulated
from simulators import simulated_guest
from system.test_vm_life import SETTINGS

pytestmark = [pytest.mark.root, pytest.mark.tpm]


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("prefix")
    settings = f'tee = "tpm"\n{SETTINGS}tpm_state = "{directory}/seeds"\n'
    simulated.install(directory, settings=settings)
    return directory


@pytest.fixture
def runtime(prefix: Path, tmp_path: Path) -> Iterator[oci.Runtime]:
    runtime = oci.Runtime(
        "sealrun",
        str(prefix / "bin/sealrun"),
        tmp_path / "root",
        {"io.sealrun.image": simulated.IMAGE},
    )
    yield runtime
    runtime.clean()
    simulated_guest.remove_cgroups()


@pytest.fixture
def sandbox(runtime: oci.Runtime, tmp_path: Path) -> simulated.Sandbox:
    """One that was created."""
    bundle = simulated.bundle(tmp_path / "bundle", "sleep 1000", runtime.annotations)
    created = runtime.create(bundle, "c1")
    assert created.ok, created.stderr
    return simulated.Sandbox(runtime.root / "c1")


def test_the_guest_quotes_what_was_booted(
    runtime: oci.Runtime, sandbox: simulated.Sandbox, tmp_path: Path
) -> None:
    state = runtime.state("c1")
    assert state is not None
    assert state["annotations"]["io.sealrun.tee"] == "tpm"
    file = tmp_path / "evidence.json"
    done = runtime("attest", "--no-verify", "--output", str(file), "c1")
    assert done.ok, done.stderr
    (quoted,) = find(json.loads(file.read_text()), "pcrs")
    machine = ("--driver", "cloud-hypervisor", "--accelerator", "kvm")
    measured = json.loads(runtime("measure", *machine, "--format", "broker").stdout)
    expected = {int(name.removeprefix("tpm_pcr")): value for name, value in measured.items()}
    assert set(expected) == {0, 1, 2, 3, 4, 5, 6, 7, 9}
    assert {number: [quoted[number]] for number in expected} == expected
    assert {number for number in expected if quoted[number] != "0" * 64} == {4, 9}


def find(document: Any, name: str) -> Iterator[Any]:
    """Every member of that name, however deep."""
    if isinstance(document, dict):
        yield from (value for member, value in document.items() if member == name)
        for value in document.values():
            yield from find(value, name)
    elif isinstance(document, list):
        for value in document:
            yield from find(value, name)


def test_the_tpm_ends_with_the_sandbox(runtime: oci.Runtime, sandbox: simulated.Sandbox) -> None:
    emulator = sandbox.pid("swtpm")
    assert runtime("delete", "--force", "c1").ok
    with pytest.raises(ProcessLookupError):
        os.kill(emulator, 0)


def test_a_sandbox_without_its_tpm_is_ended(
    runtime: oci.Runtime, sandbox: simulated.Sandbox
) -> None:
    sandbox.kill("swtpm", signal.SIGKILL)
    state = runtime.wait_for("c1", "stopped")
    assert "the VM's TPM ended" in state["annotations"]["io.sealrun.exit-reason"]
