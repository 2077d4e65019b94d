"""A log file that a VMM fills and that cannot fill the host: a guest decides what is written there.

The VMM writes into a pipe; the event loop of the process that owns the VM copies it to the file and,
when that grows beyond its limit, drops the older half. The end is what a post-mortem needs.
"""

import asyncio
import os
from typing import Final

LIMIT_BYTES: Final = 1 << 20
DROPPED: Final = b"[the older part of this log was dropped]\n"

_CHUNK_BYTES = 1 << 16


class CappedLog:
    """The file at `path`, mode 0600, appended to. Needs a running event loop.

    `writer` is the descriptor to hand to the VMM. Raises OSError where the file cannot be made."""

    def __init__(self, path: str, limit: int = LIMIT_BYTES) -> None:
        self._limit = limit
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._reader, self.writer = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reader, False)
        self._open = True
        asyncio.get_running_loop().add_reader(self._reader, self._copy)

    def handed_over(self) -> None:
        """Close this process's writing end, so that the VMM's end is the last one."""
        os.close(self.writer)

    def finish(self) -> None:
        """Take what is still in the pipe and close; the VMM is gone."""
        while self._open and self._copy():
            pass
        self._close()

    def _copy(self) -> bool:
        """Move one chunk; False where there was none."""
        try:
            data = os.read(self._reader, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._close()
            return False
        try:
            os.write(self._file, data)
            self._cut()
        except OSError:
            return (
                True  # no space for a log is no reason to end the VM, or to stop it by a full pipe
            )
        return True

    def _cut(self) -> None:
        size = os.fstat(self._file).st_size
        if size <= self._limit:
            return
        kept = os.pread(self._file, self._limit // 2, size - self._limit // 2)
        os.ftruncate(self._file, 0)
        os.write(self._file, DROPPED + kept.partition(b"\n")[2])

    def _close(self) -> None:
        if self._open:
            self._open = False
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
            os.close(self._file)
