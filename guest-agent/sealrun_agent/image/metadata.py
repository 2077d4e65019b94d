"""Owners, modes, times and extended attributes of what a layer holds.

The order matters to the kernel: chown(2) clears setuid bits and file capabilities, so owners come
first, then modes, then extended attributes, then times.
"""

import errno
import os
from collections.abc import Mapping
from typing import Final

from sealrun_protocol import limits

OPAQUE: Final = b"trusted.overlay.opaque"
# Not an image's to set: what overlayfs keeps for itself, and labels of the host that built the image.
_OURS: Final = (b"trusted.overlay.", b"security.selinux")


def set_on_file(fd: int, owner: tuple[int, int], mode: int, xattrs: Mapping[bytes, bytes]) -> None:
    """Of an open file or directory, all but times; owner: uid and gid. Raises OSError."""
    os.fchown(fd, *owner)
    os.fchmod(fd, mode)
    if xattrs:
        set_xattrs(fd, xattrs)


def set_on_name(
    parent: int,
    name: bytes,
    owner: tuple[int, int],
    mode: int | None,
    xattrs: Mapping[bytes, bytes],
) -> None:
    """Of what cannot be opened: symlinks (mode None), devices, fifos. All but times. Raises OSError."""
    os.chown(name, *owner, dir_fd=parent, follow_symlinks=False)
    if mode is not None:
        os.chmod(name, mode, dir_fd=parent)
    if xattrs:
        set_xattrs(b"/proc/self/fd/%d/%s" % (parent, name), xattrs)


def set_xattrs(target: int | bytes, xattrs: Mapping[bytes, bytes]) -> None:
    """On an open file, or a path whose last component is not followed. Attributes for people (user.*)
    are left out where the file system has none of them, as containers/storage does; one that
    protects something never is. Raises OSError."""
    for name, value in xattrs.items():
        if name.startswith(_OURS):
            continue
        if len(value) > limits.XATTR_BYTES:
            raise OSError(errno.E2BIG, os.strerror(errno.E2BIG), name)
        try:
            if isinstance(target, int):
                os.setxattr(target, name, value)
            else:
                os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            # EPERM: user.* exists on files and directories only (xattr(7)).
            missing = error.errno in (errno.EOPNOTSUPP, errno.EPERM)
            if not (missing and name.startswith(b"user.")):
                raise


def copy(source: int, target: int) -> None:
    """All metadata from one open file or directory to another. Raises OSError."""
    status = os.fstat(source)
    xattrs = {os.fsencode(name): os.getxattr(source, name) for name in os.listxattr(source)}
    owner = (status.st_uid, status.st_gid)
    set_on_file(target, owner, status.st_mode & 0o7777, xattrs)
    os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
