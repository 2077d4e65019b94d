"""The names by which host and guest mean the same disk of the VM. No I/O.

A virtio-blk disk is called by its serial, of at most 20 characters. A virtio-pmem device has none, and is
called by the address in the VM's memory where it begins.
"""

from typing import Final

SCRATCH: Final = "scratch"
"""The one that is the guest's own."""
CONTAINER_S: Final = r"block-[0-9]{1,4}-[0-9]{1,7}|pmem-[0-9a-f]{1,16}"
"""What a container's can be called."""


def block(major: int, minor: int) -> str:
    """A block device of the host, of this number there (12 and 20 bits)."""
    return f"block-{major}-{minor}"


def pmem(address: int) -> str:
    """One that is persistent memory and begins at this address of the VM."""
    return f"pmem-{address:x}"
