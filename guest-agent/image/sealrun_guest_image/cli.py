"""`build`: options, progress, and the one place where a BuildError becomes an exit status."""

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from sealrun_guest_image import apt, assemble, contents, cpio, suite, wheels
from sealrun_guest_image.errors import BuildError
from sealrun_guest_image.tree import File, Tree

_FORMAT = 1
_HERE = os.path.dirname(os.path.abspath(__file__))
_OWN = os.path.dirname(os.path.dirname(_HERE))
_REQUIREMENTS = os.path.join(os.path.dirname(_OWN), "config/requirements/guest.txt")
_DEFAULT_CACHE = "/var/cache/sealrun/guest-image"

Manifest = dict[str, Any]


def main(arguments: list[str]) -> int:
    """Run the program; returns its exit status."""
    options = _parser().parse_args(arguments)
    try:
        build(options.output, options.cache, options.kernel_suite, say=_say)
    except BuildError as error:
        print(f"cannot build the guest image: {error}", file=sys.stderr)
        if error.remedy:
            print(f"  remedy: {error.remedy}", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"cannot build the guest image: {where}{error.strerror}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="build",
        description="Builds the guest image: kernel, initrd and manifest.json. The same inputs give "
        "the same bytes; unchanged inputs cost a second.",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where the image goes")
    parser.add_argument(
        "--cache", default=_DEFAULT_CACHE, metavar="DIR", help="downloads (default: %(default)s)"
    )
    parser.add_argument(
        "--kernel-suite",
        default="auto",
        choices=("auto", "backports"),
        help="auto: the kernel of the host's Debian release; backports: a newer one, which SEV-SNP "
        "and TDX guests need and which is not stable under emulation",
    )
    return parser


def _say(text: str) -> None:
    print(f"guest image: {text}", flush=True)


def build(output: str, cache: str, kernel_suite: str, say: Callable[[str], None]) -> Manifest:
    """Make `output`/{vmlinux,vmlinuz,initrd,manifest.json}; returns the manifest.

    Does nothing where the inputs are those of the image that is there. Raises BuildError, OSError."""
    started = time.monotonic()
    if f"python{sys.version_info[0]}.{sys.version_info[1]}" != contents.PYTHON:
        raise BuildError(f"the guest runs {contents.PYTHON}, so {contents.PYTHON} must build it")
    say("resolving packages")
    sources = _resolve(cache, kernel_suite, say)
    inputs = _inputs(sources)
    present = _present(output, inputs)
    if present is not None:
        say(f"{output} is up to date")
        return present
    say("assembling")
    image = assemble.assemble(sources)
    say("packing")
    initrd = cpio.archive(image.tree)
    files = {image.kernel_name: image.kernel, assemble.BZIMAGE: image.bzimage, "initrd": initrd}
    manifest = _manifest(sources, inputs, image, files)
    encoded = json.dumps(manifest, indent=1).encode() + b"\n"
    _write(output, files | {"manifest.json": encoded})  # the manifest last: it says «complete»
    seconds = time.monotonic() - started
    sizes = ", ".join(f"{name} {len(data) / 2**20:.1f} MiB" for name, data in files.items())
    say(f"wrote {output}: {sizes} in {seconds:.0f} s")
    return manifest


def _resolve(cache: str, kernel_suite: str, say: Callable[[str], None]) -> assemble.Sources:
    archive = apt.Apt()
    packages = archive.resolve({*contents.PACKAGES, *archive.libraries(contents.PACKAGES)})
    kernels = archive
    if kernel_suite != "auto":
        say(f"reading the {kernel_suite} suite")
        kernels = suite.apt_for(kernel_suite, os.path.join(cache, f"apt-{kernel_suite}"))
    name = kernels.dependency(contents.KERNEL_META_PACKAGE, contents.KERNEL_PACKAGE_PREFIX)
    (kernel_package,) = kernels.resolve([name])
    directory = os.path.join(cache, "packages")
    fetched = kernels.download([kernel_package], directory)
    fetched += archive.download(packages, directory)
    if fetched:
        say(f"downloaded {fetched / 2**20:.1f} MiB of packages")
    wheel_directory = os.path.join(cache, "wheels")
    found = wheels.download(_REQUIREMENTS, wheel_directory)
    return assemble.Sources(packages, kernel_package, directory, found, wheel_directory, _OWN)


def _inputs(sources: assemble.Sources) -> str:
    """One hash over everything that the image is made of and made by."""
    digest = hashlib.sha256(f"{_FORMAT}\n".encode())
    for package in [sources.kernel_package, *sources.packages]:
        digest.update(f"{package.file} {package.sha256}\n".encode())
    for wheel in sources.wheels:
        digest.update(f"{wheel.file} {wheel.sha256}\n".encode())
    own = [os.path.join(sources.own, path) for path in assemble.own_sources(sources.own)]
    builder = [os.path.join(_HERE, name) for name in os.listdir(_HERE) if name.endswith(".py")]
    for path in own + sorted(builder):
        with open(path, "rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{os.path.relpath(path, sources.own)} {content}\n".encode())
    return digest.hexdigest()


def _present(output: str, inputs: str) -> Manifest | None:
    """The manifest in `output`, if it is of these inputs and its files are whole."""
    try:
        with open(os.path.join(output, "manifest.json"), encoding="utf-8") as stream:
            manifest: Manifest = json.load(stream)
        if manifest["inputs"] != inputs:
            return None
        for part in (manifest["kernel"], manifest["bzimage"], manifest["initrd"]):
            with open(os.path.join(output, part["file"]), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != part["sha256"]:
                    return None
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return manifest


def _manifest(
    sources: assemble.Sources, inputs: str, image: assemble.Image, files: dict[str, bytes]
) -> Manifest:
    def part(name: str) -> Manifest:
        data = files[name]
        return {"file": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    kernel_package = sources.kernel_package
    return {
        "format": _FORMAT,
        "inputs": inputs,
        "kernel": part(image.kernel_name)
        | {"package": kernel_package.name, "version": kernel_package.version},
        "bzimage": part(assemble.BZIMAGE),
        "initrd": part("initrd"),
        "contents": _sizes(image.tree),
        "packages": [
            {"name": package.name, "version": package.version, "sha256": package.sha256}
            for package in [kernel_package, *sources.packages]
            if package.name in {kernel_package.name, *image.contributors}
        ],
        "wheels": [wheel._asdict() for wheel in sources.wheels if wheel.file in image.contributors],
    }


def _sizes(tree: Tree) -> dict[str, int]:
    """Bytes of file content by the folder that a reader thinks in, largest first."""
    sizes: dict[str, int] = {}
    for path, entry in tree.walk():
        if isinstance(entry, File):
            parts = path.split("/")
            depth = 4 if path.startswith(contents.OUR_DIRECTORY) else 3
            key = "/".join(parts[: min(depth, len(parts) - 1)]) or path
            sizes[key] = sizes.get(key, 0) + len(entry.data)
    return dict(sorted(sizes.items(), key=lambda item: (-item[1], item[0])))


def _write(directory: str, files: dict[str, bytes]) -> None:
    """Each file whole or not at all, the old manifest gone before the first is replaced."""
    os.makedirs(directory, exist_ok=True)
    if os.path.exists(os.path.join(directory, "manifest.json")):
        os.unlink(os.path.join(directory, "manifest.json"))
    for name, data in files.items():
        with tempfile.NamedTemporaryFile(dir=directory, delete=False) as stream:
            try:
                stream.write(data)
                os.fchmod(stream.fileno(), 0o644)
                stream.flush()
                os.fsync(stream.fileno())
                os.rename(stream.name, os.path.join(directory, name))
            except BaseException:
                os.unlink(stream.name)
                raise
