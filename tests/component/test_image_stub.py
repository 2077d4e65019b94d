"""Images for Podman that have a configuration and no layers: a real registry, Podman's own storage."""

import json
import subprocess
from pathlib import Path

import pytest
from fixtures import layers
from fixtures import registry as registries
from fixtures.registry import Registry
from sealrun_runtime import stub
from sealrun_runtime.errors import HostError, InvalidRequest

pytestmark = [pytest.mark.registry, pytest.mark.podman, pytest.mark.root]

PROCESS = {
    "Entrypoint": ["/program"],
    "Cmd": ["argument"],
    "Env": ["FROM=image"],
    "User": "7:8",
    "WorkingDir": "/work",
    "ExposedPorts": {"80/tcp": {}},
    "Labels": {"made": "for a test"},
}


@pytest.fixture
def storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A storage of the test's own."""
    file = tmp_path / "storage.conf"
    file.write_text(
        f'[storage]\ndriver = "vfs"\ngraphroot = "{tmp_path}/graph"\nrunroot = "{tmp_path}/run"\n'
    )
    monkeypatch.setenv("CONTAINERS_STORAGE_CONF", str(file))
    return tmp_path / "graph"


def podman(*arguments: str) -> str:
    done = subprocess.run(
        ["podman", *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def push(registry: Registry, tmp_path: Path, name: str, content: bytes = b"secret") -> str:
    layout = tmp_path / f"layout-{len(content)}"
    layers.write_layout(layout, [layers.tar([layers.file("a", content)])], process=PROCESS)
    return registries.push(layout, registry, name)


def made(registry: Registry, reference: str) -> stub.Stub:
    return stub.make(f"{registry.address}/{reference}", insecure=True, authfile="")


def test_podman_sees_the_configuration_and_no_layer(
    plain_registry: Registry, tmp_path: Path, storage: Path
) -> None:
    digest = push(plain_registry, tmp_path, "stub/one:1")
    found = made(plain_registry, "stub/one:1")
    assert found == (
        f"{plain_registry.address}/stub/one:1",
        f"{plain_registry.address}/stub/one@{digest}",
    )
    (image,) = json.loads(podman("image", "inspect", found.name))
    assert {key: image["Config"][key] for key in PROCESS} == PROCESS
    assert image["RootFS"]["Layers"] == []
    assert podman("create", "--network", "none", found.name).strip()
    assert plain_registry.requests("/v2/stub/one/blobs") == 1  # the configuration
    podman("rm", "--all")


def test_the_guest_will_be_told_the_digest(
    plain_registry: Registry, tmp_path: Path, storage: Path
) -> None:
    from sealrun_runtime.image_reference import StoredImage

    digest = push(plain_registry, tmp_path, "stub/two:1")
    name = made(plain_registry, "stub/two:1").name
    (stored,) = storage.glob("vfs-images/*/manifest")
    assert StoredImage(name, (name,), stored.read_bytes()).registry_digest() == digest
    push(plain_registry, tmp_path, "stub/two:1", b"another")
    made(plain_registry, "stub/two:1")
    digests = {
        StoredImage(name, (name,), path.read_bytes()).registry_digest()
        for path in storage.glob("vfs-images/*/manifest")
    }
    assert len(digests) == 2, "another image is another stub, though its configuration is the same"


def test_a_digest_is_given_a_name(plain_registry: Registry, tmp_path: Path, storage: Path) -> None:
    digest = push(plain_registry, tmp_path, "stub/three:1")
    found = made(plain_registry, f"stub/three@{digest}")
    assert found.name == f"{plain_registry.address}/stub/three:{digest[7:19]}"
    assert podman("image", "exists", found.name) == ""
    both = made(plain_registry, f"stub/three:1@{digest}")
    assert both.name == f"{plain_registry.address}/stub/three:1"


@pytest.mark.parametrize("reference", ["", "busybox", "localhost/a:1", "a.b/c@sha256:12", "a.b/ c"])
def test_what_is_no_reference_is_said(reference: str) -> None:
    with pytest.raises(InvalidRequest, match="cannot read the image reference"):
        stub.make(reference, insecure=True, authfile="")


def test_an_image_that_is_not_there_is_said(plain_registry: Registry, storage: Path) -> None:
    with pytest.raises(HostError, match="manifest unknown"):
        made(plain_registry, "stub/none:1")
    assert not storage.exists() or not list(storage.glob("vfs-images/*/manifest"))


def test_a_registry_that_is_not_there_is_told_in_plain_words() -> None:
    with pytest.raises(HostError) as refused:
        stub.make("127.0.0.1:1/stub/one:1", insecure=True, authfile="")
    assert (
        'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
        in refused.value.text
    )
    assert "\\" not in refused.value.text
