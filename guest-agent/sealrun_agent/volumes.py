"""Volumes of the sandbox's own: what engines make as an empty directory of the host and mount into one or
more containers (emptyDir, anonymous volumes).

The host says which mounts those are and calls each by a name; nothing of it gets here but that. A volume is
made when the first container wants it, and stays until the VM ends: a container of a pod that is started again finds
what it wrote. It lies beside the images, so on the scratch disk where the VM has one; those that are to be
in memory are a tmpfs each.

A part of a volume (Kubernetes' subPath) is bound to a place of the agent's own, for as long as crun needs to mount it (parts.py).
"""

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.volume import Volume

from sealrun_agent import parts, syscall
from sealrun_agent.container.spec import OwnVolume
from sealrun_agent.errors import AgentError, StartError
from sealrun_agent.image import space
from sealrun_agent.image.copy_tree import copy_from
from sealrun_agent.image.tree import remove_tree

_FILE: Final = "file"  # in the directory of a volume that is one
_NOBODY_S: Final = ""  # it stays, whatever becomes of one container


class Volumes:
    """For any number of threads. disk: gives the directory of the disk; raises AgentError."""

    def __init__(self, disk: Callable[[], str]) -> None:
        self._disk = disk
        self._lock = threading.Lock()
        # The container for which each directory was made, and which alone has it yet.
        self._makers: dict[str, str] = {}
        self._parts: dict[str, str] = {}  # where those of a container are that is being made

    def take(self, container: str, wanted: Mapping[str, OwnVolume], rootfs: str) -> dict[str, str]:
        """See surroundings.Volumes. Raises StartError(RUNTIME_FAILED, NO_SPACE,
        SCRATCH_UNUSABLE), and what `disk` raises."""
        if not wanted:
            return {}
        disk = self._disk()
        seen: set[str] = set()
        taken: dict[str, str] = {}
        with self._lock:
            try:
                for number, (destination, volume) in wanted.items():
                    path = f"{disk}/volumes/{_directory(volume)}"
                    if path not in self._makers:
                        self._make(path, volume, rootfs, destination)
                        self._makers[path] = container
                    elif path not in seen:
                        self._makers[path] = _NOBODY_S
                    seen.add(path)
                    taken[number] = f"{path}/{_FILE}" if volume.file else path
                    if volume.subpath:
                        place = f"{disk}/parts/{container}"
                        self._parts[container] = place
                        taken[number] = parts.bind(path, volume, f"{place}/{number}", destination)
            except BaseException:
                self._remove_those_of(container)
                raise
        return taken

    def settle(self, container: str) -> None:
        """See surroundings.Volumes. Raises StartError(RUNTIME_FAILED)."""
        with self._lock:
            self._release_parts_of(container)

    def give_up(self, container: str) -> None:
        """See surroundings.Volumes. Raises StartError(RUNTIME_FAILED)."""
        with self._lock:
            self._remove_those_of(container)

    def _make(self, path: str, volume: Volume, rootfs: str, destination: str) -> None:
        if len(self._makers) >= limits.VOLUMES:
            raise StartError(
                ErrorCode.RUNTIME_FAILED, f"the sandbox has more than {limits.VOLUMES} volumes"
            )
        try:
            os.makedirs(path, 0o700)
            try:
                _fill(path, volume, rootfs, destination)
            except OSError:
                _remove(path)
                raise
        except OSError as error:
            raise _failed(error, os.path.dirname(path), destination) from error

    def _release_parts_of(self, container: str) -> None:
        if (place := self._parts.get(container)) is not None:
            parts.release(place)
            del self._parts[container]

    def _remove_those_of(self, container: str) -> None:
        self._release_parts_of(container)
        for path in [path for path, maker in self._makers.items() if maker == container]:
            del self._makers[path]
            try:
                _remove(path)
            except OSError as error:
                raise StartError(
                    ErrorCode.RUNTIME_FAILED, f"cannot remove a volume: {error.strerror}"
                ) from error


def _directory(volume: Volume) -> str:
    """The name of its own. A container that has a volume which is a directory may put links there, so a
    file of the same name is elsewhere: crun would follow them in the agent's root."""
    name = hashlib.sha256(volume.name.encode()).hexdigest()
    return f"{name}.{_FILE}" if volume.file else name


def _fill(path: str, volume: Volume, rootfs: str, destination: str) -> None:
    if volume.file:
        path = f"{path}/{_FILE}"
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        os.chown(path, volume.uid, volume.gid)
        os.chmod(path, volume.mode)
        return
    if volume.memory:
        flags = syscall.MS_NOSUID | syscall.MS_NODEV
        size = f"size={volume.size}" if volume.size else ""
        syscall.mount("tmpfs", path, "tmpfs", flags, size)
    if volume.copy_up and copy_from(rootfs, destination, path):
        return
    os.chown(path, volume.uid, volume.gid)
    os.chmod(path, volume.mode)


def _remove(path: str) -> None:
    if os.path.ismount(path):
        syscall.umount(path, syscall.MNT_DETACH)
    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove_tree(parent, os.path.basename(path).encode())
    finally:
        os.close(parent)


def _failed(error: OSError, disk: str, destination: str) -> AgentError:
    what = f"cannot make the volume for {destination!a:.300}"
    return space.any_failure(error, disk, what, StartError, ErrorCode.RUNTIME_FAILED)
