#!/usr/bin/python3
"""How long plain layers take to become files: our unpacker beside GNU tar and bsdtar.

Usage: build/venv/bin/python bench/unpack.py [--size MIB] [--samples N] [--cache DIR]

On the host's kernel, from files into one tmpfs, without network, digests and decompression: what bench/pull.py
measures with all of them. The image is the `tree` of pull_images.py, tens of thousands of small files. `cpu` is user
and system time. Measured on a machine of two cores that eight others shared (256 MiB, medians of three):

                      s    cpu s peak MiB
    sealrun        0.64     0.54       16
    GNU tar        0.79     0.42        9
    bsdtar         0.85     0.65        9

Prints medians, and as its last line one JSON object. Needs root and bsdtar.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / name) for name in ("tests", "guest-agent", "bench")]

import pull_images  # noqa: E402
from pull import Sample, run, target  # noqa: E402

OURS = """
import os, sys
sys.path[:0] = [sys.argv[1]]
from sealrun_agent.image.layer import unpack
from sealrun_agent.image.stream import CHUNK_BYTES
def chunks(path):
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
lowers = []
for number, path in enumerate(sys.argv[3:]):
    layer = os.path.join(sys.argv[2], str(number))
    os.mkdir(layer)
    unpack(chunks(path), layer, lowers, path)
    lowers.append(layer)
"""


def ours(tars: Sequence[Path], directory: Path) -> Sample:
    """A directory for each layer, as overlayfs wants them."""
    packages = [path for path in sys.path if path.endswith("-packages")]
    program = f"import sys\nsys.path += {packages!r}\n{OURS}"
    return run([[sys.executable, "-ISE", "-c", program, ROOT / "guest-agent", directory, *tars]])


def gnu_tar(tars: Sequence[Path], directory: Path) -> Sample:
    """All into one directory."""
    options = ["-xp", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    return run([["tar", "-C", directory, *options, "-f", tar] for tar in tars])


def bsdtar(tars: Sequence[Path], directory: Path) -> Sample:
    """All into one directory."""
    return run([["bsdtar", "-C", directory, "-xp", "--numeric-owner", "-f", tar] for tar in tars])


CONTENDERS: dict[str, Callable[[Sequence[Path], Path], Sample]] = {
    "sealrun": ours,
    "GNU tar": gnu_tar,
    "bsdtar": bsdtar,
}


def layers_of(layout: Path) -> list[Path]:
    """The tars, lowest first."""
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    blobs = layout / "blobs/sha256"
    manifest = json.loads((blobs / entry["digest"].removeprefix("sha256:")).read_text())
    return [blobs / layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=256, help="of the image's tars in MiB")
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--cache", type=Path, help="where the image is kept")
    options = parser.parse_args()
    taken: dict[str, list[Sample]] = {name: [] for name in CONTENDERS}
    with tempfile.TemporaryDirectory() as name:
        layout = (options.cache or Path(name)) / f"tree-{options.size}-plain"
        if not layout.exists():
            pull_images.make("tree", layout, options.size * pull_images.MIB, "")
        tars = layers_of(layout)
        for _ in range(options.samples):
            for contender, unpack in CONTENDERS.items():
                with target(Path(name)) as directory:
                    taken[contender].append(unpack(tars, directory))
    medians = {
        name: Sample(*(statistics.median(column) for column in zip(*samples, strict=True)))
        for name, samples in taken.items()
    }
    print(f"{'':<10}{'s':>9}{'cpu s':>9}{'peak MiB':>9}")
    for name, sample in medians.items():
        print(f"{name:<10}{sample.seconds:>9.2f}{sample.cpu:>9.2f}{sample.peak:>9.0f}")
    figures = {
        name: {key: round(value, 2) for key, value in sample._asdict().items()}
        for name, sample in medians.items()
    }
    print(json.dumps({"size_mib": options.size, **figures}))


if __name__ == "__main__":
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    main()
