"""The guest's wheels: pip downloads exactly those whose hashes config/requirements/guest.txt pins."""

import hashlib
import io
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from typing import NamedTuple

from sealrun_guest_image.errors import BuildError
from sealrun_guest_image.tree import File

_PINNED = re.compile(r"^(?P<name>[\w.-]+)==(?P<version>\S+)", re.M)
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


class Wheel(NamedTuple):
    """One wheel that was downloaded and whose hash is a pinned one."""

    file: str
    sha256: str


def download(requirements: str, directory: str) -> list[Wheel]:
    """Bring the wheels that the file `requirements` pins into `directory`.

    Returns them sorted; fetches nothing when all are there. Raises BuildError."""
    with open(requirements, encoding="utf-8") as stream:
        text = stream.read()
    pinned = set(_HASH.findall(text))
    names = _PINNED.findall(text)
    wheels = _present(pinned, directory)
    if len(wheels) < len(names):
        _fetch(requirements, directory)
        wheels = _present(pinned, directory)
    if len(wheels) < len(names):
        raise BuildError(f"cannot find all wheels of {requirements} in {directory}")
    return wheels


def contents(wheel: Wheel, directory: str) -> Iterator[tuple[str, File]]:
    """The files in `wheel`, without its metadata (`*.dist-info`)."""
    with open(os.path.join(directory, wheel.file), "rb") as stream:
        archive = zipfile.ZipFile(io.BytesIO(stream.read()))
    for info in archive.infolist():
        if not info.is_dir() and ".dist-info/" not in info.filename:
            yield info.filename, File(archive.read(info))


def _present(pinned: set[str], directory: str) -> list[Wheel]:
    if not os.path.isdir(directory):
        return []
    wheels = []
    for file in sorted(os.listdir(directory)):
        if file.endswith(".whl"):
            with open(os.path.join(directory, file), "rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            if digest in pinned:
                wheels.append(Wheel(file, digest))
    return wheels


def _fetch(requirements: str, directory: str) -> None:
    os.makedirs(directory, exist_ok=True)
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "download", *options]
    command += ["--require-hashes", "--dest", directory, "--requirement", requirements]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR:")]
        reason = (lines or result.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
        raise BuildError(
            f"cannot download the guest's wheels: {reason.removeprefix('ERROR: ')}",
            remedy="check the network and pip's configuration",
        )
