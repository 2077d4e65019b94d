#!/usr/bin/python3
"""How long an image takes inside the VM: fetched cold, through the host's cache, and once more in its pod.

Usage: build/venv/bin/python bench/pull_vm.py [--size MIB] [--samples N] [--memory MIB]

Boots real VMs, one pod each, as CRI-O asks for them: the pod's first container boots the VM and runs
nothing, so that the `create` of another one is the image and little else. Three VMs a sample: one that
fetches from the registry itself (`cold`), one that fills the host's cache (`cache cold`), one that finds
it filled (`cache warm`); in each the same image is created twice, the second time from what the sandbox
has (`second`). The image is bench/pull.py's `tree`: many small files.

Seen under emulation, on two cores that eight others shared: 32 MiB cold in 11 and 18 s, through the cache
in 19 and 22 s, second in 0.4 to 1.0 s; 64 MiB cold in 69 s, through the cache in 62 and 15 s. What that
says is that the load decides: a comparison of the ways wants a quiet machine.

Prints a table of medians, and as its last line one JSON object. Needs root, docker-registry, skopeo
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

import pull_images
from memory import SECONDS, init_data, registry
from memory import sealrun as run

CRIO = "io.kubernetes.cri-o."
POD = "bench-pull"
SEALRUN = shutil.which("sealrun") or "/usr/local/bin/sealrun"

sealrun = partial(run, Path(SEALRUN))


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


def one_pod(directory: Path, reference: str, transport: str, memory: int) -> tuple[float, float]:
    """Seconds that the first and the second container's `create` took."""
    common = {
        "io.sealrun.init-data": init_data(reference),
        "io.sealrun.memory": str(memory),
        "io.sealrun.image": reference,
        "io.sealrun.image.transport": transport,
        f"{CRIO}SandboxID": POD,
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
            started = time.monotonic()
            sealrun(directory, "create", "--bundle", str(path), name)
            taken.append(time.monotonic() - started)
    finally:
        for name in (*members, POD):
            sealrun(directory, "delete", "--force", name)
    return taken[0], taken[1]


def sample(directory: Path, reference: str, memory: int) -> dict[str, float]:
    """The seconds of one turn, from an empty cache."""
    sealrun(directory, "cache", "prune", "--size", "0")
    found = {}
    for name, transport in (("cold", "registry"), ("cache cold", "cache"), ("cache warm", "cache")):
        first, second = one_pod(directory, reference, transport, memory)
        found |= {name: first, f"second after {name}": second}
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
        with registry(directory) as address:
            reference = f"{address}/bench/tree:1"
            copy = ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest"]
            subprocess.run([*copy, f"docker://{reference}"], check=True, timeout=SECONDS)
            samples = [sample(directory, reference, options.memory) for _ in range(options.samples)]
    medians = {key: statistics.median(one[key] for one in samples) for key in samples[0]}
    for key, seconds in medians.items():
        print(f"{key:<26}{seconds:>8.2f} s")
    print(json.dumps({"size_mib": options.size, **{k: round(v, 2) for k, v in medians.items()}}))


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    main()
