"""The guest image on this host: where its kernel and initrd lie, as its manifest names them."""

import json
import os
import stat
from dataclasses import dataclass

from sealrun_vmm.errors import HostUnfit

_REMEDY = "run install.sh, or guest-agent/image/build with --output set to this directory"


@dataclass(frozen=True, slots=True)
class GuestImage:
    """One installed guest image. `kernel`, `bzimage` and `initrd` are absolute paths.

    kernel: what a VMM starts by itself. bzimage: the same kernel as firmware starts it.
    kernel_version: the Debian version of the kernel's package."""

    kernel: str
    bzimage: str
    initrd: str
    kernel_version: str


def locate(directory: str) -> GuestImage:
    """The guest image in `directory`.

    Sizes are compared with the manifest, hashes are not: that would cost each boot a read of the
    whole image, and what a TEE measures is the image itself. Raises HostUnfit."""
    directory = os.path.abspath(directory)
    path = os.path.join(directory, "manifest.json")
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # whoever opens a pipe waits
            raise ValueError(path)
        with open(path, encoding="utf-8") as stream:
            manifest = json.load(stream)
        kernel = _file(directory, manifest["kernel"])
        bzimage = _file(directory, manifest["bzimage"])
        initrd = _file(directory, manifest["initrd"])
        return GuestImage(kernel, bzimage, initrd, str(manifest["kernel"]["version"]))
    except FileNotFoundError as error:
        if error.filename != path:
            raise HostUnfit(
                f"the guest image in {directory} is incomplete: it lacks {error.filename}",
                remedy=_REMEDY,
            ) from error
        raise HostUnfit(f"no guest image is installed in {directory}", remedy=_REMEDY) from error
    except OSError as error:
        raise HostUnfit(
            f"cannot read the guest image in {directory}: {error.strerror}", remedy=_REMEDY
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise HostUnfit(
            f"cannot read the guest image in {directory}: its manifest.json is damaged",
            remedy=_REMEDY,
        ) from error


def _file(directory: str, part: dict[str, object]) -> str:
    path = os.path.join(directory, os.path.basename(str(part["file"])))
    if os.stat(path).st_size != part["bytes"]:
        raise HostUnfit(
            f"the guest image in {directory} is damaged: {path} has not the size that its "
            "manifest states",
            remedy=_REMEDY,
        )
    return path
