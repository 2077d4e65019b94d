"""The pid file that engines read."""

import os

from sealrun_runtime.errors import HostError, cause


def write(path: str, pid: int) -> None:
    """Atomically: engines read it as soon as it is there. Raises HostError."""
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            os.write(descriptor, str(pid).encode())
        finally:
            os.close(descriptor)
        os.rename(temporary, path)
    except OSError as error:
        raise HostError(f"cannot write pid file {path}: {cause(error)}") from error
