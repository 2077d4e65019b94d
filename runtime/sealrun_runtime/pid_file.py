"""The pid file that engines read."""

import errno
import os

from sealrun_runtime.errors import HostError, cause


def expect_place(path: str) -> None:
    """Whether `path` can be one is known before there is a process. Raises HostError."""
    try:
        if os.path.isdir(path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.stat(os.path.dirname(path) or ".")
    except OSError as error:
        raise HostError(f"cannot write pid file {path}: {cause(error)}") from error


def write(path: str, pid: int) -> None:
    """Atomically: engines read it as soon as it is there. Raises HostError."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, str(pid).encode())
            os.rename(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
        finally:
            os.close(descriptor)
    except OSError as error:
        raise HostError(f"cannot write pid file {path}: {cause(error)}") from error
