"""What component tests share: a real registry, and the keys that images are encrypted for."""

from collections.abc import Iterator

import pytest
from fixtures import registry as registries
from fixtures import workload as workloads


@pytest.fixture(scope="session")
def plain_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A docker-registry that speaks plain http."""
    with registries.serve(tmp_path_factory.mktemp("registry")) as registry:
        yield registry


@pytest.fixture(scope="session")
def tls_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[registries.Registry]:
    """A docker-registry that speaks TLS, with a private CA."""
    directory = tmp_path_factory.mktemp("tls-registry")
    certificate = registries.certificate(directory / "certificates")
    with registries.serve(directory, certificate=certificate) as registry:
        yield registry


@pytest.fixture(scope="session")
def image_key(tmp_path_factory: pytest.TempPathFactory) -> registries.KeyPair:
    """An RSA key that images are encrypted for."""
    return registries.key_pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="session")
def workload(
    tmp_path_factory: pytest.TempPathFactory,
    plain_registry: registries.Registry,
    image_key: registries.KeyPair,
) -> workloads.Workload:
    """The test image, plain and encrypted, in the registry."""
    return workloads.publish(tmp_path_factory.mktemp("workload"), plain_registry, image_key)
