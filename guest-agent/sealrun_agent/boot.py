"""Turns what the kernel leaves (an initramfs and a console) into a machine for the agent and crun.

`Preparation` mounts file systems and brings the network's loopback up at once, then loads kernel
modules and opens the channel to the host on a thread of its own: the system calls release Python's
lock, so the agent's imports run meanwhile. Every failure is a BootError.
"""

import ctypes
import os
import threading
import time
from collections.abc import Collection
from types import TracebackType
from typing import Final, NamedTuple, Self

from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import BootError

CHANNEL_PORT_NAME: Final = "sealrun.agent"  # as in messages.py, which takes long to import
CHANNEL_VSOCK_PORT: Final = 1024
MODULES: Final = "/usr/lib/sealrun/modules"
PORT_CLASS: Final = "/sys/class/virtio-ports"
PORT_SECONDS: Final = 20
VIRTIO_DEVICES: Final = "/sys/bus/virtio/devices"
VSOCK_DEVICE: Final = "virtio-19"
# Balloon, memory that is added, persistent memory: no VM whose memory is encrypted has them, since their pages
# are the host's to take or to give. A host that shows one finds no driver.
HOST_MEMORY: Final = frozenset(("virtio-5", "virtio-24", "virtio-27"))
HOST_CID: Final = 2  # linux/vm_sockets.h

# linux/mount.h
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_REMOUNT = 32
_BIND, _MOVE, _REC, _PRIVATE = 4096, 8192, 16384, 1 << 18
_KERNEL_ONLY = _NOSUID | _NODEV | _NOEXEC

_SYS_INIT_MODULE = 175  # x86-64
_EPERM, _ENODEV, _EKEYREJECTED = 1, 19, 129
_SIGNED: Final = b"~Module signature appended~\n"  # linux/module_signature.h
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 1

# Kept from the containers' files: the initramfs, the agent while it pulls, the kernel's own. Without
# it a full file system is a VM that dies of its memory instead of an error.
_RESERVE_KIB: Final = 192 << 10

_libc = ctypes.CDLL(None, use_errno=True)
_loading = threading.Lock()
_loaded: set[str] = set()


class Mount(NamedTuple):
    """One file system to mount."""

    kind: str
    target: str
    flags: int
    options: str


def mounts(memory_kib: int) -> list[Mount]:
    """What is mounted, in order, on a machine with `memory_kib` of RAM.

    /run holds the containers: it gets what is not reserved, in a very small VM a quarter. Images
    come as many small files, so it has an inode for every 4 KiB, twice the kernel's default."""
    size = max(memory_kib - _RESERVE_KIB, memory_kib // 4)
    run = f"mode=0755,size={size}k,nr_inodes={memory_kib // 4}"
    return [
        Mount("proc", "/proc", _KERNEL_ONLY, ""),
        Mount("sysfs", "/sys", _KERNEL_ONLY, ""),
        Mount("securityfs", "/sys/kernel/security", _KERNEL_ONLY, ""),
        Mount("devtmpfs", "/dev", _NOSUID | _NOEXEC, "mode=0755"),
        Mount("devpts", "/dev/pts", _NOSUID | _NOEXEC, "gid=5,mode=0620,ptmxmode=0666"),
        Mount("tmpfs", "/dev/shm", _NOSUID | _NODEV, "mode=1777,size=25%"),
        Mount("tmpfs", "/run", 0, run),
        Mount("tmpfs", "/tmp", _NOSUID | _NODEV, "mode=1777,size=25%"),
        Mount("cgroup2", "/sys/fs/cgroup", _KERNEL_ONLY, ""),
    ]


class Preparation:
    """The set-up of the machine, under way on a thread; leaving the `with` waits for its end."""

    def __init__(self) -> None:
        move_root()
        mount_all()
        loopback_up()
        self._port: int | None = None
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="boot")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.join()

    def port(self) -> int:
        """The open channel to the host, once all modules are loaded. Raises BootError."""
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if self._port is None:  # the thread's last words are on the console already
            raise _failed("cannot prepare the machine: its thread ended early")
        return self._port

    def _run(self) -> None:
        try:
            load_modules({"channel"})
            devices, tees = device_groups(), tee_groups()
            load_modules({"container", *drivers(devices, tees)})
            if tees:  # where their reports are asked for
                _mount("configfs", "/sys/kernel/config", "configfs", _KERNEL_ONLY, "")
            self._port = open_channel(devices)
        except (BootError, OSError, ValueError) as error:  # handed to the thread that waits
            self._failure = error


def move_root() -> None:
    """Make the root a mount that pivot_root accepts; the initramfs itself is none.

    The kernel refuses to move its first root (EINVAL), so a bind of it is laid over it."""
    _mount("none", "/", "", _REC | _PRIVATE, "")
    os.makedirs("/newroot", exist_ok=True)
    _mount("/", "/newroot", "", _BIND | _REC, "")
    os.chdir("/newroot")
    _mount(".", "/", "", _MOVE, "")
    os.chroot(".")
    os.chdir("/")


def mount_all() -> None:
    """Mount everything that `mounts` lists, and the links that programs expect in /dev."""
    for mount in mounts(_memory_kib()):
        os.makedirs(mount.target, exist_ok=True)
        _mount(mount.kind, mount.target, mount.kind, mount.flags, mount.options)
    for name, target in (("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")):
        os.symlink(f"/proc/self/fd{target}", f"/dev/{name}")


def remount() -> None:
    """Let the file systems in memory grow with the memory that was added. Raises BootError."""
    for mount in mounts(_memory_kib()):
        if mount.kind == "tmpfs":
            _mount(mount.kind, mount.target, mount.kind, mount.flags | _REMOUNT, mount.options)


def load_modules(groups: Collection[str]) -> None:
    """Load the modules of `groups` in the order that the build of the image found, once."""
    with _loading:
        for line in _lines(f"{MODULES}/order"):
            group, name = line.split()
            if group in groups and name not in _loaded:
                _load_module(name)
                _loaded.add(name)


def load_drivers() -> None:
    """Load the modules of devices that came after the boot."""
    load_modules(drivers(device_groups(), tee_groups()))


def drivers(devices: Collection[str], tees: Collection[str]) -> set[str]:
    """The groups of modules for a VM with these devices and this TEE."""
    return {*devices, *tees} - (HOST_MEMORY if tees else frozenset())


def device_groups(directory: str = VIRTIO_DEVICES) -> set[str]:
    """The groups of modules that this VM's virtio devices need, by their device ids."""
    kinds = [_lines(f"{directory}/{device}/device")[0] for device in os.listdir(directory)]
    return {f"virtio-{int(kind, 16)}" for kind in kinds}


def tee_groups(root: str = "") -> set[str]:
    """The groups of modules for the TEE that the CPU says this VM has. `root` is put before paths."""
    found = set()
    if os.path.exists(f"{root}/sys/devices/platform/sev-guest"):
        found.add("tee-snp")
    flags = next((line for line in _lines(f"{root}/proc/cpuinfo") if line.startswith("flags")), "")
    if "tdx_guest" in flags.split():
        found.add("tee-tdx")
    return found


def _load_module(name: str) -> None:
    """Modules are measured together with this file, so the kernel's builder need not vouch for them: to
    check that takes as much work as all the rest of the boot's second half. A kernel that insists on
    it (Secure Boot) is given the signature."""
    with open(f"{MODULES}/{name}.ko", "rb") as stream:
        module = stream.read()
    error = _init_module(without_signature(module))
    if error in (_EPERM, _EKEYREJECTED):
        error = _init_module(module)
    if error == _ENODEV:
        return  # the faster of two ciphers, on a CPU that has no instructions for it
    if error:
        raise _failed(f"cannot load the module {name}: {os.strerror(error)}")


def _init_module(module: bytes) -> int:
    """0, or what errno says."""
    result = _libc.syscall(_SYS_INIT_MODULE, module, ctypes.c_ulong(len(module)), b"")
    return ctypes.get_errno() if result != 0 else 0


def without_signature(module: bytes) -> bytes:
    """The bytes of a kernel module in front of its signature: the signature, 8 bytes about it, its length
    and a mark stand behind them (struct module_signature)."""
    if not module.endswith(_SIGNED):
        return module
    end = len(module) - len(_SIGNED)
    return module[: end - 12 - int.from_bytes(module[end - 4 : end], "big")]


def _lines(path: str) -> list[str]:
    with open(path, encoding="ascii") as stream:
        return stream.read().splitlines()


def open_channel(devices: Collection[str]) -> int:
    """The byte stream to the host, as a blocking descriptor: a vsock connection where the VM has
    such a device, else the virtio-serial port. Raises BootError."""
    return connect_vsock() if VSOCK_DEVICE in devices else open_port()


def connect_vsock(cid: int = HOST_CID, port: int = CHANNEL_VSOCK_PORT) -> int:
    """A connection to the host, which has been listening since before the VM. Raises BootError."""
    import _socket

    endpoint = None
    try:
        endpoint = _socket.socket(_socket.AF_VSOCK, _socket.SOCK_STREAM)
        endpoint.connect((cid, port))
    except OSError as error:
        if endpoint is not None:
            endpoint.close()
        text = f"cannot connect to the host's vsock port {port}: {error.strerror}"
        raise _failed(text) from error
    return endpoint.detach()


def open_port(name: str = CHANNEL_PORT_NAME, seconds: float = PORT_SECONDS) -> int:
    """The virtio-serial port called `name`, open for reading and writing.

    The driver announces ports a moment after it was loaded. Raises BootError after `seconds`."""
    deadline = time.monotonic() + seconds
    while (device := find_port(name)) is None:
        if time.monotonic() > deadline:
            raise _failed(f"cannot find the virtio-serial port {name}: the VMM offers none")
        time.sleep(0.002)
    try:
        return os.open(device, os.O_RDWR)
    except OSError as error:
        raise _failed(f"cannot open the virtio-serial port {name}: {error.strerror}") from error


def find_port(name: str, directory: str = PORT_CLASS) -> str | None:
    """The device of the port called `name`, if the driver has announced it."""
    try:
        ports = os.listdir(directory)
    except FileNotFoundError:
        return None
    for port in ports:
        try:
            with open(f"{directory}/{port}/name", encoding="utf-8") as stream:
                if stream.read().strip() == name:
                    return f"/dev/{port}"
        except FileNotFoundError:
            continue  # a port without a name
    return None


def loopback_up() -> None:
    """Bring `lo` up: programs in the container expect it."""
    import _socket  # the socket module would import enum and selectors on the way to the first byte
    from fcntl import ioctl

    with_flags = b"lo".ljust(16, b"\0") + _IFF_UP.to_bytes(2, "little") + bytes(22)
    endpoint = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    try:
        ioctl(endpoint.fileno(), _SIOCSIFFLAGS, with_flags)
    except OSError as error:
        raise _failed(f"cannot bring the loopback interface up: {error.strerror}") from error
    finally:
        endpoint.close()


def _memory_kib() -> int:
    return os.sysconf("SC_PHYS_PAGES") * (os.sysconf("SC_PAGE_SIZE") // 1024)


def _mount(source: str, target: str, kind: str, flags: int, options: str) -> None:
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()
    )
    _call(result, f"mount {kind or source} on {target}")


def _call(result: int, what: str) -> None:
    if result != 0:
        raise _failed(f"cannot {what}: {os.strerror(ctypes.get_errno())}")


def _failed(text: str) -> BootError:
    return BootError(ErrorCode.BOOT_FAILED, text)
