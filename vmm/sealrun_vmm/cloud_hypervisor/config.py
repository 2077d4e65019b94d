"""VmSpec to what Cloud Hypervisor is given: pure, and compared with golden files.

Every choice of devices and protections stands here. Names without a directory lie in the sandbox's
state directory, the VMM's working directory; they are written with one, "./", because Landlock
rules are derived from what stands before the last slash.
"""

import os
from typing import Any, Final

from sealrun_protocol import disk_names
from sealrun_protocol.messages import CHANNEL_VSOCK_PORT

from sealrun_vmm import growth
from sealrun_vmm.cloud_hypervisor import confidential
from sealrun_vmm.errors import SpecRefused
from sealrun_vmm.spec import (
    NO_NODES,
    NO_SCRATCH,
    Accelerator,
    Disk,
    Nic,
    Share,
    Tee,
    VmSpec,
)

VSOCK: Final = "vsock.sock"
GUEST_SOCKET: Final = f"{VSOCK}_{CHANNEL_VSOCK_PORT}"  # where the VMM connects the agent to
GUEST_CID: Final = 3  # the first one that is not reserved; it names the guest to itself only

_MIB: Final = 1 << 20
# It lays persistent memory at the end of the address space, and Linux maps, with KASLR, 10 TiB beyond the
# end of its memory and no more.
_PMEM_PHYS_BITS: Final = 43


def command(binary: str, api: int, events: int) -> list[str]:
    """The VMM's command line. api, events: the descriptors of its listening socket and its pipe."""
    words = [binary, "--api-socket", f"fd={api}", "--event-monitor", f"fd={events}"]
    # Not --landlock: that is refused unless the whole VM is described on the command line.
    return [*words, "--seccomp", "true"]


def vm_config(spec: VmSpec) -> dict[str, Any]:
    """The VmConfig of vm.create, without network devices: their open taps come by vm.add-net.

    Raises SpecRefused for what this driver cannot do."""
    confidential.check(spec)
    if spec.accelerator is not Accelerator.KVM:
        raise SpecRefused(
            f"cannot run a VM with {spec.accelerator} in Cloud Hypervisor, which knows only kvm",
            remedy="set vm.driver to qemu in sealrun.toml",
        )
    config: dict[str, Any] = {
        "cpus": {
            "boot_vcpus": spec.cpus,
            "max_vcpus": growth.largest(spec).cpus,
            "nested": False,
            **({"max_phys_bits": _PMEM_PHYS_BITS} if spec.pmem_mib else {}),
        },
        "memory": _memory(spec),
        "payload": confidential.payload(spec),
        "rng": {"src": "/dev/urandom"},
        "console": {"mode": "Off"},
        # To standard output, which the driver copies to the console's file and bounds. A file of the
        # VMM's own would be emptied when a guest that panicked is booted anew.
        "serial": {"mode": "Tty"},
        "vsock": {"id": "channel", "cid": GUEST_CID, "socket": f"./{VSOCK}"},
        # From vm.create on, for the thread that asks for it and all that it starts: those that run
        # the guest and its devices. The one that reads our requests stays as it is.
        "landlock_enable": spec.landlock,
        **confidential.members(spec),
    }
    if spec.tee is Tee.NONE:
        # It never takes memory; by it the guest gives back what it does not use.
        config["balloon"] = {"id": "balloon", "size": 0, "free_page_reporting": True}
    disks = [disk_config(spec, disk) for disk in spec.disks if not disk.pmem_bytes]
    if spec.scratch != NO_SCRATCH:
        disks.append(_disk(f"/proc/self/fd/{spec.scratch}", disk_names.SCRATCH, readonly=False))
    if disks:
        config["disks"] = disks
    if pmem := [pmem_config(spec, disk) for disk in spec.disks if disk.pmem_bytes]:
        config["pmem"] = pmem
    # For what does not stand here, of which the VMM knows itself: disks that come later, and, before v53,
    # the device that makes SNP VMs.
    rules = [f"/proc/self/fd/{spec.nodes}"] if spec.nodes != NO_NODES else []
    rules += ["/dev/sev"] if spec.tee is Tee.SNP else []
    if rules:
        config["landlock_rules"] = [{"path": path, "access": "rw"} for path in rules]
    if spec.shares:
        config["fs"] = [_share(index, share) for index, share in enumerate(spec.shares)]
    return config


def _memory(spec: VmSpec) -> dict[str, Any]:
    # virtiofsd maps the guest's memory
    memory: dict[str, Any] = {"size": spec.memory_mib * _MIB, "shared": bool(spec.shares)}
    if room := growth.room_mib(spec):
        memory |= {"hotplug_method": "VirtioMem", "hotplug_size": room * _MIB}
    return memory


def net_config(name: str, nic: Nic) -> dict[str, Any]:
    """The NetConfig of vm.add-net for a tap whose descriptor goes with the call.

    Without its MTU, which the VMM would set by the tap's name in its own network namespace; the guest
    sets that of the interface itself."""
    return {"id": name, "mac": nic.mac}


def disk_config(spec: VmSpec, disk: Disk) -> dict[str, Any]:
    """The DiskConfig of a block device of the host, which is called as its serial says."""
    return _disk(spec.node(disk), disk.serial, readonly=disk.readonly)


def pmem_config(spec: VmSpec, disk: Disk) -> dict[str, Any]:
    """The PmemConfig of a block device of the host that is persistent memory."""
    return {"id": disk.serial, "file": spec.node(disk), "size": disk.pmem_bytes}


def _disk(path: str, serial: str, *, readonly: bool) -> dict[str, Any]:
    return {
        "id": serial,
        "path": path,
        "readonly": readonly,
        "serial": serial,
        # Stated, because a format that is guessed is one that the guest can write.
        "image_type": "Raw",
    }


def _share(index: int, share: Share) -> dict[str, Any]:
    return {
        "id": f"share{index}",
        "tag": share.tag,
        "socket": share.socket if os.path.isabs(share.socket) else f"./{share.socket}",
        "num_queues": 1,
        "queue_size": 1024,
    }
