"""A file tree as a cpio archive in the `newc` form, the only one the kernel's initramfs reads.

The same tree gives the same bytes: entries are sorted, inodes are counted, and owner and time are
always 0 (Documentation/driver-api/early-userspace/buffer-format.rst in the kernel's sources).
"""

import stat
from collections.abc import Iterator

from sealrun_guest_image.tree import Device, Directory, Entry, File, Link, Tree

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"


def archive(tree: Tree) -> bytes:
    """The whole archive of `tree`."""
    return b"".join(_chunks(tree))


def _chunks(tree: Tree) -> Iterator[bytes]:
    for inode, (path, entry) in enumerate(tree.walk(), start=1):
        yield _record(path, inode, entry)
    yield _header(_TRAILER, inode=0, mode=0)


def _record(path: str, inode: int, entry: Entry) -> bytes:
    match entry:
        case File(data=data, mode=mode):
            header = _header(path, inode, stat.S_IFREG | mode, size=len(data))
            return header + data + _padding(len(data))
        case Link(target):
            data = target.encode()
            header = _header(path, inode, stat.S_IFLNK | 0o777, size=len(data))
            return header + data + _padding(len(data))
        case Directory(mode):
            return _header(path, inode, stat.S_IFDIR | mode, links=2)
        case Device(major, minor, mode):
            return _header(path, inode, stat.S_IFCHR | mode, device=(major, minor))


def _header(
    path: str,
    inode: int,
    mode: int,
    *,
    links: int = 1,
    size: int = 0,
    device: tuple[int, int] = (0, 0),
) -> bytes:
    name = path.encode() + b"\0"
    owner = group = time = check = 0
    fields = (inode, mode, owner, group, links, time, size, 0, 0, *device, len(name), check)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields) + name
    return header + _padding(len(header))


def _padding(length: int) -> bytes:
    return b"\0" * (-length % 4)
