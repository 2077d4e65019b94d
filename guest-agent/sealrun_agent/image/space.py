"""What room there is where layers and volumes lie, in words, and what an error of that file system means."""

import errno
import os
from collections.abc import Callable
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import AgentError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)
# dm-crypt says EILSEQ of what has no valid tag; ext4 is read-only after its first error.
_BROKEN: Final = (errno.EIO, errno.EROFS, errno.EILSEQ)


def free_bytes(directory: str) -> int:
    """Raises OSError."""
    space = os.statvfs(directory)
    return space.f_bavail * space.f_frsize


def left(directory: str) -> str:
    """As "3 MiB of 10 MiB, 5 of 20 files are free". Raises OSError."""
    space = os.statvfs(directory)
    total = space.f_blocks * space.f_frsize // limits.MIB
    free = space.f_bavail * space.f_frsize // limits.MIB
    files = f", {space.f_favail} of {space.f_files} files" if space.f_files else ""
    return f"{free} MiB of {total} MiB{files} are free"


def failure(
    error: OSError, directory: str, what: str, kind: Callable[[ErrorCode, str], AgentError]
) -> AgentError | None:
    """An error of the class `kind` that begins with `what`, where it is the file system's: it is full, or its
    disk fails. None where it is anything else."""
    if error.errno in _FULL:
        return kind(ErrorCode.NO_SPACE, f"{what}: {left(directory)}")
    if error.errno in _BROKEN:
        text = f"{what}: the scratch disk fails: {error.strerror}"
        return kind(ErrorCode.SCRATCH_UNUSABLE, text)
    return None


def any_failure(
    error: OSError,
    directory: str,
    what: str,
    kind: Callable[[ErrorCode, str], AgentError],
    otherwise: ErrorCode,
) -> AgentError:
    """The same, with the code `otherwise` where it is anything else."""
    other = kind(otherwise, f"{what}: {error.strerror}")
    return failure(error, directory, what, kind) or other
