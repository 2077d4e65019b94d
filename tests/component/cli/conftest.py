"""The real command line against simulators/shim.py instead of the shim.

Root only: the stand-in is real, with its namespaces and its pivot.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures import cli


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sealrun` of an installation below a prefix."""
    if os.geteuid() != 0:
        pytest.skip("needs root for namespaces")
    return cli.install(tmp_path_factory.mktemp("prefix"), cli.ROOT / "tests/simulators/shim.py")


@pytest.fixture
def world(program: Path, tmp_path: Path) -> Iterator[cli.World]:
    """One test's state root; what is left in it is removed."""
    world = cli.World(program, tmp_path)
    world.root.mkdir()
    yield world
    for container in os.listdir(world.root):
        world("delete", "--force", container)
