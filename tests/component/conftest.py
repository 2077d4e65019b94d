"""What component tests share: a registry and the keys that images are encrypted for; an agent; a shim."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import netns
from fixtures import registry as registries
from fixtures import workload as workloads
from fixtures.agent import Host, agent
from fixtures.netns import Netns
from fixtures.pulling import Puller
from fixtures.shim import Shim, running
from simulators import registry as simulators
from simulators.guest import Guest
from simulators.registry import Simulator


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


@pytest.fixture
def elsewhere() -> Iterator[Simulator]:
    """Another host: a token service, or a storage that blobs are redirected to."""
    with simulators.serve() as simulator:
        yield simulator


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    """Pulls into a directory of the test's own."""
    return Puller(tmp_path / "store")


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


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """An agent that is configured, as the host sees it."""
    with agent(tmp_path) as one:
        one.configure()
        yield one


@pytest.fixture
def shim(tmp_path: Path) -> Iterator[Shim]:
    """A shim of a sandbox with one CPU and 256 MiB, whose VM nobody is in yet."""
    with running(tmp_path) as one:
        yield one


@pytest.fixture
def guest(shim: Shim) -> Iterator[Guest]:
    """The guest of that sandbox, which has connected to its shim and says what the test says."""
    with shim.guest() as one:
        yield one


@pytest.fixture
def ends() -> Iterator[tuple[Netns, Netns]]:
    """A network namespace as an engine would make it for a container, and the other end of its eth0."""
    with netns.pair() as both:
        yield both


@pytest.fixture
def inside(ends: tuple[Netns, Netns]) -> Netns:
    """The container's."""
    return ends[0]


@pytest.fixture
def outside(ends: tuple[Netns, Netns]) -> Netns:
    """The other one."""
    return ends[1]
