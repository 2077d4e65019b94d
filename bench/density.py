#!/usr/bin/python3
"""Many pods at once: the time until all of them answer, what they take of memory, and how they go.

Usage: bench/density.py [--pods N] [--memory MIB] [--prefix DIR]

Pods of two containers each, as CRI-O asks for them without an infra container: the first container
boots the pod's VM, the second joins it, the last one ends it. All pods are made at once, by a thread
each. A container is up when it has written its word, and answers when a program that is executed in
it has written its own. The peer is the same number of pairs of the same containers under crun, in
the same run and in the same way.

Memory is the PSS of all processes that the runtime left running (shims, VMMs, stand-ins, programs),
beside what the machine has less of than before (MemAvailable). After the end nothing may be left of
them. Prints a table, and as its last line one JSON object. Needs root, an installation, docker-registry,
skopeo, crun, iproute2 and busybox-static.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import memory

MEMBERS = ("a", "b")
SECONDS = 900
PROGRAM = ["/bin/busybox", "sh", "-c", "echo up; exec /bin/busybox sleep 10000"]
ANSWER = ["/bin/busybox", "echo", "here"]


@dataclass(frozen=True)
class Runtime:
    """A runtime's command line. bundle: writes one for (pod, member)."""

    name: str
    command: list[str]
    root: Path
    bundle: Callable[[str, str], Path]

    def __call__(self, verb: str, *arguments: str, output: Path = Path(os.devnull)) -> bytes:
        """One verb; SystemExit where it fails. Its output, which containers may go on writing to."""
        with output.open("ab") as out, tempfile.TemporaryFile() as errors:
            done = subprocess.run(
                [*self.command, "--root", str(self.root), verb, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if verb == "exec" else out,
                stderr=errors,
                timeout=SECONDS,
                check=False,
            )
            errors.seek(0)
            if done.returncode != 0:
                raise SystemExit(f"{self.name} {verb} failed: {errors.read().decode().strip()}")
        return done.stdout or b""


@dataclass
class Figures:
    """Seconds, and MiB of all pods together."""

    first: float = 0.0
    all: float = 0.0
    gone: float = 0.0
    pss: float = 0.0
    taken: float = 0.0


def network(pod: str) -> str:
    """The name of a pod's network namespace, which has an interface to itself and nothing else."""
    return f"sealrun-bench-{os.getpid()}-{pod}"


def namespaces(pod: str) -> list[dict[str, str]]:
    """As CRI-O gives them to each container of a pod."""
    own = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts")]
    return [*own, {"type": "network", "path": f"/run/netns/{network(pod)}"}]


def tools(*command: str) -> None:
    """Raises SystemExit where it fails."""
    done = subprocess.run(command, capture_output=True, timeout=SECONDS, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.decode().strip()}")


def available() -> float:
    """MiB that the machine has to spare."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/meminfo has no MemAvailable")


def offspring(before: set[int]) -> list[int]:
    """Processes that are there and were not before, but for this program's own."""
    pids = {int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()}
    return sorted(pids - before - {os.getpid()})


def pss(pids: list[int]) -> float:
    """MiB."""
    total = 0
    for pid in pids:
        try:
            total += memory.memory_of(pid)[1]
        except (OSError, KeyError):
            continue  # it has ended, or is a thread of the kernel's
    return total / 1024


def at_once(count: int, work: Callable[[str], None]) -> None:
    """Run `work` for each pod in a thread of its own. Raises what the first failure raised."""
    failures: list[BaseException] = []

    def guarded(pod: str) -> None:
        try:
            work(pod)
        except (SystemExit, OSError, subprocess.SubprocessError) as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(f"pod{n}",)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for failure in failures:
        raise failure


def measure(runtime: Runtime, count: int) -> Figures:
    """One round. Raises SystemExit where anything fails or is left."""
    figures = Figures()
    before, spare = set(offspring(set())), available()
    begin = time.monotonic()
    answered: list[float] = []

    def up(pod: str) -> None:
        tools("ip", "netns", "add", network(pod))
        for member in MEMBERS:
            name, bundle = f"{pod}-{member}", runtime.bundle(pod, member)
            output = bundle / "output"
            runtime("create", "--bundle", str(bundle), name, output=output)
            runtime("start", name)
            while output.read_bytes() != b"up\n":
                if time.monotonic() - begin > SECONDS:
                    raise SystemExit(f"{name} did not come up: {output.read_bytes()!r}")
                time.sleep(0.05)
            if runtime("exec", name, *ANSWER) != b"here\n":
                raise SystemExit(f"{name} does not answer")
            answered.append(time.monotonic() - begin)

    def down(pod: str) -> None:
        for member in MEMBERS:
            runtime("delete", "--force", f"{pod}-{member}")
        tools("ip", "netns", "delete", network(pod))

    try:
        at_once(count, up)
        figures.first, figures.all = min(answered), max(answered)
        figures.pss, figures.taken = pss(offspring(before)), spare - available()
        begin_end = time.monotonic()
    except BaseException:
        at_once(count, down)
        raise
    at_once(count, down)
    figures.gone = time.monotonic() - begin_end
    left = [path.name for path in runtime.root.iterdir()] if runtime.root.exists() else []
    if left:
        raise SystemExit(f"{runtime.name} left something behind: {left}")
    return figures


def ours(directory: Path, program: Path, reference: str, megabytes: int) -> Runtime:
    """sealrun, whose containers pull their image in the guest."""

    def bundle(pod: str, member: str) -> Path:
        place = directory / "ours" / pod / member
        place.mkdir(parents=True)
        path = memory.bundle(place, reference, megabytes)
        config = json.loads((path / "config.json").read_text())
        config["process"]["args"] = PROGRAM
        config["annotations"] |= {
            "io.kubernetes.cri-o.ContainerType": "container",
            "io.kubernetes.cri-o.SandboxID": pod,
        }
        config["linux"]["namespaces"] = namespaces(pod)
        (path / "config.json").write_text(json.dumps(config))
        return path

    return Runtime("sealrun", [str(program)], directory / "state", bundle)


def peer(directory: Path) -> Runtime:
    """crun, with the same root file system on the host."""
    rootfs = directory / "rootfs"
    for name in ("bin", "dev", "proc", "sys"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy(memory.BUSYBOX, rootfs / "bin/busybox")

    def bundle(pod: str, member: str) -> Path:
        place = directory / "peer" / pod / member
        place.mkdir(parents=True)
        config = {
            "ociVersion": "1.0.2",
            "process": {"args": PROGRAM, "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}},
            "root": {"path": str(rootfs)},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {"namespaces": namespaces(pod)},
        }
        (place / "config.json").write_text(json.dumps(config))
        return place

    # crun refuses a hybrid host with a controller on cgroup2; without sight of cgroup2 it works.
    hide = 'umount /sys/fs/cgroup/unified 2>/dev/null; exec crun --cgroup-manager=disabled "$@"'
    command = ["unshare", "--mount", "sh", "-c", hide, "crun"]
    return Runtime("crun", command, directory / "crun", bundle)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pods", type=int, default=16)
    parser.add_argument("--memory", type=int, default=512, help="of a VM, in MiB")
    parser.add_argument("--prefix", type=Path, default=Path("/usr/local"))
    options = parser.parse_args()
    program = options.prefix / "bin/sealrun"
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        with memory.registry(directory) as address:
            reference = memory.publish(directory, address)
            runtimes = [ours(directory, program, reference, options.memory), peer(directory)]
            figures = {runtime.name: measure(runtime, options.pods) for runtime in runtimes}
    report(figures, options.pods)


def report(figures: dict[str, Figures], pods: int) -> None:
    """The table, and the JSON line."""
    print(f"{pods} pods of {len(MEMBERS)}: seconds until")
    print(f"{'':<10}{'first':>9}{'all':>9}{'gone':>9}{'PSS MiB/pod':>14}{'taken MiB/pod':>15}")
    for name, one in figures.items():
        print(
            f"{name:<10}{one.first:>9.2f}{one.all:>9.2f}{one.gone:>9.2f}"
            f"{one.pss / pods:>14.1f}{one.taken / pods:>15.1f}"
        )
    result: dict[str, object] = {"pods": pods, "containers": pods * len(MEMBERS)}
    for name, one in figures.items():
        result |= {
            f"{name}_first_seconds": round(one.first, 2),
            f"{name}_all_seconds": round(one.all, 2),
            f"{name}_gone_seconds": round(one.gone, 2),
            f"{name}_pss_mib_per_pod": round(one.pss / pods, 1),
            f"{name}_taken_mib_per_pod": round(one.taken / pods, 1),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    main()
