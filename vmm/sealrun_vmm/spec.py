"""`VmSpec`: the complete, immutable description of one micro-VM.

`Config + ContainerSpec -> VmSpec` is one pure function in the runtime; a driver renders a VmSpec to
argv or JSON, measurement renders the same value to a digest. What is booted and what is measured
cannot drift.
"""

from dataclasses import dataclass
from enum import StrEnum


class Accelerator(StrEnum):
    """Who executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Tee(StrEnum):
    """What protects the VM's memory and CPU state from the host."""

    NONE = "none"
    SNP = "snp"
    TDX = "tdx"
    TPM = "tpm"


@dataclass(frozen=True, slots=True, kw_only=True)
class Disk:
    """A block device of the host: a virtio-blk disk, or where the device is persistent memory and
    `pmem_bytes` says how large it is, a virtio-pmem device, which the guest maps instead of reading it.

    serial: of at most 20 characters. It names the device's node in the directory that the VMM inherited, and
    a virtio-blk disk in the guest. pmem_bytes: a multiple of PMEM_STEP; 0: a disk. Never readonly then."""

    serial: str
    readonly: bool
    pmem_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Nic:
    """A virtio-net device on the tap device whose open file the driver passes to the VMM."""

    tap_fd: int
    mac: str
    mtu: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A virtio-fs device: `socket` is where virtiofsd listens, `tag` its name in the guest."""

    socket: str
    tag: str


PMEM_STEP = 2 << 20
"""Bytes. The guest maps persistent memory by pages of this size; Cloud Hypervisor takes no other sizes."""
NO_SCRATCH = -1
NO_NODES = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class VmSpec:
    """One VM. All paths are absolute, but for `channel`, `console` and sockets, which are names in
    the sandbox's state directory (the VMM's working directory): a unix socket's path is short.

    cpus: virtual CPUs, >= 1. memory_mib: RAM in MiB.
    max_cpus, max_memory_mib: what it can become while it runs (growth.py); 0, or no more than it has:
    it cannot grow.
    channel: the unix socket on which the shim's ZeroMQ ROUTER listens before the VM starts.
    console: file that receives the serial console, kept for post-mortem.
    scratch: the descriptor of an open, writable file, without a name perhaps, that is the disk which the
        guest encrypts and loses with its end. The VMM inherits it. No TEE measures it.
    nodes: the descriptor of an open directory in which the nodes of disks lie, those that come later
        too. The VMM inherits it.
    pmem_mib: of address space for persistent memory, that of disks which come later too; 0: it gets none.
    later_devices: how many disks and network devices may be plugged in while the VM runs, where that takes
        preparation.
    landlock: a VMM that can confine itself to its own files by Landlock must.
    firmware: absolute path of the firmware that takes kernel, initrd and cmdline from the VMM and
        measures them: OVMF, or for Cloud Hypervisor an IGVM file. Empty: the VMM starts the kernel.
    tpm: the socket of the TPM emulator's control channel; empty: no TPM.
    cpu_model: the CPU that the guest sees, where the launch measurement covers it; else empty.
    host_data: 32 (SNP) or 48 (TDX) bytes bound into the launch; the digest of the init-data.
    quote_service: socket of the service that signs quotes for TDX, absolute; empty: none.
    """

    name: str
    accelerator: Accelerator
    cpus: int
    memory_mib: int
    kernel: str
    initrd: str
    cmdline: str
    max_cpus: int = 0
    max_memory_mib: int = 0
    channel: str = "channel.sock"
    console: str = "console.log"
    disks: tuple[Disk, ...] = ()
    nodes: int = NO_NODES
    scratch: int = NO_SCRATCH
    nics: tuple[Nic, ...] = ()
    pmem_mib: int = 0
    later_devices: int = 0
    shares: tuple[Share, ...] = ()
    landlock: bool = True
    tee: Tee = Tee.NONE
    firmware: str = ""
    tpm: str = ""
    cpu_model: str = ""
    host_data: bytes = b""
    quote_service: str = ""

    def node(self, disk: Disk) -> str:
        """The path by which the VMM opens a disk."""
        return f"/proc/self/fd/{self.nodes}/{disk.serial}"

    @property
    def inherited(self) -> tuple[int, ...]:
        """Descriptors of files that the VMM opens by their number."""
        return tuple(one for one in (self.scratch, self.nodes) if one >= 0)
