"""The floor under a cold start: the same kernel on the same virtual machine with almost nothing in it.

`seconds(spec)` boots `spec` with an initrd of one static busybox whose init says a word on the
console: what no runtime that boots this kernel on this machine can be faster than. Needs Debian's
busybox-static.
"""

import dataclasses
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(_ROOT / name) for name in ("vmm", "guest-agent", "guest-agent/image")]

from sealrun_guest_image import cpio  # noqa: E402
from sealrun_guest_image.tree import Device, File, Link, Tree  # noqa: E402
from sealrun_vmm.qemu.arguments import arguments  # noqa: E402
from sealrun_vmm.spec import VmSpec  # noqa: E402

_WORD = b"floor-reached"
_INIT = f"#!/bin/sh\necho {_WORD.decode()}\nexec poweroff -f\n".encode()
_LIMIT_SECONDS = 120


class NoFloor(Exception):
    """The floor could not be measured; the text says why."""


def initrd() -> bytes:
    """The smallest system that says a word: busybox, and an init of three lines."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin:/sbin:/usr/sbin")
    if busybox is None:
        raise NoFloor("busybox is not installed: install Debian's package busybox-static")
    tree = Tree()
    tree.add("bin/busybox", File(Path(busybox).read_bytes(), 0o755))
    for name in ("sh", "poweroff"):
        tree.add(f"bin/{name}", Link("busybox"))
    tree.add("dev/console", Device(5, 1, 0o600))
    tree.add("init", File(_INIT, 0o755))
    return cpio.archive(tree)


def seconds(spec: VmSpec, binary: str = "qemu-system-x86_64") -> float:
    """From the start of QEMU to the first word of the guest's init. Raises NoFloor."""
    with tempfile.TemporaryDirectory() as directory, socket.socket(socket.AF_UNIX) as shim:
        path = Path(directory, "initrd")
        path.write_bytes(initrd())
        shim.bind(f"{directory}/{spec.channel}")  # QEMU connects, and nobody speaks
        shim.listen(1)
        command = arguments(binary, dataclasses.replace(spec, initrd=str(path)))
        started = time.monotonic()
        with subprocess.Popen(
            ["timeout", "--kill-after=1", str(_LIMIT_SECONDS), *command],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if _WORD in line:
                    elapsed = time.monotonic() - started
                    process.communicate(timeout=_LIMIT_SECONDS)
                    return elapsed
            _, errors = process.communicate(timeout=_LIMIT_SECONDS)
    raise NoFloor(f"the guest said nothing: {errors.decode(errors='replace').strip()[-300:]}")
