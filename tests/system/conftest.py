"""What system tests share: an installed sealrun, a registry, a key broker, images, a Podman."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import beside, oci
from fixtures import podman as podmans
from fixtures import registry as registries
from fixtures import workload as workloads
from fixtures.beside import Side
from fixtures.broker import RunningBroker, running_broker

OPERATOR_SETTINGS = Path("/etc/sealrun/sealrun.toml.d/50-tests.toml")
IN_MEMORY = OPERATOR_SETTINGS.with_name("10-tests-in-memory.toml")
ON_DISK = (
    *("attestation", "cloud_hypervisor", "errors", "install", "left_behind", "podman", "rootless"),
    *("scratch", "tee_qemu", "tpm", "volumes"),
)
"""The modules whose VMs have a scratch disk, as they do by default. Half a second of each emulated boot
is its making, so the others' keep images in memory, which has to work as well."""


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A docker-registry that speaks plain http."""
    with registries.serve(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="session")
def workload(
    tmp_path_factory: pytest.TempPathFactory, registry: registries.Registry
) -> workloads.Workload:
    """The test image, plain and encrypted, in the registry."""
    directory = tmp_path_factory.mktemp("workload")
    return workloads.publish(directory, registry, registries.key_pair(directory))


@pytest.fixture(scope="module")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's root, with busybox in it."""
    return oci.busybox_tree(tmp_path_factory.mktemp("tree") / "rootfs")


@pytest.fixture
def make(runtime: oci.Runtime, rootfs: Path, tmp_path: Path):
    """make(script, **process) -> a bundle for the module's runtime."""

    def make_bundle(script: str | list[str], name: str = "bundle", **process: object) -> Path:
        return oci.bundle(tmp_path / name, rootfs, script, runtime.annotations, **process)

    return make_bundle


@pytest.fixture(scope="session")
def broker(
    tmp_path_factory: pytest.TempPathFactory, workload: workloads.Workload
) -> Iterator[RunningBroker]:
    """A key broker that gives the workload's key to sample evidence."""
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        running.add_resource(workloads.KEY_NAME, workload.key.private.read_bytes())
        yield running


@pytest.fixture(scope="session")
def busybox_annotations(workload: workloads.Workload) -> workloads.Annotations:
    """The plain image: no key, no attestation."""
    return workloads.open_annotations(workload.plain, workload.registry.address)


@pytest.fixture(scope="session")
def sealed_annotations(
    workload: workloads.Workload, broker: RunningBroker
) -> workloads.Annotations:
    """The encrypted image: attestation, key, decryption."""
    return workloads.sealed_annotations(workload.encrypted, workload.registry.address, broker)


@pytest.fixture(scope="session")
def stub_image() -> Iterator[None]:
    """The empty image that Podman gets where an annotation names the real one."""
    podmans.make_stub()
    yield
    podmans.remove_image(podmans.STUB)


@pytest.fixture
def podman(tmp_path: Path, stub_image: None) -> Iterator[podmans.Podman]:
    """Podman; at the end nothing of the test's containers may be left on the host."""
    driver = podmans.Podman(tmp_path)
    yield driver
    driver.clean()


@pytest.fixture(scope="module", params=beside.RUNTIMES)
def side(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    busybox_annotations: workloads.Annotations,
    stub_image: None,
) -> Iterator[Side]:
    """Podman with crun, and with sealrun."""
    directory = tmp_path_factory.mktemp(request.param)
    with beside.podman(request.param, directory, busybox_annotations) as one:
        yield one


@pytest.fixture(scope="module", autouse=True)
def place_of_images(request: pytest.FixtureRequest) -> Iterator[None]:
    """See ON_DISK."""
    if request.module.__name__.rpartition("test_")[2] in ON_DISK:
        yield
        return
    made = [one for one in (IN_MEMORY.parent.parent, IN_MEMORY.parent) if not one.exists()]
    IN_MEMORY.parent.mkdir(parents=True, exist_ok=True)
    IN_MEMORY.write_text("[vm]\nscratch = 0\n")
    yield
    IN_MEMORY.unlink()
    for directory in reversed(made):
        if not any(directory.iterdir()):
            directory.rmdir()


@pytest.fixture
def operator_settings() -> Iterator[Callable[[str], None]]:
    """operator_settings(toml) holds for every container created until the end of the test."""

    directories = (OPERATOR_SETTINGS.parent, OPERATOR_SETTINGS.parent.parent)
    made = [directory for directory in directories if not directory.exists()]

    def write(text: str) -> None:
        OPERATOR_SETTINGS.parent.mkdir(parents=True, exist_ok=True)
        OPERATOR_SETTINGS.write_text(text)

    yield write
    OPERATOR_SETTINGS.unlink(missing_ok=True)
    for directory in made:
        if directory.is_dir() and not any(directory.iterdir()):
            directory.rmdir()
