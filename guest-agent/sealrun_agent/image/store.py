"""Where layers and containers' root file systems live: one directory tree on one file system.

    layers/<chain id>/          a complete, checked layer; never changed again
    staging/<n>/<chain id>/     one being filled by a pull
    containers/<id>/            lower/ (short names for the layers), upper/, work/, rootfs/ (mounted)

A layer gets its name in layers/ by rename(2) when the whole image has passed its checks, so a pull
that fails leaves nothing. A pull holds a lock for each of its layers from the lowest up; another
pull that wants one of them waits, then finds it done: a layer is unpacked once in a sandbox.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from sealrun_protocol.errors import ErrorCode

from sealrun_agent import syscall
from sealrun_agent.errors import AgentError, PullError, StartError
from sealrun_agent.image import metadata, space
from sealrun_agent.image.manifest import ImageConfig
from sealrun_agent.image.tree import remove_tree


class Image(NamedTuple):
    """A pulled image. reference: as it was resolved. digest: of its manifest. layers: directories,
    lowest first."""

    reference: str
    digest: str
    config: ImageConfig
    layers: tuple[str, ...]


class Claim:
    """The layers of one pull. Made by Store.claim; of one thread."""

    def __init__(
        self, layers: str, staging: str, chain_ids: Sequence[str], decrypted: set[str]
    ) -> None:
        """decrypted: the directories of layers that hold what came encrypted."""
        self._decrypted = decrypted
        names = [_file_name(chain_id) for chain_id in chain_ids]
        self._final = [os.path.join(layers, name) for name in names]
        self._staged = [os.path.join(staging, name) for name in names]

    def present(self, index: int) -> bool:
        """Whether an earlier pull has completed the layer."""
        return os.path.isdir(self._final[index])

    def stage(self, index: int) -> str:
        """A new empty directory for the layer. Raises OSError."""
        os.mkdir(self._staged[index], 0o755)
        return self._staged[index]

    def discard(self, index: int) -> None:
        """Take away what was staged of the layer. Raises OSError."""
        _remove(*os.path.split(self._staged[index]))

    def below(self, index: int) -> list[str]:
        """The directories of the layers below, lowest first, staged or complete."""
        return [
            final if os.path.isdir(final) else staged
            for final, staged in zip(self._final[:index], self._staged[:index], strict=True)
        ]

    @property
    def decrypted(self) -> bool:
        """Whether a layer that is here holds what came encrypted, whatever it is called now."""
        return not self._decrypted.isdisjoint(self._final)

    def publish(self, encrypted: Sequence[int] = ()) -> tuple[str, ...]:
        """Make all staged layers visible: every check has passed. The layers' directories, lowest
        first. encrypted: those that came so. A layer above may have copies of what is in one. Raises
        OSError."""
        self._decrypted.update(self._final[min(encrypted, default=len(self._final)) :])
        for final, staged in zip(self._final, self._staged, strict=True):
            if not os.path.isdir(final):
                os.rename(staged, final)
        return tuple(self._final)


class Store:
    """All layers and root file systems of a sandbox, below `root`, which is on a file system that can
    be overlayfs's upper layer. For any number of threads."""

    def __init__(self, root: str, has_failed: Callable[[], bool] = lambda: False) -> None:
        """has_failed: whether the disk has lost a write; raises OSError."""
        self.root = root
        self.has_failed = has_failed
        self._layers = os.path.join(root, "layers")
        self._staging = os.path.join(root, "staging")
        self._containers = os.path.join(root, "containers")
        for directory in (self._layers, self._staging, self._containers):
            os.makedirs(directory, 0o700, exist_ok=True)
        self._lock = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._claims = 0
        self._decrypted: set[str] = set()

    @contextmanager
    def claim(self, chain_ids: Sequence[str]) -> Iterator[Claim]:
        """Reserve an image's layers, lowest first, for as long as the block lasts. What is staged then
        and not published is removed. Raises PullError(NO_SPACE, SCRATCH_UNUSABLE)."""
        with ExitStack() as held:
            for chain_id in chain_ids:
                with self._lock:
                    lock = self._locks.setdefault(chain_id, threading.Lock())
                held.enter_context(lock)
            with self._lock:
                self._claims += 1
                name = str(self._claims)
            staging = os.path.join(self._staging, name)
            try:
                os.mkdir(staging, 0o700)
            except OSError as error:
                raise self._failed("cannot stage the image's layers", error) from error
            held.callback(self._unstage, name)
            yield Claim(self._layers, staging, chain_ids, self._decrypted)

    def _unstage(self, name: str) -> None:
        try:
            _remove(self._staging, name)
        except OSError as error:
            raise self._failed("cannot remove what was staged", error) from error

    def _failed(self, what: str, error: OSError) -> AgentError:
        return space.any_failure(error, self.root, what, PullError, ErrorCode.NO_SPACE)

    def mount(self, layers: Sequence[str], container: str) -> str:
        """Mount a writable root file system for a container, over directories that stay as they are,
        lowest first; its directory. Raises StartError(RUNTIME_FAILED)."""
        base = os.path.join(self._containers, _checked(container))
        try:
            os.mkdir(base, 0o700)
        except FileExistsError:
            raise StartError(
                ErrorCode.CONTAINER_EXISTS, f"container {container} has a root file system already"
            ) from None
        try:
            return _mounted(layers, base)
        except OSError as error:
            _remove(self._containers, container)
            raise StartError(
                ErrorCode.RUNTIME_FAILED,
                f"cannot mount the root file system of {container}: {error.strerror}",
            ) from error

    def unmount(self, container: str) -> None:
        """Undo `mount` and remove what the container wrote; nothing where it was not mounted. A root
        file system that is still in use is detached and goes with its last user. Raises
        StartError(RUNTIME_FAILED)."""
        base = os.path.join(self._containers, _checked(container))
        rootfs = os.path.join(base, "rootfs")
        try:
            if os.path.ismount(rootfs):
                try:
                    syscall.umount(rootfs, 0)
                except OSError:
                    syscall.umount(rootfs, syscall.MNT_DETACH)
            if os.path.isdir(base):
                _remove(self._containers, container)
        except OSError as error:
            raise StartError(
                ErrorCode.RUNTIME_FAILED,
                f"cannot remove the root file system of {container}: {error.strerror}",
            ) from error


def _mounted(layers: Sequence[str], base: str) -> str:
    """Make the directories of a container and mount its overlay."""
    rootfs, upper, lower, empty = (
        os.path.join(base, name) for name in ("rootfs", "upper", "lower", "empty")
    )
    for directory in (rootfs, upper, lower, empty, os.path.join(base, "work")):
        os.mkdir(directory, 0o755)
    shown = _visible(layers) or (empty,)
    for number, layer in enumerate(shown):
        os.symlink(layer, os.path.join(lower, str(number)))
    # The root directory of the union is that of the upper layer, metadata included.
    _copy_metadata(shown[0], upper)
    names = ":".join(f"lower/{number}" for number in range(len(shown)))
    failure: list[OSError] = []

    def mount_from_base() -> None:
        # mount(2)'s options fit one page: 256 layers do, by names relative to a working directory.
        try:
            syscall.unshare(syscall.CLONE_FS)  # the directory is this thread's alone
            os.chdir(base)
            options = f"lowerdir={names},upperdir=upper,workdir=work,index=off"
            syscall.mount("overlay", "rootfs", "overlay", 0, options)
        except OSError as error:
            failure.append(error)

    thread = threading.Thread(target=mount_from_base, name="mount")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return rootfs


def _visible(layers: Sequence[str]) -> tuple[str, ...]:
    """Highest first, as overlayfs wants them, down to one whose root is opaque: overlayfs itself does
    not look at the mark there."""
    shown: list[str] = []
    for layer in reversed(layers):
        shown.append(layer)
        with suppress(OSError):
            if os.getxattr(layer, metadata.OPAQUE) == b"y":
                break
    return tuple(shown)


def _copy_metadata(source: str, target: str) -> None:
    with ExitStack() as opened:
        descriptors = []
        for directory in (source, target):
            fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, fd)
            descriptors.append(fd)
        metadata.copy(*descriptors)


def _remove(parent: str, name: str) -> None:
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        remove_tree(fd, name.encode())
    finally:
        os.close(fd)


def _file_name(chain_id: str) -> str:
    return chain_id.removeprefix("sha256:")


def _checked(container: str) -> str:
    if not container or "/" in container or container in (".", "..") or "\0" in container:
        raise StartError(ErrorCode.SPEC_REFUSED, f"container id {container[:80]!a} is not a name")
    return container
