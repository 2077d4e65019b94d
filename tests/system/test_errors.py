"""What can go wrong for a user: one line with phase and remedy, the right status, nothing left."""

import json
import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import layers, traces
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import workload as workloads
from fixtures.broker import ALLOW_SAMPLE, DENY_ALL, RunningBroker

pytestmark = [pytest.mark.vm, pytest.mark.podman, pytest.mark.registry, pytest.mark.root]

NOT_STARTED = 126  # Podman's status where the runtime could not create the container
NOT_FOUND = 127

TRUE = ["/bin/true"]


def refused(
    podman: podmans.Podman,
    annotations: workloads.Annotations,
    *words: str,
    status: int = NOT_STARTED,
    command: list[str] = TRUE,
    options: tuple[str, ...] = (),
) -> str:
    """Run, and hold what is true of every failure; the error's line."""
    ended = podman.run(command, annotations, *options)
    assert ended.status == status, ended.stderr
    assert ended.stdout == b"", "nothing of the workload ran"
    lines = ended.stderr.strip().splitlines()
    assert len(lines) == 1, f"one line, not {lines}"
    for word in words:
        assert word in lines[0], f"{word!r} is not in: {lines[0]}"
    for container in podman.ids():
        traces.wait_until_gone(container, podmans.STATE_ROOT)
    return lines[0]


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as endpoint:
        endpoint.bind(("127.0.0.1", 0))
        return int(endpoint.getsockname()[1])


def test_the_registry_cannot_be_reached(podman: podmans.Podman) -> None:
    address = f"127.0.0.1:{free_port()}"
    annotations = workloads.open_annotations(f"{address}/test/plain:1", address)
    refused(podman, annotations, "pull: ", address, "; check the registry")


def test_the_image_is_unknown(podman: podmans.Podman, registry: registries.Registry) -> None:
    image = f"{registry.address}/test/nowhere:1"
    annotations = workloads.open_annotations(image, registry.address)
    refused(podman, annotations, "pull: ", "test/nowhere", "; check the name and tag")


def test_the_image_is_not_allowed(podman: podmans.Podman, workload: workloads.Workload) -> None:
    allowed = 'allowed = ["registry.example.com/other"]'
    annotations = workloads.open_annotations(workload.plain, workload.registry.address, allowed)
    refused(podman, annotations, "verify: ", "; add the image to the allowed images")


def test_the_key_is_the_wrong_one(
    podman: podmans.Podman, workload: workloads.Workload, broker: RunningBroker, tmp_path: Path
) -> None:
    other = registries.key_pair(tmp_path, "other")
    uri = broker.add_resource("default/key/other", other.private.read_bytes())
    annotations = workloads.sealed_annotations(
        workload.encrypted, workload.registry.address, broker, keys=[uri]
    )
    refused(podman, annotations, "decrypt: ", "; store in the broker the private key")


def test_the_broker_does_not_have_the_key(
    podman: podmans.Podman, workload: workloads.Workload, broker: RunningBroker
) -> None:
    annotations = workloads.sealed_annotations(
        workload.encrypted, workload.registry.address, broker, keys=["kbs:///default/key/absent"]
    )
    refused(podman, annotations, "attest: ", "default/key/absent", "; store the key")


def test_the_broker_denies_the_key(
    podman: podmans.Podman,
    broker: RunningBroker,
    sealed_annotations: workloads.Annotations,
) -> None:
    broker.write_policy(ALLOW_SAMPLE.replace("default/key/*", "default/other/*"))
    try:
        refused(podman, sealed_annotations, "attest: ", "; change the broker's resource policy")
    finally:
        broker.write_policy(ALLOW_SAMPLE)


def test_the_broker_refuses_sample_evidence(
    podman: podmans.Podman,
    broker: RunningBroker,
    sealed_annotations: workloads.Annotations,
) -> None:
    broker.write_policy(DENY_ALL)
    try:
        refused(podman, sealed_annotations, "attest: ", "; compare the broker's policy")
    finally:
        broker.write_policy(ALLOW_SAMPLE)


def test_sample_evidence_was_not_asked_for(
    podman: podmans.Podman, workload: workloads.Workload, broker: RunningBroker
) -> None:
    annotations = workloads.sealed_annotations(
        workload.encrypted, workload.registry.address, broker, sample=False
    )
    refused(podman, annotations, "attest: ", "insecure_sample_evidence")


def test_the_broker_cannot_be_reached(
    podman: podmans.Podman, workload: workloads.Workload, broker: RunningBroker
) -> None:
    gone = broker._replace(url=f"https://127.0.0.1:{free_port()}")
    annotations = workloads.sealed_annotations(workload.encrypted, workload.registry.address, gone)
    refused(podman, annotations, "attest: ", "; check that the broker runs")


def test_the_broker_is_somebody_else(
    podman: podmans.Podman, workload: workloads.Workload, broker: RunningBroker, tmp_path: Path
) -> None:
    stranger = broker._replace(ca_pem=registries.certificate(tmp_path / "ca").authority)
    annotations = workloads.sealed_annotations(
        workload.encrypted, workload.registry.address, stranger
    )
    refused(podman, annotations, "attest: ", "; put the broker's CA certificate")


def test_an_encrypted_image_without_a_key(
    podman: podmans.Podman, workload: workloads.Workload
) -> None:
    annotations = workloads.open_annotations(
        workload.encrypted, workload.registry.address, f'allowed = ["{workload.encrypted}"]'
    )
    refused(podman, annotations, "decrypt: ", "; list the key in decryption_keys")


def test_the_registry_sends_other_bytes(
    podman: podmans.Podman, workload: workloads.Workload, tmp_path: Path
) -> None:
    """A blob that was changed where it lies: caught by its digest."""
    registry = workload.registry
    tar = layers.tar([layers.file("bin/true", os.urandom(5000), mode=0o755)])
    layers.write_layout(tmp_path / "layout", [tar], compression="")
    digest = registries.push(
        tmp_path / "layout", registry, "test/changed:1", options=["--dest-compress-format", "gzip"]
    )
    manifest = json.loads(registry.blob(digest).read_bytes())
    blob = registry.blob(manifest["layers"][0]["digest"])
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    annotations = workloads.open_annotations(
        f"{registry.address}/test/changed@{digest}", registry.address
    )
    refused(podman, annotations, "verify: ", manifest["layers"][0]["digest"], "; ")


def test_an_encrypted_layer_was_tampered_with(
    podman: podmans.Podman, workload: workloads.Workload, broker: RunningBroker, tmp_path: Path
) -> None:
    """Ciphertext, digest and manifest changed together, the tag still the same: caught by the HMAC."""
    registry = workload.registry
    layout = tmp_path / "layout"
    registries.fetch(registry, "test/encrypted:1", layout)
    index = json.loads((layout / "index.json").read_text())
    blobs = layout / "blobs/sha256"

    def path(digest: str) -> Path:
        return blobs / digest.removeprefix("sha256:")

    manifest = json.loads(path(index["manifests"][0]["digest"]).read_text())
    layer = manifest["layers"][0]
    content = bytearray(path(layer["digest"]).read_bytes())
    content[len(content) // 2] ^= 1
    layer["digest"] = layers.digest(bytes(content))
    path(layer["digest"]).write_bytes(content)
    encoded = json.dumps(manifest).encode()
    path(layers.digest(encoded)).write_bytes(encoded)
    index["manifests"][0] |= {"digest": layers.digest(encoded), "size": len(encoded)}
    (layout / "index.json").write_text(json.dumps(index))
    pushed = registries.push(layout, registry, "test/tampered:1")
    assert pushed == layers.digest(encoded), "skopeo pushed what the attacker made"
    annotations = workloads.sealed_annotations(
        f"{registry.address}/test/tampered:1", registry.address, broker, pinned=False
    )
    refused(podman, annotations, "decrypt: ", "; somebody changed the layer")


def test_the_guest_has_no_space(
    podman: podmans.Podman, workload: workloads.Workload, tmp_path: Path
) -> None:
    registry = workload.registry
    tar = layers.tar([layers.file("large", bytes(400 << 20))])
    layers.write_layout(tmp_path / "layout", [workloads.busybox_tar(), tar])
    digest = registries.push(tmp_path / "layout", registry, "test/large:1")
    annotations = workloads.open_annotations(
        f"{registry.address}/test/large@{digest}", registry.address
    )
    annotations |= {"io.sealrun.memory": "400", "io.sealrun.scratch": "0"}
    refused(podman, annotations, "pull: ", "space", "; give the VM a larger scratch disk")


def test_no_guest_image_is_installed(
    podman: podmans.Podman,
    busybox_annotations: workloads.Annotations,
    operator_settings: Callable[[str], None],
    tmp_path: Path,
) -> None:
    operator_settings(f'[guest]\nimage = "{tmp_path}"\n')
    refused(podman, busybox_annotations, "no guest image is installed", "; run install.sh")


def test_the_vm_does_not_come_up(
    podman: podmans.Podman,
    busybox_annotations: workloads.Annotations,
    operator_settings: Callable[[str], None],
) -> None:
    """A limit on the boot that no machine can keep."""
    operator_settings("[vm]\nboot_timeout = 1\n")
    refused(podman, busybox_annotations, "boot: ", "within 1 s", "; ")


def test_the_vm_has_too_little_memory(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    refused(
        podman, busybox_annotations | {"io.sealrun.memory": "128"}, "boot: ", "io.sealrun.memory"
    )


def test_the_vmm_does_not_start(
    podman: podmans.Podman,
    busybox_annotations: workloads.Annotations,
    operator_settings: Callable[[str], None],
    tmp_path: Path,
) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text(
        '#!/bin/sh\ncase $1 in --version|-accel) exec qemu-system-x86_64 "$@";; esac\nexit 1\n'
    )
    qemu.chmod(0o755)
    operator_settings(f'[vm]\nqemu = "{qemu}"\n')
    refused(podman, busybox_annotations, "boot: ", "qemu ended with status 1", "; ")


def test_the_vmm_is_another_program(
    podman: podmans.Podman,
    busybox_annotations: workloads.Annotations,
    operator_settings: Callable[[str], None],
) -> None:
    """Nothing of it is started, and `check` says the same."""
    operator_settings('[vm]\nqemu = "/bin/true"\n')
    line = refused(podman, busybox_annotations, "; install Debian's package qemu-system-x86")
    finding = "cannot use /bin/true: it does not say that it is QEMU"
    assert finding in line
    checked = subprocess.run(["sealrun", "check"], capture_output=True, text=True, timeout=60)
    assert f"no  a container: {finding}; install" in checked.stdout
    assert checked.returncode == 1


def test_the_program_does_not_exist(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    refused(
        podman, busybox_annotations, "not found", status=NOT_FOUND, command=["/bin/no-such-program"]
    )


def test_the_program_is_not_executable(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations
) -> None:
    refused(podman, busybox_annotations, "permission denied", command=["/not-executable"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"io.sealrun.init-data": "no base64!"}, ("init-data", "base64")),
        ({"io.sealrun.image": "not a reference"}, ("reference",)),
        ({"io.sealrun.memory": "a lot"}, ("io.sealrun.memory",)),
        ({"io.sealrun.memory": "1"}, ("io.sealrun.memory",)),
    ],
    ids=["init-data", "reference", "memory-text", "memory-size"],
)
def test_an_annotation_that_cannot_be_read(
    podman: podmans.Podman,
    busybox_annotations: workloads.Annotations,
    change: dict[str, str],
    words: tuple[str, ...],
) -> None:
    refused(podman, busybox_annotations | change, *words)


def test_what_the_guest_does_not_accept(
    podman: podmans.Podman, busybox_annotations: workloads.Annotations, tmp_path: Path
) -> None:
    """A volume would be another file system than the user thinks: refused, never left out."""
    line = refused(
        podman, busybox_annotations, "/volume", options=("--volume", f"{tmp_path}:/volume")
    )
    assert "start: " in line or "mount" in line
