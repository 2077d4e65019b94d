"""The engine's files of which the guest has copies, and what becomes of them afterwards.

Engines write hosts and resolv.conf anew, in place, when a container's networks change: a container that
had them bound would see that at once. So the originals are watched (inotify(7)) from the start on, and
looked at again before the program runs.
"""

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from sealrun_protocol.messages import File

from sealrun_runtime import sharing
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.shim import request
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.shim.log import log

FOLLOWED: Final = ("/etc/hosts", "/etc/resolv.conf")

_CLOSE_WRITE: Final = 0x8  # IN_CLOSE_WRITE of linux/inotify.h
_EVENT: Final = struct.Struct("iIII")  # inotify(7): watch, mask, cookie, no name with a file's
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

    def changed(self, indexes: Iterable[int] | None = None) -> dict[int, File]:
        """Those of `indexes`, or of all, that are not what they were when this was asked last. One that
        cannot be read stays as it is: the engine is about to take it away."""
        found = {}
        for index in self._known if indexes is None else indexes:
            try:
                now = request.files(self._container, (index,))[index]
            except HostFailed as error:
                log.info("%s", error.text)
                continue
            if now.content != self._known[index].content:
                found[index] = now
        self._known.update(found)
        return found

    def watch(self, call: Callable[[frozenset[int]], object]) -> None:
        """Call `call` with the indexes of those that were written, whenever some were. Of no others:
        somebody may be about to write them, and they are empty until then. Idempotent: a start may be
        tried again."""
        if self._watch >= 0:
            return
        descriptor = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            log.error("cannot watch files: %s", os.strerror(ctypes.get_errno()))
            return
        watched: dict[int, set[int]] = {}  # two mounts of one file are one watch
        for index in self._known:
            path = os.fsencode(sharing.source_of(self._container, index))
            watch = _libc.inotify_add_watch(descriptor, path, _CLOSE_WRITE)
            watched.setdefault(watch, set()).add(index)
        watched.pop(-1, None)  # taken away already
        self._watch = descriptor

        def written() -> None:
            events = _EVENT.iter_unpack(os.read(descriptor, _READ_BYTES))
            found = [watched.get(watch, self._known) for watch, *_ in events]  # overflow: any
            call(frozenset().union(*found))

        asyncio.get_running_loop().add_reader(descriptor, written)

    def close(self) -> None:
        """Watch no more. Idempotent."""
        if self._watch >= 0:
            asyncio.get_running_loop().remove_reader(self._watch)
            os.close(self._watch)
            self._watch = -1
