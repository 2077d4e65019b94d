"""What fault tests share: sandboxes on the simulated hypervisor, and a look at all that they leave."""

import contextlib
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fixtures import oci, simulated
from fixtures.remains import Remains
from simulators import simulated_guest

SECONDS = 60.0  # for what takes milliseconds on a machine that has nothing else to do


def wait_until(holds: Callable[[], Any], what: str = "", seconds: float = SECONDS) -> None:
    """Poll: the moments that are waited for here are those in which nobody tells anything."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what or "it did not happen in time"
        time.sleep(0.005)


def exit_code(pid: int) -> int:
    """Of an orphan: it is this process's child now (remains.py), as it would be the engine's."""
    process = os.pidfd_open(pid)
    try:
        os.set_blocking(process, True)
        wait_until(lambda: os.waitid(os.P_PIDFD, process, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    finally:
        os.close(process)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Creation:
    """A `create` that is under way, with what it says."""

    process: "subprocess.Popen[bytes]"
    errors: Path

    def wait(self) -> int:
        """Its exit status."""
        return self.process.wait(SECONDS)

    def wait_for(self, holds: Callable[[], Any]) -> None:
        """Until something holds, which it must while `create` is under way."""
        wait_until(lambda: holds() or self.process.poll() is not None)
        assert self.process.poll() is None, self.said()

    def said(self) -> str:
        """Its stderr, which a container that has none of its own would share."""
        return self.errors.read_text()


@dataclass
class Host:
    """One test's state root, with a network namespace for its containers."""

    runtime: oci.Runtime
    remains: Remains
    tmp: Path
    network: str
    id: str

    @property
    def sandbox(self) -> simulated.Sandbox:
        """The sandbox of the test's container."""
        return simulated.Sandbox(self.runtime.root / self.id)

    def bundle(self, script: str = "sleep 1000", image: str = simulated.IMAGE, **test: str) -> Path:
        """A bundle with a cgroup of its own on the host, in the test's network namespace."""
        annotations = {"io.sealrun.image": image}
        annotations |= {f"test.{name}": value for name, value in test.items()}
        kinds = [{"type": one} for one in ("pid", "ipc", "uts", "mount")]
        linux = {
            "cgroupsPath": f"/{self.id}/container",
            "namespaces": [*kinds, {"type": "network", "path": self.network}],
        }
        return simulated.bundle(self.tmp / "bundle", script, annotations, linux=linux)

    def begin(self, bundle: Path) -> Creation:
        """Start a `create` and do not wait for it."""
        errors = self.tmp / "create.err"
        null = subprocess.DEVNULL
        command = [self.runtime.binary, "--root", str(self.runtime.root), "create"]
        command += ["--bundle", str(bundle), self.id]
        with errors.open("wb") as file:
            process = subprocess.Popen(command, stdin=null, stdout=null, stderr=file)
        return Creation(process, errors)

    def create(self, bundle: Path | None = None) -> None:
        """A container in the state "created"."""
        creation = self.begin(bundle or self.bundle())
        assert creation.wait() == 0, creation.said()

    def start(self) -> None:
        """And in the state "running"."""
        started = self.runtime("start", self.id)
        assert started.ok, started.stderr

    def force_away(self) -> None:
        """`delete --force`: it says nothing, and when it returns nothing is left on the host."""
        done = self.runtime("delete", "--force", self.id)
        assert (done.status, done.stdout, done.stderr) == (0, b"", "")
        assert self.remains.all(guests=False) == []
        self.remains.wait_until_none()


@pytest.fixture(scope="session")
def simulated_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`sealrun` below a prefix, on the simulated hypervisor."""
    return simulated.install(tmp_path_factory.mktemp("prefix"))


@pytest.fixture
def network() -> Iterator[str]:
    """A network namespace, as an engine makes it for a container: its path."""
    name = f"faults-{uuid.uuid4().hex[:8]}"
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=60)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "delete", name], check=True, timeout=60)


@pytest.fixture
def host(simulated_program: Path, tmp_path: Path, network: str) -> Iterator[Host]:
    """A state root. Whatever a test that failed leaves in it is removed."""
    runtime = oci.Runtime("sealrun", str(simulated_program), tmp_path / "root")
    container = f"faults-{uuid.uuid4().hex[:12]}"
    with Remains(runtime.root, container, network=network) as remains:
        yield Host(runtime, remains, tmp_path, network, container)
        with contextlib.suppress(subprocess.TimeoutExpired):
            runtime("delete", "--force", container)
    simulated_guest.remove_cgroups()
