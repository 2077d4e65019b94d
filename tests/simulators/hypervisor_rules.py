"""What Cloud Hypervisor makes of what it is given, beyond its OpenAPI description."""

import fcntl
import os
import socket
import struct
import sys
from typing import Any, NoReturn

from sealrun_protocol import tpm2
from simulators.simulated_tpm import Tpm

DEVICES = "Error from device manager"
_TUNGETIFF = 0x800454D2  # linux/if_tun.h
_SIOCSIFMTU = 0x8922
_PMEM_STEP = 2 << 20
_REQUEST = struct.Struct("16si20x")


_PANIC = """
thread 'vmm' (4711) panicked at vmm/src/vm.rs:1459:47:
called `Result::unwrap()` on an `Err` value: VmCreate(Invalid argument (os error 22)

Stack backtrace:
   0: <unknown>
note: Some details are omitted, run with `RUST_BACKTRACE=full` for a verbose backtrace.
cloud-hypervisor:   0.353456s: <main> ERROR:cloud-hypervisor/src/lib.rs:24 -- Fatal error: ThreadJoin(Any { .. })
Error: Cloud Hypervisor exited with the following error:
  Failed to join on VMM thread: Any { .. }
"""


class Refusal(Exception):
    """status, then the chain of causes below "Error from API"."""

    def __init__(self, status: int, *causes: str) -> None:
        super().__init__(*causes)
        self.status, self.causes = status, list(causes)


def panic() -> NoReturn:
    """What is left of a program whose KVM makes no VM with SEV-SNP: its words, and an answer. Raises Refusal."""
    sys.stderr.write(_PANIC)
    sys.stderr.flush()
    raise Refusal(500, "API response receive error", "receiving on a closed channel")


def resized_cpus(config: dict[str, int], wanted: int) -> int:
    """The CPUs that the VM has then. Raises Refusal."""
    if wanted > config["max_vcpus"]:
        raise Refusal(500, "CPU manager error", "Requested vCPUs exceed maximum")
    return wanted


def resized_memory(config: dict[str, Any], wanted: int, requested: int) -> int:
    """The bytes of virtio-mem that the guest is to have then. Raises Refusal."""

    def refuse(cause: str) -> NoReturn:
        raise Refusal(500, "Memory manager error", cause)

    added = wanted - config["size"]
    if config.get("hotplug_method") != "VirtioMem":
        if added > 0:
            refuse("Insufficient hotplug RAM")
        return 0
    if added < 0:
        refuse("Resizing below the boot size")
    if added == requested:
        refuse("Failed to update virtio configuration: new size and requested_size are identical")
    if added > config["hotplug_size"] or added % (2 << 20):
        refuse("Failed to update virtio configuration: too large, or not aligned")
    return added


def take_tap(tap: int, config: dict[str, Any]) -> None:
    """Open a network device. An MTU is set by the tap's name, in the network namespace of the VMM, where
    a tap of another one is not found. Raises Refusal."""
    name = bytearray(_REQUEST.size)
    try:
        fcntl.ioctl(tap, _TUNGETIFF, name)
        if "mtu" in config:
            with socket.socket(socket.AF_UNIX) as any_socket:
                request = _REQUEST.pack(bytes(name[:16]), config["mtu"])
                fcntl.ioctl(any_socket, _SIOCSIFMTU, request)
    except OSError as error:
        causes = ("Cannot create virtio-net device", "Using existing tap", str(error))
        raise Refusal(500, DEVICES, *causes) from error


def open_disk(config: dict[str, Any]) -> None:
    """Open a disk as it would be. Raises Refusal."""
    try:
        os.close(os.open(config["path"], os.O_RDONLY if config.get("readonly") else os.O_RDWR))
    except OSError as error:
        cause = f"{error.strerror} (os error {error.errno})"
        raise Refusal(500, DEVICES, "Cannot open disk path", cause) from error


def open_pmem(config: dict[str, Any]) -> dict[str, Any]:
    """Open persistent memory as it would be; its nodes in the tree of devices. The address says the number
    of a block device, which the simulated guest asks for. Raises Refusal."""
    try:
        descriptor = os.open(config["file"], os.O_RDWR)
    except OSError as error:
        cause = f"{error.strerror} (os error {error.errno})"
        raise Refusal(500, DEVICES, "Cannot open persistent memory file", cause) from error
    about = os.fstat(descriptor)
    size = config.get("size", os.lseek(descriptor, 0, os.SEEK_END))
    os.close(descriptor)
    if size % _PMEM_STEP:
        raise Refusal(500, DEVICES, "Trying to use a size that is not multiple of 2MiB")
    base = (about.st_rdev or about.st_ino) * _PMEM_STEP
    memory = {"MmioAddressRange": {"base": base, "size": size}}
    name, parent = config["id"], parent_of(config["id"])
    return {
        name: {"id": name, "resources": [memory], "parent": parent, "children": []},
        parent: {"id": parent, "resources": [], "children": [name], "pci_bdf": "0000:00:08.0"},
    }


def parent_of(name: str) -> str:
    """The PCI device of a device."""
    return f"_virtio-pci-{name}"


def number_at(address: int) -> tuple[int, int]:
    """Of the block device that `open_pmem` laid there."""
    number = address // _PMEM_STEP
    return os.major(number), os.minor(number)


def connect_tpm(path: str) -> Tpm:
    """The TPM whose emulator listens on the socket. Raises Refusal."""
    try:
        return Tpm(path)
    except (OSError, tpm2.TpmError) as error:
        causes = (DEVICES, "Cannot create tmp device", "Failed to create TPM Device", str(error))
        raise Refusal(500, *causes) from error


def validate(config: dict[str, Any]) -> None:
    """The rules of a VmConfig that are not in the OpenAPI description. Raises Refusal."""

    def refuse(cause: str, status: int = 400) -> NoReturn:
        raise Refusal(status, "Failed to validate config", cause)

    if not config.get("payload", {}).get("kernel"):
        refuse("Payload configuration is not bootable")
    cpus = config.get("cpus", {"boot_vcpus": 1, "max_vcpus": 1})
    if config.get("balloon", {"size": 0})["size"] >= config["memory"]["size"]:
        refuse("Balloon too big")
    if cpus["max_vcpus"] < cpus["boot_vcpus"]:
        refuse("Max CPUs lower than boot CPUs")
    if config.get("fs") and not config["memory"].get("shared"):
        refuse("Using vhost-user requires using shared memory or huge pages")
    if config.get("vsock", {"cid": 3})["cid"] in (0, 1, 2, 2**32 - 1):
        refuse("Special CIDs are not allowed")
    devices = [device for name in ("disks", "pmem", "net", "fs") for device in config.get(name, [])]
    names = [device.get("id", "") for device in [*devices, config.get("vsock", {})]]
    for name in filter(None, names):
        if name.startswith("_"):
            refuse(f"Identifier {name} is invalid")
        if names.count(name) > 1:
            refuse(f"Identifier {name} is not unique", 409)
