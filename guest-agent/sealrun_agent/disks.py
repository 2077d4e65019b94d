"""The VM's virtio-blk disks, found by the serials that the host's driver gives them.

Their order and names mean nothing. One that was plugged in just now may take a moment to appear.
"""

import os
import time
from collections.abc import Callable
from typing import Final

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import StartError

SCRATCH: Final = "scratch"
"""The serial of the one that is the guest's own."""
BLOCKS: Final = "/sys/block"
SECONDS: Final = 30.0  # for one to appear, under emulation on a loaded machine
_POLL_SECONDS: Final = 0.02


def find(serial: str, directory: str = BLOCKS) -> str:
    """The name of the disk; empty where the VM has none."""
    for name in sorted(os.listdir(directory)):
        try:
            with open(f"{directory}/{name}/serial", encoding="ascii", errors="replace") as stream:
                if stream.read().strip("\0\n ") == serial:
                    return name
        except OSError:
            continue  # no virtio-blk device
    return ""


def number(
    serial: str,
    load_drivers: Callable[[], None] = lambda: None,
    *,
    directory: str = BLOCKS,
    seconds: float = SECONDS,
) -> tuple[int, int]:
    """Major and minor of the disk, which is awaited. load_drivers: of devices that came after the boot.
    Raises StartError(RUNTIME_FAILED)."""
    deadline = time.monotonic() + seconds
    while not (name := find(serial, directory)):
        if time.monotonic() > deadline:
            raise StartError(
                ErrorCode.RUNTIME_FAILED,
                f"the VM has no disk {serial!a:.40}: the host plugged none in",
            )
        load_drivers()
        time.sleep(_POLL_SECONDS)
    with open(f"{directory}/{name}/dev", encoding="ascii") as stream:
        major, _, minor = stream.read().strip().partition(":")
    return int(major), int(minor)
