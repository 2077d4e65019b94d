"""The block devices of the host that config.json gives a container (linux.devices of type b). In the VM each
is a virtio-blk disk, or a virtio-pmem device (shim/disks.py), and the container has a node of that one.

A device is known by its number alone: the path that an engine was given on the host does not stand in
config.json. Whether the container may write to it is said by the rules of its device cgroup, and by the
device itself.

What is persistent memory is said by the kernel: where a file system can have direct access (DAX) to what a
device holds. That is a namespace in fsdax or raw mode, and a partition or a logical volume of one; a
namespace in sector mode (/dev/pmem0s) is none.

In a privileged container an engine lists every device of the host under its own name. Those are left out;
a device under another name was asked for.
"""

import os
from typing import TYPE_CHECKING, Final

import msgspec
from sealrun_protocol import disk_names, limits

from sealrun_runtime.errors import InvalidRequest, cause
from sealrun_runtime.oci_config import DeviceRule, Linux

if TYPE_CHECKING:
    from sealrun_protocol.init_data import Host

    from sealrun_runtime.bundle import ContainerSpec

SYSTEM: Final = "/sys/dev/block"
ALL: Final = "/sys/block"
SECTOR: Final = 512  # the unit of every size there
_ANY: Final = (None, -1)


class BlockDevice(msgspec.Struct, frozen=True, kw_only=True):
    """index: in linux.devices. path: in the container. pmem_bytes: how large it is, where it is persistent
    memory; else 0."""

    index: int
    path: str
    major: int
    minor: int
    readonly: bool
    pmem_bytes: int = 0

    @property
    def serial(self) -> str:
        """The disk's in the guest."""
        return disk_names.block(self.major, self.minor)


def named(linux: Linux) -> tuple[BlockDevice, ...]:
    """Those of a config.json, as it alone says."""
    rules = (linux.resources.devices if linux.resources else None) or ()
    return tuple(
        BlockDevice(
            index=index,
            path=os.path.normpath(device.path),
            major=device.major,
            minor=device.minor,
            readonly=not _allowed(rules, device.major, device.minor, "w"),
        )
        for index, device in enumerate(linux.devices or ())
        if device.type == "b"
    )


def allows_everything(linux: Linux) -> bool:
    """Whether the container is privileged, as an engine calls it."""
    rules = (linux.resources.devices if linux.resources else None) or ()
    return any(
        rule.allow
        and rule.type in (None, "a")
        and rule.major is None
        and rule.minor is None
        and set(rule.access) == set("rwm")
        for rule in rules
    )


def settled(container: "ContainerSpec", host: "Host | None") -> "ContainerSpec":
    """The container with those that it gets. host: as of `check`. Raises InvalidRequest."""
    devices = found(container)
    check(devices, host)
    return msgspec.structs.replace(container, block_devices=devices)


def found(container: "ContainerSpec", system: str = SYSTEM) -> tuple[BlockDevice, ...]:
    """Those that the container gets, as this host has them. Raises InvalidRequest."""
    kept = []
    for device in container.block_devices:
        where = f"$.linux.devices[{device.index}]"
        place = f"{system}/{device.major}:{device.minor}"
        number = f"{device.major}:{device.minor}"
        try:
            name = _attribute(place, "uevent").partition("DEVNAME=")[2].partition("\n")[0]
            readonly, sectors = _attribute(place, "ro") == "1", int(_attribute(place, "size"))
        except OSError as error:
            if container.privileged:
                continue
            raise InvalidRequest(
                f"{where}: cannot find the block device {number} of this host: {cause(error)}"
            ) from error
        if container.privileged and device.path == f"/dev/{name}":
            continue
        if sectors == 0:
            raise InvalidRequest(f"{where}: the block device {number} ({name}) holds no medium")
        if container.uid_mappings:
            raise InvalidRequest(
                f"{where}: a container with a user namespace cannot have a block device: nobody can make "
                "its node there"
            )
        pmem_bytes = sectors * SECTOR if _has_direct_access(place) else 0
        kept.append(
            msgspec.structs.replace(
                device, readonly=device.readonly or readonly, pmem_bytes=pmem_bytes
            )
        )
    return tuple(kept)


def pmem_bytes(directory: str = ALL) -> int:
    """How much persistent memory this host has as block devices, or more: what is a device on a device
    counts twice."""
    try:
        names = os.listdir(directory)
    except OSError:  # nobody has mounted it: then no device is found either
        return 0
    total = 0
    for name in names:
        try:
            if _has_direct_access(f"{directory}/{name}"):
                total += int(_attribute(f"{directory}/{name}", "size")) * SECTOR
        except OSError:
            continue  # it has just gone
    return total


def check(devices: tuple[BlockDevice, ...], host: "Host | None") -> None:
    """host: what the tenant allows; None where no tenant says anything. The guest decides; what it
    would refuse is refused before a VM boots. Raises InvalidRequest."""
    if len(devices) > limits.DISKS:
        raise InvalidRequest(f"$.linux.devices: more than {limits.DISKS} are block devices")
    for device in devices:
        if host is not None and not host.may_give_disk_at(device.path):
            raise InvalidRequest(
                f"$.linux.devices[{device.index}]: the init-data does not allow a block device of the host "
                f"at {device.path}",
                remedy="name the place in [host] insecure_block_devices of the init-data, or do without "
                "the device",
            )


def _allowed(rules: tuple[DeviceRule, ...], major: int, minor: int, access: str) -> bool:
    """What the cgroup's rules say; the last one that fits counts. Without rules everything is allowed."""
    allowed = not rules
    for rule in rules:
        fits = rule.type in (None, "a", "b") and access in rule.access
        if fits and rule.major in (*_ANY, major) and rule.minor in (*_ANY, minor):
            allowed = rule.allow
    return allowed


def _has_direct_access(place: str) -> bool:
    whole = f"{place}/.." if os.path.exists(f"{place}/partition") else place
    try:
        return _attribute(whole, "queue/dax") == "1"
    except FileNotFoundError:
        return False


def _attribute(place: str, name: str) -> str:
    """Raises OSError."""
    with open(f"{place}/{name}", encoding="ascii", errors="replace") as file:
        return file.read().strip()
