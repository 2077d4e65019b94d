"""What a simulated VM boots: the real agent as PID 1 of namespaces of its own, or a process that
sleeps. It dies with whoever started it.

A VM has control groups of its own. Those of a simulated one lie in a group that is named after the
process that started it, so that two containers of one name are never in each other's; the next who
comes by removes what a killed one left.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from simulators import namespaces, simulated_share, simulated_tpm
from simulators.simulated_tpm import Tpm

ROOT = Path(__file__).resolve().parents[2]
AGENT_PORT = 1024
GROUP = "simulated-vm-"
"""What the names of their control groups begin with."""

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class Guest:
    """One boot. Its console is our standard output."""

    def __init__(
        self, vsock: str, shares: Sequence[str] = (), *, agent: bool, tpm: Tpm | None = None
    ) -> None:
        """vsock: the path of the hybrid vsock's socket. shares: those of virtio-fs devices. agent:
        whether one runs in it. Raises OSError, TpmError."""
        remove_cgroups()
        self._cables: list[subprocess.Popen[bytes]] = []
        self._devices = [simulated_share.Device(path) for path in shares]
        if agent:
            with socket.socket(socket.AF_UNIX) as channel:
                # As the VMM does when the guest connects to CID 2.
                channel.connect(f"{vsock}_{AGENT_PORT}")
                program = str(ROOT / "tests/simulators/agent_machine.py")
                name = f"{GROUP}{os.getpid()}-{time.monotonic_ns()}"
                command = namespaces.command(namespaces.cgroups() / name)
                command += [sys.executable, program]
                shared = [device.namespace for device in self._devices]
                tee, device = ("tpm", os.path.abspath(f"{vsock}_tpm")) if tpm else ("none", "")
                if tpm:
                    simulated_tpm.device(tpm, device)
                command += [str(channel.fileno()), tee, *map(str, shared or [""]), device]
                self._process = _start(command, channel.fileno(), *shared)
        else:
            self._process = _start(["/bin/sleep", "1000"])
        self.pidfd = os.pidfd_open(self._process.pid)

    def plug(self, tap: int, mac: str) -> None:
        """A network device with a cable to the tap. Raises OSError."""
        program = str(ROOT / "tests/simulators/simulated_nic.py")
        command = [sys.executable, program, str(tap), str(self._process.pid), mac]
        self._cables.append(_start(command, tap))

    def kill(self) -> None:
        """Pull its plug."""
        self.signal(signal.SIGCONT)
        self._process.kill()
        self.reap()

    def reap(self) -> None:
        """It is ending, or was killed."""
        self._process.wait()
        os.close(self.pidfd)
        for cable in self._cables:
            cable.kill()
            cable.wait()
        for device in self._devices:
            device.unplug()

    def signal(self, number: int) -> None:
        """Send a signal to all its processes, as stopping the virtual CPUs would stop them."""
        for pid in [self._process.pid, *_descendants(self._process.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


def has_limits() -> bool:
    """Whether a container's cgroup in it can have limits: here version 1 may have all controllers."""
    return "pids" in (namespaces.cgroups() / "cgroup.subtree_control").read_text().split()


def remove_cgroups() -> None:
    """Of simulated VMs whose process has ended; one that is still in use stays for the next call."""
    for group in namespaces.cgroups().glob(f"{GROUP}*"):
        owner = group.name.removeprefix(GROUP).partition("-")[0]
        if Path(f"/proc/{owner}").exists():
            continue
        for directory, _, _ in os.walk(group, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()


def _start(command: list[str], *descriptors: int) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join([str(ROOT / "guest-agent"), *sys.path])
    parent = os.getpid()

    def die_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it was gone before the kernel was asked
            os._exit(1)

    return subprocess.Popen(
        command,
        pass_fds=descriptors,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": path},
        preexec_fn=die_with_parent,  # noqa: PLW1509
    )


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *_descendants(int(child))]
    return found
