"""What every level of the suite shares: what a marker asks of the machine, and what a failure shows.

A test whose marker asks for something that is missing *fails* and says what: tests/run installs all
of it, so that a level that silently skips would only hide a broken installation.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from simulators.registry import Simulator

# Several processes share the cores: how long an example takes says nothing. The suite has the same examples
# each time, so that whom it fails is whoever changed something; --hypothesis-profile=search has others.
_WHATEVER_IT_TAKES = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("suite", derandomize=True, **_WHATEVER_IT_TAKES)
settings.register_profile("search", print_blob=True, **_WHATEVER_IT_TAKES)
settings.load_profile("suite")

STATE_ROOT = Path("/run/sealrun")
LOG_NAMES = {"console.log", "vmm.log", "shim.log"}
LOG_TAIL_BYTES = 6000

PROGRAMS = {
    "vm": ("qemu-system-x86_64", "sealrun"),
    "tpm": ("swtpm",),
    "podman": ("podman", "conmon"),
    "containerd": ("containerd", "ctr"),
    "cni": ("/usr/lib/cni/bridge", "/usr/lib/cni/loopback"),
    "registry": ("docker-registry", "skopeo"),
    "virtiofsd": ("/usr/lib/qemu/virtiofsd",),
    "root": (),
}


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--golden`: rewrite the golden files, to be reviewed as a diff."""
    parser.addoption("--golden", action="store_true", help="rewrite the files in tests/golden")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail where the machine lacks what the test's markers ask for."""
    for marker, programs in PROGRAMS.items():
        if item.get_closest_marker(marker) is None:
            continue
        missing = [program for program in programs if shutil.which(program) is None]
        if missing:
            pytest.fail(f"{', '.join(missing)} not installed: run tests/run", pytrace=False)
        if marker == "root" and os.geteuid() != 0:
            pytest.fail("needs root: run sudo tests/run", pytrace=False)


def _logs(since: float, *roots: Path) -> Iterator[tuple[str, str]]:
    """Name and tail of every log of a sandbox below `roots` that was written after `since`."""
    for root in roots:
        for directory, _, names in os.walk(root):
            for name in LOG_NAMES.intersection(names):
                path = Path(directory, name)
                try:
                    if path.stat().st_mtime < since:
                        continue
                    content = path.read_bytes()[-LOG_TAIL_BYTES:]
                except OSError:
                    continue  # the sandbox went away meanwhile
                yield str(path), content.decode("utf-8", "replace")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Attach the sandboxes' logs to a failure, before teardown removes them."""
    report: pytest.TestReport = yield  # type: ignore[misc]
    if report.failed:
        roots = [STATE_ROOT]
        if isinstance(temporary := getattr(item, "funcargs", {}).get("tmp_path"), Path):
            roots.append(temporary)
        # A fixture of the module may have booted the VM some minutes before.
        report.sections += _logs(call.start - 300, *roots)
    return report  # type: ignore[return-value]


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> "Iterator[Simulator]":
    """A registry that answers what the test tells it to. Whoever is to come back comes back soon."""
    from sealrun_agent.image import retry
    from simulators import registry

    monkeypatch.setattr(retry, "SECONDS", 0.005)
    with registry.serve() as running:
        yield running
