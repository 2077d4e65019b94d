"""The binary: where it is, what it says of itself, and whether that is enough.

It is asked before anything starts (`--version -v`), and again when it runs (`vmm.ping`): what it was
built with decides what it is given.
"""

import re
import shutil
import subprocess
from collections.abc import Set
from typing import Final, NamedTuple

from sealrun_vmm import process
from sealrun_vmm.errors import HostUnfit

PROGRAM: Final = "cloud-hypervisor"
OLDEST: Final = (52, 0)  # older ones have a use after free in virtio-block (CVE-2026-45782)
USE_QEMU: Final = "set vm.driver to qemu in sealrun.toml"

_SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_SECONDS: Final = 10.0  # to say its version; it takes 0.01
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)")
_FEATURES: Final = re.compile(r"^Enabled features: \[([^\]]*)\]$", re.M)


class Build(NamedTuple):
    """version: "54.0.0", "v52.0-dirty"; features: what was compiled in."""

    version: str
    features: frozenset[str]


def find(binary: str) -> str:
    """The path of `binary`; empty: of the system's own. Raises HostUnfit."""
    # Engines call with little or no PATH.
    wanted = binary or PROGRAM
    found = shutil.which(wanted, path=_SYSTEM_PATH)
    if found is None:
        raise HostUnfit(
            f"cannot find {wanted}",
            remedy=f"install Cloud Hypervisor {OLDEST[0]} or newer, set vm.cloud_hypervisor in "
            f"sealrun.toml, or {USE_QEMU}",
        )
    return found


def identify(path: str) -> Build:
    """What the program at `path` says of itself. Raises HostUnfit."""
    try:
        done = subprocess.run(
            [path, "--version", "-v"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise _unfit(path, f"it did not say its version in {_SECONDS:g} s") from error
    except OSError as error:
        raise _unfit(path, str(error.strerror)) from error
    text = done.stdout.decode("utf-8", "replace")
    name, _, version = text.partition("\n")[0].partition(" ")
    if done.returncode != 0 or name != PROGRAM:
        raise _unfit(path, f"it does not say that it is {PROGRAM}")
    features = _FEATURES.search(text)
    names = features[1].split(",") if features else []
    return Build(version.strip(), frozenset(name.strip(' "') for name in names))


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


def _unfit(path: str, why: str) -> HostUnfit:
    return HostUnfit(
        f"cannot use {path}: {why}",
        remedy=f"install Cloud Hypervisor {OLDEST[0]} or newer, set vm.cloud_hypervisor in "
        f"sealrun.toml, or {USE_QEMU}",
    )
