"""Parts of volumes: what Kubernetes calls a subPath.

What is in a volume is the containers'. One of them could put a symbolic link where another's part is looked for, and lead it to
whatever is in the guest. So each step is opened below the one before, no link is followed, and what was
found is bound to a place of the agent's own; crun gets that place, and no name is resolved again. Once
crun has mounted it, the place is let go.
"""

import errno
import os
import stat
from typing import Final

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.volume import Volume

from sealrun_agent import syscall
from sealrun_agent.errors import AgentError, StartError
from sealrun_agent.image import space

_STEP: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def bind(directory: str, volume: Volume, target: str, destination: str) -> str:
    """`target`, at which the volume's part is bound. directory: the volume's. destination: in the
    container, for errors. Raises StartError(RUNTIME_FAILED, NO_SPACE, SCRATCH_UNUSABLE)."""
    try:
        found = _open(directory, volume)
        try:
            _bind(found, target)
        finally:
            os.close(found)
    except OSError as error:
        raise _failed(error, directory, destination) from error
    return target


def release(place: str) -> None:
    """Let go of all that is bound below `place`; nothing where nothing is. Raises
    StartError(RUNTIME_FAILED)."""
    try:
        for name in os.listdir(place) if os.path.isdir(place) else ():
            _unbind(f"{place}/{name}")
        if os.path.isdir(place):
            os.rmdir(place)
    except OSError as error:
        raise StartError(
            ErrorCode.RUNTIME_FAILED, f"cannot let go of parts of volumes: {error.strerror}"
        ) from error


def _open(directory: str, volume: Volume) -> int:
    """A descriptor of the directory or regular file. Raises OSError."""
    here = os.open(directory, _STEP | os.O_DIRECTORY)
    for name in volume.subpath.split("/"):
        try:
            there = _step(here, name, volume)
        finally:
            os.close(here)
        here = there
    return here


def _step(directory: int, name: str, volume: Volume) -> int:
    try:
        found = os.open(name, _STEP, dir_fd=directory)
    except FileNotFoundError:
        return _make(directory, name, volume)
    mode = os.fstat(found).st_mode
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
        return found
    os.close(found)
    raise OSError(errno.ENOTDIR, f"{name!a:.100} is neither a directory nor a file")


def _make(directory: int, name: str, volume: Volume) -> int:
    os.mkdir(name, 0o700, dir_fd=directory)
    made = os.open(name, _DIRECTORY, dir_fd=directory)
    try:
        os.fchown(made, volume.uid, volume.gid)
        os.fchmod(made, volume.mode)
    except OSError:
        os.close(made)
        raise
    return made


def _bind(source: int, target: str) -> None:
    os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
    if stat.S_ISDIR(os.fstat(source).st_mode):
        os.mkdir(target, 0o700)
    else:
        os.close(os.open(target, _NEW, 0o600))
    syscall.mount(f"/proc/self/fd/{source}", target, "", syscall.MS_BIND, "")


def _unbind(target: str) -> None:
    """Undo a bind, of which nothing may have been done but the mount point."""
    try:
        syscall.umount(target, syscall.MNT_DETACH | syscall.UMOUNT_NOFOLLOW)
    except OSError as error:
        if error.errno != errno.EINVAL:  # no mount there
            raise
    if os.path.isdir(target):
        os.rmdir(target)
    else:
        os.unlink(target)


def _failed(error: OSError, disk: str, destination: str) -> AgentError:
    what = f"cannot mount a part of a volume at {destination!a:.300}"
    return space.any_failure(error, disk, what, StartError, ErrorCode.RUNTIME_FAILED)
