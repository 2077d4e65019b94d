"""The binary: where it is, what it says of itself, and whether that is enough.

It is asked before anything starts (`--version -v`), and again when it runs (`vmm.ping`): what it was
built with decides what it is given.
"""

import re
from collections.abc import Set
from typing import Final, NamedTuple

from sealrun_vmm import binary, process
from sealrun_vmm.errors import HostUnfit

PROGRAM: Final = "cloud-hypervisor"
OLDEST: Final = (52, 0)  # older ones have a use after free in virtio-block (CVE-2026-45782)
USE_QEMU: Final = "set vm.driver to qemu in sealrun.toml"

_REMEDY: Final = (
    f"install Cloud Hypervisor {OLDEST[0]} or newer, set vm.cloud_hypervisor in sealrun.toml, or "
    f"{USE_QEMU}"
)
_NAME: Final = re.compile(rf"^{PROGRAM} (.+)$", re.M)
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)")
_FEATURES: Final = re.compile(r"^Enabled features: \[([^\]]*)\]$", re.M)


class Build(NamedTuple):
    """version: "54.0.0", "v52.0-dirty"; features: what was compiled in."""

    version: str
    features: frozenset[str]


def find(given: str) -> str:
    """Its path; given: the operator's, empty: the system's own. Raises HostUnfit."""
    return binary.find(given or PROGRAM, _REMEDY)


def identify(path: str) -> Build:
    """What the program at `path` says of itself. Raises HostUnfit."""
    (answer,) = binary.ask(path, ("--version", "-v"), remedy=_REMEDY)
    name = _NAME.search(answer.text)
    failure = answer.failure()
    if failure is not None or name is None:
        why = failure or f"it does not say that it is {PROGRAM}"
        raise HostUnfit(f"cannot use {path}: {why}", remedy=_REMEDY)
    features = _FEATURES.search(answer.text)
    names = features[1].split(",") if features else []
    return Build(name[1].strip(), frozenset(name.strip(' "') for name in names))


def require(build: Build, features: Set[str], oldest: tuple[int, int] = OLDEST) -> None:
    """Raise HostUnfit where it is older than `oldest`, says nothing that is a version, or lacks one of
    `features`."""
    name = f"{PROGRAM} {process.printable(build.version)}"
    match = _VERSION.match(build.version)
    if match is None or (int(match[1]), int(match[2])) < oldest:
        raise HostUnfit(
            f"cannot use {name}: it is too old",
            remedy=f"install Cloud Hypervisor {oldest[0]} or newer, or {USE_QEMU}",
        )
    missing = ", ".join(sorted(features - build.features))
    if missing:
        raise HostUnfit(
            f"cannot use {name}: it was built without {missing}",
            remedy=f"install a Cloud Hypervisor that was built with {missing}, or {USE_QEMU}",
        )
