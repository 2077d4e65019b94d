"""The linters are tests: whoever runs the suite runs them."""

import subprocess
import sys

from house import source_tree


def _run(*command: str) -> None:
    result = subprocess.run(
        command, cwd=source_tree.ROOT, capture_output=True, text=True, check=False, timeout=600
    )
    assert result.returncode == 0, f"{' '.join(command[:4])}\n{result.stdout}\n{result.stderr}"


def _programs_without_suffix() -> list[str]:
    """Python programs that ruff would not find by their name."""
    return [source_tree.name(path) for path in source_tree.python_files() if path.suffix == ""]


def test_ruff_has_nothing_to_say() -> None:
    _run(sys.executable, "-m", "ruff", "check", ".", *_programs_without_suffix())


def test_ruff_would_format_nothing_differently() -> None:
    _run(sys.executable, "-m", "ruff", "format", "--check", ".", *_programs_without_suffix())


def test_mypy_strict() -> None:
    _run(sys.executable, "-m", "mypy", "--cache-dir", "build/mypy")


def test_shellcheck() -> None:
    scripts = [source_tree.name(path) for path in source_tree.shell_files()]
    assert "install.sh" in scripts
    _run("shellcheck", "--severity=style", *scripts)
