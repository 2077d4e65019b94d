#!/usr/bin/python3
"""How long an image takes from a registry to an unpacked tree: our pipeline beside the host's tools.

Usage: build/venv/bin/python bench/pull.py [--size MIB] [--samples N] [--compression gzip|zstd|none]
                                           [--images tree,model] [--cache DIR]

On the host's kernel, without a VM, so that the pipelines themselves are compared: the agent's `pull` in
a process of its own; skopeo (which decrypts) and umoci (Debian's knows no zstd); podman (plain only: it
cannot decrypt). All write into one tmpfs, as the guest does, from one docker-registry on loopback.
Each sample starts from nothing; the contenders take turns. Seconds are from a process's start to its end; `cpu` is user and
system time of all its processes; `peak` is the largest resident set of any of them.

Measured on a machine of two cores that eight others shared (512 MiB, gzip; seconds are of that load,
cpu and peak are not; in a quiet minute ours took 2.0 to 2.8 s and podman 7.9 to 8.8):

    image             contender             s    cpu s peak MiB
    tree encrypted    sealrun            7.04     3.39       49
    tree encrypted    skopeo+umoci      38.40    14.38       36
    tree plain        sealrun            5.33     3.22       38
    tree plain        skopeo+umoci      36.91    12.70       35
    tree plain        podman            25.32    13.04       73
    model encrypted   sealrun            8.66     4.15       41
    model encrypted   skopeo+umoci      55.61    17.05       26
    model plain       sealrun            7.57     3.47       31
    model plain       skopeo+umoci      35.37    12.70       21
    model plain       podman            34.03    15.39       49

Prints a table of medians, and as its last line one JSON object. Needs root, docker-registry, skopeo,
umoci and podman; `--cache` keeps the images for the next run.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "guest-agent", "bench")]

import pull_images  # noqa: E402
from fixtures import registry as registries  # noqa: E402

SECONDS = 600
PULL = """
import sys
sys.path[:0] = sys.argv[1:3]
from fixtures import direct
from sealrun_agent.image.policy import ImagePolicy
from sealrun_agent.image.pull import Keys, pull
from sealrun_agent.image.store import Store
reference, key, directory = sys.argv[3:]
pull(
    reference,
    policy=ImagePolicy((reference.partition("/")[0],), insecure_unpinned_keys=True),
    dial=direct.dial,
    resolved=lambda *_: None,
    keys=Keys(lambda: [open(key, "rb").read()], lambda uri: b""),
    store=Store(directory),
    progress=lambda *_: None,
)
"""


class Sample(NamedTuple):
    """One pull. peak: MiB."""

    seconds: float
    cpu: float
    peak: float


class Image(NamedTuple):
    """What is pulled. reference: in the registry. key: a private key's file, none for a plain
    one. zstd: its compression."""

    name: str
    reference: str
    key: Path | None
    zstd: bool


# A process starts with the peak of the one that starts it, so a small one does.
MEASURE = """
import json, os, sys
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, used = os.wait4(pid, 0)
print(json.dumps([used.ru_utime + used.ru_stime, used.ru_maxrss]))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def run(commands: Sequence[Sequence[str | Path]]) -> Sample:
    """Run programs one after the other; ends this one where one of them fails."""
    started, cpu, peak = time.monotonic(), 0.0, 0
    for command in commands:
        measured = [sys.executable, "-ISE", "-c", MEASURE, "timeout", "-k5", str(SECONDS)]
        done = subprocess.run(
            [*measured, *command],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise SystemExit(f"{command[0]} failed: {done.stderr[-1000:]}")
        one_cpu, one_peak = json.loads(done.stdout.splitlines()[-1])
        cpu += one_cpu
        peak = max(peak, one_peak)
    return Sample(time.monotonic() - started, cpu, peak / 1024)


def ours(image: Image, directory: Path) -> Sample:
    """The agent's pipeline."""
    arguments = [ROOT / "guest-agent", ROOT / "tests", image.reference, image.key or "", directory]
    return run([[sys.executable, "-ISE", "-c", _with_packages(), *arguments]])


def _with_packages() -> str:
    """`PULL` under -S: third-party packages are found where this interpreter has them."""
    packages = [path for path in sys.path if path.endswith("-packages")]
    return f"import sys\nsys.path += {packages!r}\n{PULL}"


def skopeo_umoci(image: Image, directory: Path) -> Sample:
    """Into a layout, then into a bundle."""
    layout = directory / "layout"
    key = ["--decryption-key", image.key] if image.key else []
    copy = ["skopeo", "--insecure-policy", "copy", "-q", "--src-tls-verify=false", *key]
    return run(
        [
            [*copy, f"docker://{image.reference}", f"oci:{layout}:latest"],
            ["umoci", "unpack", "--image", f"{layout}:latest", directory / "bundle"],
        ]
    )


def podman(image: Image, directory: Path) -> Sample:
    """Into a storage of its own."""
    storage = [
        *("--root", directory / "root", "--runroot", directory / "run"),
        *("--storage-driver", "overlay", "--tmpdir", directory / "tmp"),
    ]
    return run([["podman", *storage, "pull", "-q", "--tls-verify=false", image.reference]])


CONTENDERS = {"sealrun": ours, "skopeo+umoci": skopeo_umoci, "podman": podman}


@contextmanager
def target(parent: Path) -> Iterator[Path]:
    """An empty tmpfs for one sample."""
    directory = parent / "target"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        # Podman leaves its storage mounted.
        subprocess.run(["umount", "-R", directory], check=True)
        directory.rmdir()


def published(kind: str, options: argparse.Namespace, server: registries.Registry) -> list[Image]:
    """The image `kind` in the registry, encrypted and plain."""
    compression = "" if options.compression == "none" else options.compression
    zstd = compression == "zstd"
    layout = options.cache / f"{kind}-{options.size}-{options.compression}"
    if not layout.exists():
        making = options.cache / "making"
        shutil.rmtree(making, ignore_errors=True)
        pull_images.make(kind, making, options.size * pull_images.MIB, compression)
        making.rename(layout)
    key = registries.key_pair(options.cache, kind)
    registries.push(layout, server, f"{kind}/plain:1")
    registries.push(layout, server, f"{kind}/encrypted:1", encrypt_for=[key])
    print(f"# {kind}: {pull_images.facts(layout)}", flush=True)
    return [
        Image(f"{kind} encrypted", f"{server.address}/{kind}/encrypted:1", key.private, zstd),
        Image(f"{kind} plain", f"{server.address}/{kind}/plain:1", None, zstd),
    ]


def measured(image: Image, samples: int, parent: Path, names: Sequence[str]) -> dict[str, Sample]:
    """Medians by contender."""
    found: dict[str, list[Sample]] = {
        name: []
        for name in names
        if (name != "podman" or image.key is None) and (name != "skopeo+umoci" or not image.zstd)
    }
    for _ in range(samples):
        for name, taken in found.items():
            with target(parent) as directory:
                taken.append(CONTENDERS[name](image, directory))
    return {
        name: Sample(*(statistics.median(column) for column in zip(*taken, strict=True)))
        for name, taken in found.items()
    }


def report(name: str, medians: dict[str, Sample]) -> dict[str, object]:
    """The table's lines, and their part of the JSON object."""
    for contender, sample in medians.items():
        print(
            f"{name:<18}{contender:<14}{sample.seconds:>9.2f}{sample.cpu:>9.2f}{sample.peak:>9.0f}",
            flush=True,
        )
    mine = medians.get("sealrun")
    others = [sample.seconds for other, sample in medians.items() if other != "sealrun"]
    result: dict[str, object] = {
        contender: {key: round(value, 2) for key, value in sample._asdict().items()}
        for contender, sample in medians.items()
    }
    if mine and others:
        result["to_fastest_peer"] = round(mine.seconds / min(others), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512, help="of an image's tars in MiB")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--compression", choices=["gzip", "zstd", "none"], default="gzip")
    parser.add_argument("--images", default="tree,model")
    parser.add_argument("--contenders", default=",".join(CONTENDERS))
    parser.add_argument("--cache", type=Path, help="where the images are kept")
    options = parser.parse_args()
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        options.cache = options.cache or directory / "images"
        options.cache.mkdir(parents=True, exist_ok=True)
        with registries.serve(directory / "registry") as server:
            images = [
                image
                for kind in options.images.split(",")
                for image in published(kind, options, server)
            ]
            print(f"{'image':<18}{'contender':<14}{'s':>9}{'cpu s':>9}{'peak MiB':>9}")
            for image in images:
                medians = measured(image, options.samples, directory, options.contenders.split(","))
                results[image.name] = report(image.name, medians)
    print(json.dumps({"size_mib": options.size, "compression": options.compression, **results}))


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    main()
