#!/usr/bin/python3
"""How long an image takes inside the VM: fetched cold, through the host's cache, and once more in its pod.

Usage: build/venv/bin/python bench/pull_vm.py [--size MIB] [--samples N] [--memory MIB]

Boots real VMs, one pod each, as CRI-O asks for them: the pod's first container boots the VM and runs
nothing, so that the `create` of another one is the image and little else. In each the same image is created
twice, the second time from what the sandbox has. The pods: one that fetches from the registry itself, one
that fills the host's cache, one that finds it filled, and one that fetches itself and has its images in memory (vm.scratch = 0)
instead of on its disk. The image is bench/pull.py's `tree`: many small files. Beside them, on
the host's kernel, the same pull without a VM, which is the floor, and podman, the peer (pull.py).

`cpu` is the processor time of the VMM meanwhile (of the contender, without a VM): it says more than the
seconds where others use the machine. docs/images.md has figures.

Prints a table of medians, and as its last line one JSON object. Needs root, docker-registry, skopeo, podman
and an installed sealrun.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pull
import pull_images
from memory import SECONDS, init_data, registry
from memory import sealrun as run

CRIO = "io.kubernetes.cri-o."
POD = "bench-pull"
SEALRUN = shutil.which("sealrun") or "/usr/local/bin/sealrun"

sealrun = partial(run, Path(SEALRUN))


class Taken(NamedTuple):
    """Seconds of the clock, and of processors."""

    seconds: float
    cpu: float


PODS = {
    "cold": {"io.sealrun.image.transport": "registry"},
    "cache cold": {"io.sealrun.image.transport": "cache"},
    "cache warm": {"io.sealrun.image.transport": "cache"},
    "cold, in memory": {"io.sealrun.image.transport": "registry", "io.sealrun.scratch": "0"},
}


def bundle(directory: Path, name: str, annotations: dict[str, str], pod: int = 0) -> Path:
    """One container. pod: the process whose namespaces the pod's containers share, once it is there."""
    path = directory / f"bundle-{name}"
    (path / "rootfs").mkdir(parents=True, exist_ok=True)
    program = next(name for name in pull_images.installed() if _is_program(name))
    process = {"args": [program], "cwd": "/", "env": [], "user": {"uid": 0, "gid": 0}}
    namespaces = [{"type": "pid"}, {"type": "mount"}]
    for kind, file in (("ipc", "ipc"), ("uts", "uts"), ("network", "net")):
        namespaces.append(
            {"type": kind, "path": f"/proc/{pod}/ns/{file}"} if pod else {"type": kind}
        )
    config = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs"},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "annotations": annotations,
        "linux": {"namespaces": namespaces},
    }
    (path / "config.json").write_text(json.dumps(config))
    return path


def _is_program(name: str) -> bool:
    return os.path.isfile(name) and os.access(name, os.X_OK)


def processor_seconds(directory: Path) -> float:
    """Of the only VMM."""
    (file,) = directory.glob("*/pod:*/processes")
    (pid,) = (line.split()[1] for line in file.read_text().splitlines() if line.startswith("vmm "))
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one_pod(directory: Path, reference: str, memory: int, more: dict[str, str]) -> list[Taken]:
    """What the `create` of the first and of the second container took."""
    common = {
        "io.sealrun.init-data": init_data(reference),
        "io.sealrun.memory": str(memory),
        "io.sealrun.image": reference,
        f"{CRIO}SandboxID": POD,
        **more,
    }
    members = ("one", "two")
    taken = []
    try:
        marks = common | {f"{CRIO}ContainerType": "sandbox"}
        path, pid_file = bundle(directory, POD, marks), directory / "pid"
        sealrun(directory, "create", "--bundle", str(path), "--pid-file", str(pid_file), POD)
        pod = int(pid_file.read_text())
        marks = common | {f"{CRIO}ContainerType": "container"}
        for name in members:
            path = bundle(directory, name, marks, pod)
            started, before = time.monotonic(), processor_seconds(directory)
            sealrun(directory, "create", "--bundle", str(path), name)
            used = processor_seconds(directory) - before
            taken.append(Taken(time.monotonic() - started, used))
    finally:
        for name in (*members, POD):
            sealrun(directory, "delete", "--force", name)
    return taken


def sample(directory: Path, reference: str, memory: int) -> dict[str, Taken]:
    """One turn, from an empty cache."""
    sealrun(directory, "cache", "prune", "--size", "0")
    found = {}
    for name, more in PODS.items():
        first, second = one_pod(directory, reference, memory, more)
        found |= {name: first, f"second after {name}": second}
    image = pull.Image("tree", reference, None, zstd=False)
    for name, contender in (("no VM: sealrun", pull.ours), ("no VM: podman", pull.podman)):
        with pull.target(directory) as target:
            found[name] = Taken(*contender(image, target)[:2])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=64, help="of the image's tars in MiB")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--memory", type=int, default=2048, help="the VM's memory in MiB")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        layout = directory / "layout"
        pull_images.make("tree", layout, options.size * pull_images.MIB, "gzip")
        print(f"# {pull_images.facts(layout)}", flush=True)
        with registry(directory) as address:
            reference = f"{address}/bench/tree:1"
            copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest"]
            subprocess.run([*copy, f"docker://{reference}"], check=True, timeout=SECONDS)
            samples = [sample(directory, reference, options.memory) for _ in range(options.samples)]
    medians = {
        key: Taken(
            *(
                statistics.median(column)
                for column in zip(*(one[key] for one in samples), strict=True)
            )
        )
        for key in samples[0]
    }
    print(f"{'':<30}{'s':>8}{'cpu s':>8}")
    for key, taken in medians.items():
        print(f"{key:<30}{taken.seconds:>8.2f}{taken.cpu:>8.2f}")
    rounded = {
        key: {"s": round(taken.seconds, 2), "cpu": round(taken.cpu, 2)}
        for key, taken in medians.items()
    }
    print(json.dumps({"size_mib": options.size, **rounded}))


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    main()
