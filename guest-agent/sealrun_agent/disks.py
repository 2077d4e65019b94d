"""The VM's disks, found by their names: of a virtio-blk disk the serial that the host's driver gives it, of
a virtio-pmem device, which has none, the address in the VM's memory where it begins.

Their order and names mean nothing. One that was plugged in just now may take a moment to appear.
"""

import os
import time
from collections.abc import Callable
from typing import Final

from sealrun_protocol import disk_names
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import StartError

BLOCKS: Final = "/sys/block"
SECONDS: Final = 30.0  # for one to appear, under emulation on a loaded machine
_POLL_SECONDS: Final = 0.02


def find(disk: str, directory: str = BLOCKS) -> str:
    """What the kernel calls the disk; empty where the VM has none."""
    for name in sorted(os.listdir(directory)):
        try:
            if _name(f"{directory}/{name}") == disk:
                return name
        except (OSError, ValueError):
            continue  # neither kind of device
    return ""


def _name(place: str) -> str:
    """Raises OSError, ValueError."""
    if os.path.basename(place).startswith("pmem"):
        # Of the region that its namespace lies in, whatever the namespace holds.
        return disk_names.pmem(int(_read(f"{place}/device/../resource"), 16))
    return _read(f"{place}/serial")


def _read(path: str) -> str:
    """Raises OSError."""
    with open(path, encoding="ascii", errors="replace") as stream:
        return stream.read().strip("\0\n ")


def number(
    disk: str,
    load_drivers: Callable[[], None] = lambda: None,
    *,
    directory: str = BLOCKS,
    seconds: float = SECONDS,
) -> tuple[int, int]:
    """Major and minor of the disk, which is awaited. load_drivers: of devices that came after the boot.
    Raises StartError(RUNTIME_FAILED)."""
    deadline = time.monotonic() + seconds
    while not (name := find(disk, directory)):
        if time.monotonic() > deadline:
            raise StartError(
                ErrorCode.RUNTIME_FAILED,
                f"the VM has no disk {disk!a:.40}: the host plugged none in",
            )
        load_drivers()
        time.sleep(_POLL_SECONDS)
    major, _, minor = _read(f"{directory}/{name}/dev").partition(":")
    return int(major), int(minor)
