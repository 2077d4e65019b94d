"""Images of a size for bench/pull.py, as OCI layouts.

`tree`: the files of this machine's own Debian packages, as dpkg lists them, in four layers: many small
files with the owners, links and modes of a real root file system. `model`: two files of numbers as a
language model's weights are (bfloat16: random fractions, few exponents), a layer each.
"""

import hashlib
import json
import os
import platform
import random
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

MIB = 1 << 20
LAYERS = 4
COMPRESSORS = {"gzip": ["gzip", "-6", "-n"], "zstd": ["zstd", "-q", "-3"], "": ["cat"]}
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
_KERNELS = ("/proc", "/sys", "/run", "/dev", "/tmp")  # mounts, and what changes all the time
_EXPONENTS = bytes(60 + min(15, (n * n) >> 12) for n in range(256))


def make(kind: str, layout: Path, size: int, compression: str) -> None:
    """Write the image `kind`, whose layers' tars are `size` bytes or a little more together."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)
    tars = list({"tree": _tree, "model": _model}[kind](layout, size))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        packed = list(pool.map(lambda tar: _compressed(tar, compression), tars))
    suffix = f"+{compression}" if compression else ""
    layer_type = f"application/vnd.oci.image.layer.v1.tar{suffix}"
    diff_ids = [f"sha256:{_sha256(tar)}" for tar in tars]
    layers = [_stored(path, blobs, layer_type) for path in packed]
    image = {
        "architecture": ARCHITECTURE,
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _document(image, layout, "application/vnd.oci.image.config.v1+json"),
        "layers": layers,
    }
    entry = _document(manifest, layout, str(manifest["mediaType"]))
    entry["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    for tar in tars:
        tar.unlink()


def facts(layout: Path) -> dict[str, int]:
    """layers, and MiB in the registry."""
    entry = json.loads((layout / "index.json").read_text())["manifests"][0]
    digest = entry["digest"].removeprefix("sha256:")
    layers = json.loads((layout / "blobs/sha256" / digest).read_text())["layers"]
    return {"layers": len(layers), "blob_mib": sum(layer["size"] for layer in layers) // MIB}


def _tree(directory: Path, size: int) -> Iterator[Path]:
    """Tars of what is installed, by package, until there is enough."""
    names: list[str] = []
    total, number = 0, 0
    for name in installed():
        names.append(name)
        total += 1024 + (os.lstat(name).st_size if os.path.isfile(name) else 0)
        if total * LAYERS >= size * (number + 1):
            yield _tar(directory / f"layer-{number}", names)
            names, number = [], number + 1
        if number == LAYERS:
            return
    raise SystemExit(f"this machine's packages hold {total // MIB} MiB only")


def installed() -> Iterator[str]:
    """The files of Debian's packages, each once, by its real name."""
    listed = subprocess.run(
        ["dpkg-query", "-W", "-f", "${db-fsys:Files}"], check=True, capture_output=True, text=True
    ).stdout
    seen: set[str] = set()
    for line in listed.splitlines():
        parent, _, last = line.strip().rpartition("/")
        name = f"{os.path.realpath(parent or '/').rstrip('/')}/{last}"
        if name in seen or name.startswith(_KERNELS) or not os.path.lexists(name):
            continue
        seen.add(name)
        yield name


def _tar(path: Path, names: list[str]) -> Path:
    listed = "\0".join(name.lstrip("/").removesuffix("/.") or "." for name in names)
    command = ["tar", "-C", "/", "--format=posix", "--xattrs", "--sort=none", "--no-recursion"]
    subprocess.run(
        [*command, "--null", "--files-from=-", "-cf", path],
        check=True,
        input=listed.encode(),
    )
    return path


def _model(directory: Path, size: int) -> Iterator[Path]:
    """Tars of one file each."""
    source = random.Random(1)
    for number in range(2):
        weights = directory / f"model-{number}.safetensors"
        with weights.open("wb") as file:
            for _ in range(size // (2 * MIB)):
                numbers = bytearray(source.randbytes(MIB))
                numbers[1::2] = numbers[1::2].translate(_EXPONENTS)
                file.write(numbers)
        path = directory / f"layer-{number}"
        tar = ["tar", "-C", directory, "--format=posix", "-cf", path]
        subprocess.run([*tar, weights.name], check=True)
        weights.unlink()
        yield path


def _compressed(tar: Path, compression: str) -> Path:
    path = tar.with_name(f"{tar.name}.packed")
    with tar.open("rb") as source, path.open("wb") as target:
        subprocess.run(COMPRESSORS[compression], stdin=source, stdout=target, check=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stored(path: Path, blobs: Path, media_type: str) -> dict[str, Any]:
    """Move a file in among the blobs; its descriptor."""
    name = _sha256(path)
    size = path.stat().st_size
    path.rename(blobs / name)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": size}


def _document(value: dict[str, Any], layout: Path, media_type: str) -> dict[str, Any]:
    path = layout / "document"
    path.write_text(json.dumps(value))
    return _stored(path, layout / "blobs/sha256", media_type)
