"""The host's side: Podman, and what is to be found on the host during a run and after it."""

import os
import select
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from sealrun_demo import telling, tools

RUN_SECONDS = 180
# Where a decrypted byte could have been left: Podman's storage and run directory, sealrun's state
# (VMM log and console in it), and the directories for temporary files of the tools.
PLACES = ("/var/lib/containers", "/run/containers", "/run/libpod", "/run/sealrun", "/var/tmp")


class Ended(NamedTuple):
    """How a `podman run` ended."""

    status: int
    stdout: str
    stderr: str


class Workload(NamedTuple):
    """What the host is given. image: its name in Podman's storage."""

    image: str
    annotations: dict[str, str]


class PodmanRun:
    """A `podman run` in the foreground, with pipes for stdio."""

    def __init__(self, argv: Sequence[str], cidfile: str) -> None:
        self._cidfile = cidfile
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self._deadline = time.monotonic() + RUN_SECONDS
        self._stdout = b""

    @property
    def container(self) -> str:
        """The container's id; empty where Podman never made one."""
        try:
            with open(self._cidfile, encoding="ascii") as stream:
                return stream.read().strip()
        except FileNotFoundError:
            return ""

    @property
    def said(self) -> str:
        """What was read of its output so far."""
        return self._stdout.decode(errors="replace")

    def wait_for_output(self, text: str) -> bool:
        """Read until `text` was said: True; False where the output ended, or time, before that."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        while text.encode() not in self._stdout:
            left = self._deadline - time.monotonic()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                return False
            chunk = os.read(descriptor, 65536)
            if not chunk:
                return False
            self._stdout += chunk
        return True

    def finish(self, stdin: bytes = b"") -> Ended:
        """Give it its input and wait for its end. Raises telling.Failed where it has none."""
        try:
            left = max(1.0, self._deadline - time.monotonic())
            rest, errors = self._process.communicate(stdin, timeout=left)
        except subprocess.TimeoutExpired as error:
            raise telling.Failed(f"podman run did not end within {RUN_SECONDS} s") from error
        output = self._stdout + rest
        return Ended(self._process.returncode, output.decode(), errors.decode(errors="replace"))

    def stop(self) -> None:
        """End it whatever it does, and remove its container."""
        if self._process.poll() is None:
            if self.container:
                tools.run(["podman", "rm", "--force", "--time", "0", self.container], show=False)
            tools.stop(self._process)
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()


@contextmanager
def stub_image(program: str, reference: str) -> Iterator[str]:
    """The name of an image without layers for Podman, which insists on one of its own and cannot pull
    an encrypted one."""
    name = tools.run([program, "image", "stub", "--tls-verify=false", reference]).strip()
    try:
        yield name
    finally:
        tools.run(["podman", "rmi", "--force", name], show=False)


@contextmanager
def podman_run(runtime: str, directory: str, name: str, workload: Workload) -> Iterator[PodmanRun]:
    """`podman run` of the sealed image, ended and removed when the block is left."""
    cidfile = os.path.join(directory, f"{name}.cid")
    argv = ["podman", "--runtime", runtime, "run", "--rm", "--interactive", "--network", "none"]
    for key, value in workload.annotations.items():
        argv += ["--annotation", f"{key}={value}"]
    argv += [workload.image]
    telling.command(argv)
    argv[4:4] = ["--cidfile", cidfile]
    run = PodmanRun(argv, cidfile)
    try:
        yield run
    finally:
        run.stop()
        with suppress(FileNotFoundError):
            os.unlink(cidfile)


def leftovers(container: str) -> list[str]:
    """What there still is of a container: processes, mounts, directories, cgroups."""
    found = [
        f"process {pid}" for pid in os.listdir("/proc") if pid.isdigit() and _of(pid, container)
    ]
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        found += [f"mount {line.split()[4]}" for line in stream if container in line]
    if os.path.exists(f"/run/sealrun/{container}"):
        found.append(f"/run/sealrun/{container}")
    for directory, names, _ in os.walk("/sys/fs/cgroup"):
        found += [f"cgroup {directory}/{name}" for name in names if container in name]
    return found


def _of(pid: str, container: str) -> bool:
    try:
        for name in ("cmdline", "cgroup"):
            with open(f"/proc/{pid}/{name}", "rb") as stream:
                if container.encode() in stream.read():
                    return True
        return container in os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return False  # it ended meanwhile, or is a kernel thread
