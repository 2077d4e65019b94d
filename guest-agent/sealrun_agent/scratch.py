"""The sandbox's scratch disk: what the host gives as a sparse file, and what the guest makes of it.

    /dev/vdX        the host's file; it may read it, and change it whenever it likes
    dm-integrity    a tag of 28 bytes beside each sector of 4 KiB
    dm-crypt        AES-256-GCM by a random key that only this kernel has, a new random nonce for each write
    dm-snapshot     over zeros: what was never written reads as zeros, and the kernel's memory has a table of
                    what was, in chunks of 32 KiB
    ext4            without a journal: nothing outlives the VM

So the host sees neither contents nor names, and a sector that it changed, or moved, is an I/O error, never
other bytes. What it can do: see which sectors are written and when, lose them, and put back what an earlier write
left in the same sector.

Nothing is wiped beforehand, so that the host's file stays sparse: a sector that was never written has no
valid tag, and reading it below the snapshot would be an error. ext4 does read such ones: two that make a file
each at the same time, in a block of the inode tables that is new.
"""

import os
import signal
import struct
from typing import Final

from sealrun_protocol import disk_names
from sealrun_protocol.errors import ErrorCode

from sealrun_agent import device_mapper, disks, syscall
from sealrun_agent.device_mapper import SECTOR, Target
from sealrun_agent.errors import PullError
from sealrun_agent.processes import Processes

BLOCK: Final = 4096  # bytes that are encrypted as one
KEY_BYTES: Final = 32

_NONCE, _TAG = 12, 16  # of AES-GCM
_TAG_BYTES: Final = _NONCE + _TAG
_INTEGRITY, _CIPHER, _ZERO, _SCRATCH = (
    "scratch-integrity",
    "scratch-cipher",
    "scratch-zero",
    "scratch",
)
_CHUNK: Final = (
    32 << 10
)  # bytes that are written at once where nothing was: the table has a row for each
_MAGIC: Final = b"integrt\0"
_SUPERBLOCK: Final = struct.Struct("<8sBBHIQ")  # drivers/md/dm-integrity.c: struct superblock
_MKFS: Final = "/usr/sbin/mke2fs"
_FEATURES: Final = (
    "none,extent,filetype,flex_bg,sparse_super2,large_file,huge_file,dir_index,dir_nlink,extra_isize,"
    "ext_attr,ea_inode,uninit_bg,64bit"
)
_EXTENDED: Final = "num_backup_sb=0,nodiscard,lazy_itable_init=1"
_BYTES_PER_INODE: Final = 8192
_MKFS_SECONDS: Final = 60.0


def find(directory: str = disks.BLOCKS) -> str:
    """The node of the disk; empty where the VM has none."""
    name = disks.find(disk_names.SCRATCH, directory)
    return f"/dev/{name}" if name else ""


def mount(disk: str, target: str, processes: Processes) -> None:
    """Make the disk an empty file system at the new directory `target`. Raises
    PullError(SCRATCH_UNUSABLE)."""
    try:
        plain = _open(disk)
        _format(plain, processes)
        os.makedirs(target, 0o700)
        syscall.mount(plain, target, "ext4", 0, "noinit_itable,errors=remount-ro")
        os.rmdir(f"{target}/lost+found")
    except OSError as error:
        cause = error.strerror or str(error)
        raise PullError(
            ErrorCode.SCRATCH_UNUSABLE, f"cannot use the scratch disk: {cause}"
        ) from error


def has_failed() -> bool:
    """Whether the disk that `mount` opened has lost a write: ext4 says so of its own blocks only, and only
    when it looks at them again. Raises OSError."""
    return not device_mapper.status(_SCRATCH)[:1].isdigit()  # else: sectors in use/of how many


def integrity(disk: str, length: int) -> Target:
    """Room for tags (admin-guide/device-mapper/dm-integrity.rst): D, since without a journal a crash
    leaves sectors without their tags, and a crash is the end of this disk."""
    options = f"3 block_size:{BLOCK} journal_sectors:128 fix_padding"
    return Target(length, "integrity", f"{disk} 0 {_TAG_BYTES} D {options}".encode())


def encryption(below: str, length: int, key: bytes) -> Target:
    """Encryption over those tags (admin-guide/device-mapper/dm-crypt.rst)."""
    options = f"2 integrity:{_TAG_BYTES}:aead sector_size:{BLOCK}"
    words = f"capi:gcm(aes)-random {key.hex()} 0 {below} 0 {options}"
    return Target(length, "crypt", words.encode())


def sparse(zero: str, below: str, length: int) -> Target:
    """Zeros where nothing was written (admin-guide/device-mapper/snapshot.rst): N, a table in memory only."""
    return Target(length, "snapshot", f"{zero} {below} N {_CHUNK // SECTOR}".encode())


def usable_sectors(superblock: bytes) -> int:
    """What dm-integrity found room for, from the disk's first bytes. Raises OSError."""
    magic, _, _, _, _, sectors = _SUPERBLOCK.unpack_from(superblock)
    if magic != _MAGIC:
        raise OSError(0, "it has no superblock of dm-integrity")
    return int(sectors) // (BLOCK // SECTOR) * (BLOCK // SECTOR)


def _open(disk: str) -> str:
    """The node of the plain disk. Raises OSError."""
    # What fits is known to the kernel once it has laid the disk out.
    device_mapper.create(_INTEGRITY, integrity(disk, BLOCK // SECTOR))
    device_mapper.remove(_INTEGRITY)
    with open(disk, "rb", buffering=0) as stream:
        length = usable_sectors(stream.read(BLOCK))
    below = device_mapper.create(_INTEGRITY, integrity(disk, length))
    cipher = device_mapper.create(_CIPHER, encryption(below, length, os.urandom(KEY_BYTES)))
    zero = device_mapper.create(_ZERO, Target(length, "zero", b""))
    return device_mapper.create(_SCRATCH, sparse(zero, cipher, length))


def _format(device: str, processes: Processes) -> None:
    """Raises OSError."""
    command = [_MKFS, "-q", "-F", "-F", "-t", "ext4", "-b", str(BLOCK), "-m", "0", "-O", _FEATURES]
    command += ["-i", str(_BYTES_PER_INODE), "-E", _EXTENDED, device]
    with open(os.devnull, "rb") as null, open(os.memfd_create("mke2fs"), "w+b") as said:
        child = processes.spawn(command, {}, (null.fileno(), said.fileno(), said.fileno()))
        code = child.wait(_MKFS_SECONDS)
        if code is None:
            child.signal(signal.SIGKILL)
            raise OSError(0, f"mke2fs did not end within {_MKFS_SECONDS:g} s")
        if code != 0:
            said.seek(0)
            lines = said.read(4096).decode(errors="replace").split("\n")
            words = [line for line in lines if line.strip()]
            raise OSError(0, f"mke2fs: {words[-1] if words else 'it gave no reason'}")
