"""Reading a file that a caller, a bundle or the operator names, which may be anything."""

import errno
import os
import stat


def read(path: str, limit: int, *, pipe: bool = False) -> bytes:
    """Its content. limit: bytes. pipe: whether it may come through a pipe, as from `<(command)`; one into
    which nobody writes is empty.

    Nobody waits for the writer of a fifo. Raises OSError, also for what is larger, or no file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISFIFO(kind):
            if not pipe:
                raise OSError(errno.EINVAL, "it is a pipe, not a file")
            os.set_blocking(descriptor, True)
        elif not stat.S_ISREG(kind) and not stat.S_ISCHR(kind):
            raise OSError(errno.EINVAL, "it is not a file")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes")
    return content
