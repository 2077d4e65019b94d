"""The engine's files of which the guest has copies, and what becomes of them afterwards.

Engines write hosts and resolv.conf anew, in place, when a container's networks change: a container that
had them bound would see that at once. So the originals are looked at again before the program starts, and
watched (inotify(7)) as long as it runs.
"""

import asyncio
import ctypes
import os
from collections.abc import Callable, Mapping
from typing import Final

from sealrun_protocol.messages import File

from sealrun_runtime import sharing
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.shim import request
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.shim.log import log

FOLLOWED: Final = ("/etc/hosts", "/etc/resolv.conf")

_CLOSE_WRITE: Final = 0x8  # IN_CLOSE_WRITE of linux/inotify.h
_READ_BYTES: Final = 4096

_libc = ctypes.CDLL(None, use_errno=True)


class Copies:
    """Those of one container. Event loop only."""

    def __init__(self, container: ContainerSpec, sent: Mapping[int, File]) -> None:
        """sent: by index of the mount."""
        self._container = container
        self._known = {
            index: file
            for index, file in sent.items()
            if container.mounts[index].destination in FOLLOWED
        }
        self._watch = -1

    def changed(self) -> dict[int, File]:
        """Those that are not what they were when this was asked last. One that cannot be read stays as
        it is: the engine is about to take it away."""
        found = {}
        for index, known in self._known.items():
            try:
                now = request.files(self._container, (index,))[index]
            except HostFailed as error:
                log.info("%s", error.text)
                continue
            if now.content != known.content:
                found[index] = now
        self._known.update(found)
        return found

    def watch(self, call: Callable[[], object]) -> None:
        """Call `call` whenever one was written."""
        descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            log.error("cannot watch files: %s", os.strerror(ctypes.get_errno()))
            return
        for index in self._known:
            path = os.fsencode(sharing.source_of(self._container, index))
            _libc.inotify_add_watch(descriptor, path, _CLOSE_WRITE)
        self._watch = descriptor

        def written() -> None:
            os.read(descriptor, _READ_BYTES)
            call()

        asyncio.get_running_loop().add_reader(descriptor, written)

    def close(self) -> None:
        """Watch no more. Idempotent."""
        if self._watch >= 0:
            asyncio.get_running_loop().remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1
