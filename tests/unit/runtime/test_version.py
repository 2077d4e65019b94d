"""One version, wherever it is written."""

import tomllib
from pathlib import Path

from sealrun_runtime.version import VERSION


def test_the_version_is_that_of_the_project() -> None:
    project = Path(__file__).parents[3] / "pyproject.toml"
    assert tomllib.loads(project.read_text())["project"]["version"] == VERSION
