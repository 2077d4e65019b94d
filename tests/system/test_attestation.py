"""A measured boot, a real quote, a key: the whole way from the VM's TPM to the tenant's broker."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fixtures import oci, traces
from fixtures import podman as podmans
from fixtures import workload as workloads
from fixtures.broker import LAUNCHER, RunningBroker, command, running_broker

pytestmark = [pytest.mark.vm, pytest.mark.tpm, pytest.mark.podman, pytest.mark.root]

POLICY = """\
[[resource]]
path = "default/key/*"
tee = ["tpm"]
"""
SLEEP = "sleep 1000"
VISITOR = "attest-visitor"
SEALED = "attest-sealed"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Every VM of this module has a TPM, of one identity."""
    path = Path("/etc/sealrun/sealrun.toml.d/60-attestation.toml")
    path.parent.mkdir(parents=True, exist_ok=True)
    state = tmp_path_factory.mktemp("tpm")
    path.write_text(f'tee = "tpm"\n[vm]\ntpm_state = "{state}"\n')
    yield
    path.unlink()


@pytest.fixture(scope="module")
def runtime(settings: None) -> Iterator[oci.Runtime]:
    binary = shutil.which("sealrun")
    assert binary
    runtime = oci.Runtime("sealrun", binary, podmans.STATE_ROOT)
    yield runtime
    runtime.clean()


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return oci.busybox_tree(tmp_path_factory.mktemp("tree") / "rootfs")


Bundle = Callable[[str, workloads.Annotations], Path]


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Bundle:
    """bundle(script, annotations): a bundle's path."""
    return lambda script, annotations: oci.bundle(tmp_path / "bundle", rootfs, script, annotations)


class Attested(NamedTuple):
    """What `sealrun attest` said: its exit status, and its verdict or the evidence file."""

    status: int
    said: Any
    error: str


def attest(container: str, *options: str) -> Attested:
    done = subprocess.run(
        ["sealrun", "attest", *options, container], capture_output=True, text=True, timeout=120
    )
    return Attested(done.returncode, json.loads(done.stdout or "null"), done.stderr)


@pytest.fixture(scope="module")
def visitor(
    runtime: oci.Runtime,
    rootfs: Path,
    busybox_annotations: workloads.Annotations,
    tmp_path_factory: pytest.TempPathFactory,
) -> str:
    """A running container of a plain image, in a VM of this host."""
    place = tmp_path_factory.mktemp("visitor")
    bundle = oci.bundle(place / "bundle", rootfs, SLEEP, busybox_annotations)
    created = runtime.create(bundle, VISITOR)
    assert created.ok, created.stderr
    assert runtime("start", VISITOR).ok
    return VISITOR


@pytest.fixture(scope="module")
def identity(runtime: oci.Runtime) -> dict[str, list[str]]:
    """Reference values of this host's VMs, computed without booting one: PCRs 2 to 7 and 9, and the
    attestation key."""
    measured = runtime("measure", "--attestation-key", "--format", "broker")
    assert measured.ok, measured.stderr
    values: dict[str, list[str]] = json.loads(measured.stdout)
    assert {"trusted_aks", "tpm_pcr04", "tpm_pcr09"} < set(values)
    return values


@pytest.fixture(scope="module")
def tpm_broker(
    tmp_path_factory: pytest.TempPathFactory,
    workload: workloads.Workload,
    identity: dict[str, list[str]],
) -> Iterator[RunningBroker]:
    """A key broker that knows this host's VMs."""
    with running_broker(tmp_path_factory.mktemp("tpm-broker"), policy=POLICY) as running:
        running.add_resource(workloads.KEY_NAME, workload.key.private.read_bytes())
        for name, values in identity.items():
            command("add-reference", str(running.directory), name, *values)
        yield running


@pytest.fixture(scope="module")
def sealed(tpm_broker: RunningBroker, workload: workloads.Workload) -> workloads.Annotations:
    return workloads.sealed_annotations(
        workload.encrypted, workload.registry.address, tpm_broker, sample=False
    )


def test_evidence_of_a_running_sandbox(
    visitor: str, identity: dict[str, list[str]], tmp_path: Path
) -> None:
    references = tmp_path / "references.json"
    references.write_text(json.dumps(identity))
    found = attest(visitor, "--reference-values", str(references))
    assert found.status == 0, found
    assert found.said["accepted"] is True
    assert found.said["status"] == "affirming"
    claims = found.said["claims"]
    assert claims["pcr08"] != "00" * 32
    assert {entry["index"] for entry in claims["uefi_event_logs"]} >= {0, 4, 9, 13}
    assert [
        entry
        for entry in claims["uefi_event_logs"]
        if entry["index"] == 13 and "PullImage" in entry["details"]["string"]
    ]
    references.write_text(json.dumps(identity | {"tpm_pcr09": ["00" * 32]}))
    found = attest(visitor, "--reference-values", str(references))
    assert (found.status, found.said["genuine"], found.said["accepted"]) == (1, True, False)
    assert "PCR 9 is not among the reference values tpm_pcr09" in found.said["reasons"]


def test_an_evidence_file_is_verified_elsewhere(visitor: str, tmp_path: Path) -> None:
    file, nonce = tmp_path / "evidence.json", "00112233445566778899aabbccddeeff"
    found = attest(visitor, "--nonce", nonce, "--output", str(file), "--no-verify")
    assert (found.status, found.said) == (0, None)
    for other, genuine in ((nonce, True), (nonce[::-1], False)):
        done = subprocess.run(
            [LAUNCHER, "verify", file, "--nonce", other, "--insecure-any-init-data"],
            capture_output=True,
            text=True,
        )
        assert (done.returncode, json.loads(done.stdout)["genuine"]) == (1, genuine)


def test_the_key_is_given_to_a_vm_that_proves_what_it_is(
    runtime: oci.Runtime,
    bundle: Bundle,
    sealed: workloads.Annotations,
    tpm_broker: RunningBroker,
) -> None:
    place = bundle("cat /secret", sealed)
    created = runtime.create(place, SEALED)
    assert created.ok, created.stderr
    assert runtime("start", SEALED).ok
    runtime.wait_for(SEALED, "stopped")
    assert (place / "stdout").read_bytes() == workloads.SECRET
    assert "get default/key/workload ok tee=tpm" in tpm_broker.log()
    assert runtime("delete", SEALED).ok
    traces.wait_until_gone(SEALED, podmans.STATE_ROOT)


def test_a_vm_that_booted_something_else_gets_nothing(
    runtime: oci.Runtime,
    bundle: Bundle,
    sealed: workloads.Annotations,
    tpm_broker: RunningBroker,
    identity: dict[str, list[str]],
) -> None:
    """A wrong PCR: the broker expects another initrd."""
    command("add-reference", str(tpm_broker.directory), "tpm_pcr09", "00" * 32)
    try:
        refused = runtime.create(bundle("cat /secret", sealed), "attest-refused")
    finally:
        command("add-reference", str(tpm_broker.directory), "tpm_pcr09", *identity["tpm_pcr09"])
    assert not refused.ok
    assert "attest: the key broker's policy denies this VM the key; " in refused.stderr
    assert "PCR 9 is not among the reference values tpm_pcr09" in tpm_broker.log()
    traces.wait_until_gone("attest-refused", podmans.STATE_ROOT)
