"""What the host shares: a virtio-fs device, mounted when the first container needs it.

What is in the device's tree stands in sealrun_protocol/share.py. Each of those is a mount of its own on the host and becomes one here: the host's server
announces it, and the kernel mounts it where it is first looked at. So file systems keep apart, and
with them their inode numbers.

Whoever serves the tree decides at each look-up what is there. So a container's part is looked up
once, without following any symbolic link, and bound to a place of the guest's own; crun gets that
place, and no name in the tree is resolved again.
"""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable, Iterable
from typing import Final

from sealrun_protocol import share
from sealrun_protocol.errors import ErrorCode

from sealrun_agent import syscall
from sealrun_agent.errors import StartError

_BELIEF_SECONDS: Final = 1.5
_POLL_SECONDS: Final = 0.05
_RESOLVE: Final = syscall.RESOLVE_NO_SYMLINKS | syscall.RESOLVE_NO_MAGICLINKS


def mount_device(target: str) -> None:
    """Mount the host's device. Raises OSError."""
    syscall.mount(share.TAG, target, "virtiofs", 0, "")


class SharedTree:
    """The device's tree is mounted at `directory`/tree, what containers have of it is below
    `directory`/container. For any number of threads."""

    def __init__(self, directory: str, mount: Callable[[str], None] = mount_device) -> None:
        self._tree = f"{directory}/tree"
        self._places = f"{directory}/container"
        self._mount = mount
        self._lock = threading.Lock()
        self._mounted = False

    def take(self, container: str, names: Iterable[str]) -> str:
        """The directory in which each name of a container's is what the host shares by it. Raises
        StartError(RUNTIME_FAILED), and leaves nothing behind then."""
        place = f"{self._places}/{container}"
        name = ""
        try:
            self._mount_once()
            os.makedirs(place, 0o700)
            for name in names:
                self._bind(f"{container}/{name}", f"{place}/{name}")
        except OSError as error:
            self.release(container)
            what = f"{container}/{name}" if name else "directories"
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"cannot take the host's {what}: {error.strerror}"
            ) from error
        return place

    def release(self, container: str) -> None:
        """Let go of what a container had; nothing where it had nothing. Raises
        StartError(RUNTIME_FAILED)."""
        place = f"{self._places}/{container}"
        try:
            for name in os.listdir(place) if os.path.isdir(place) else ():
                _unbind(f"{place}/{name}")
                _detach(f"{self._tree}/{container}/{name}")
            if os.path.isdir(place):
                os.rmdir(place)
        except OSError as error:
            raise StartError(
                ErrorCode.RUNTIME_FAILED,
                f"cannot let go of the host's directories: {error.strerror}",
            ) from error

    def _mount_once(self) -> None:
        with self._lock:
            if not self._mounted:
                os.makedirs(self._tree, 0o700)
                self._mount(self._tree)
                self._mounted = True

    def _bind(self, name: str, target: str) -> None:
        tree = os.open(self._tree, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            source, is_directory = _look_up_soon(tree, name.encode())
        finally:
            os.close(tree)
        try:
            if is_directory:
                os.mkdir(target, 0o700)
            else:
                os.close(
                    os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                )
            syscall.mount(
                f"/proc/self/fd/{source}", target, "", syscall.MS_BIND | syscall.MS_REC, ""
            )
        finally:
            os.close(source)


def _look_up_soon(tree: int, name: bytes) -> tuple[int, bool]:
    """`_look_up` of what may be there under the name of a container that is gone: the kernel believes
    what it knew of that for a second. Raises OSError."""
    deadline = time.monotonic() + _BELIEF_SECONDS
    while True:
        try:
            return _look_up(tree, name)
        except FileNotFoundError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def _look_up(tree: int, name: bytes) -> tuple[int, bool]:
    """A descriptor, and whether it is a directory's; else it is a regular file's. Raises OSError."""
    try:
        # Only what has to be a directory is mounted on the way.
        return syscall.openat2(tree, name, os.O_PATH | os.O_DIRECTORY, _RESOLVE), True
    except NotADirectoryError:
        fd = syscall.openat2(tree, name, os.O_PATH, _RESOLVE)
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd, False
    os.close(fd)
    raise NotADirectoryError(errno.ENOTDIR, "it is neither a directory nor a file", name)


def _unbind(target: str) -> None:
    """Undo a bind, of which nothing may have been done but the mount point."""
    _detach(target)
    if os.path.isdir(target):
        os.rmdir(target)
    else:
        os.unlink(target)


def _detach(target: str) -> None:
    """Unmount; nothing where nothing is mounted. What still uses it keeps it."""
    try:
        syscall.umount(target, syscall.MNT_DETACH | syscall.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOENT):  # no mount there
            raise
