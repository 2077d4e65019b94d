"""A directory tree that is filled from names nobody trusts.

Every name is resolved by the kernel with the tree's directory as root (openat2(2),
RESOLVE_IN_ROOT): a symlink in the middle of a name, absolute or full of `..`, leads to a place in
the tree. The last component is never followed. Names are relative, cleaned by `clean`, and the
tree itself is b"".
"""

import errno
import os
import stat
from types import TracebackType
from typing import Final

from sealrun_agent import syscall

_CACHED: Final = 32  # open parent directories
KEPT_BYTES: Final = 100  # what a remembered name takes besides its own bytes
_LINKS: Final = 40  # as the kernel's own limit of symlinks in one name
_RESOLVE: Final = syscall.RESOLVE_IN_ROOT | syscall.RESOLVE_NO_MAGICLINKS
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY


class OutsideError(Exception):
    """A name leads out of the tree."""


def clean(name: bytes) -> bytes:
    """The name without `/` at its ends, `.`, empty components and inner `..`; b"" for the tree
    itself. Raises OutsideError where `..` leads above it, as containers/storage does."""
    if b"." not in name and b"//" not in name:
        return name.strip(b"/")
    kept: list[bytes] = []
    for component in name.split(b"/"):
        if component == b"..":
            if not kept:
                raise OutsideError
            kept.pop()
        elif component not in (b"", b"."):
            kept.append(component)
    return b"/".join(kept)


class Tree:
    """One layer's directory while it is filled, by one thread.

    implicit: directories that were made because something lies in them, not because the layer has
    an entry for them. kept: bytes that their names take.
    """

    def __init__(self, directory: str) -> None:
        self.path = directory
        self.root = os.open(directory, _DIRECTORY | os.O_CLOEXEC)
        self.implicit: set[bytes] = {b""}
        self.kept = 0
        self._open: dict[bytes, int] = {}

    def __enter__(self) -> "Tree":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.forget()
        os.close(self.root)

    def forget(self) -> None:
        """Close what is cached."""
        for fd in self._open.values():
            os.close(fd)
        self._open = {}

    def directory(self, name: bytes) -> int:
        """A descriptor of the directory `name`, made with what is above it where it is missing. It is
        the tree's: do not close it; it is good until `remove`, and for the next lookup. Raises
        OSError."""
        if not name:
            return self.root
        fd = self._open.pop(name, None)
        if fd is None:
            try:
                fd = syscall.openat2(self.root, name, _DIRECTORY, _RESOLVE)
            except FileNotFoundError:
                fd = self._made(name)
        self._open[name] = fd  # the last one in the order, so the last one to go
        if len(self._open) > _CACHED:
            os.close(self._open.pop(next(iter(self._open))))
        return fd

    def reopened(self, name: bytes) -> int | None:
        """A descriptor of the caller's own of the directory `name`, None where no directory is there.
        Raises OSError."""
        flags = _DIRECTORY | os.O_NOFOLLOW
        try:
            return syscall.openat2(self.root, name or b".", flags, _RESOLVE)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def exists(self, name: bytes) -> bool:
        """Whether the directory `name` is there. Raises OSError."""
        try:
            os.close(syscall.openat2(self.root, name or b".", _DIRECTORY | os.O_PATH, _RESOLVE))
        except FileNotFoundError:
            return False
        return True

    def parent(self, name: bytes) -> tuple[int, bytes]:
        """The directory that holds `name`, and its last component. Raises OSError."""
        above, _, last = name.rpartition(b"/")
        return self.directory(above), last

    def remove(self, name: bytes) -> bool:
        """Remove whatever `name` is; True if it was a directory. Descriptors that were given out are
        closed: a name may lead elsewhere now. Raises OSError."""
        parent, last = self.parent(name)
        try:
            os.unlink(last, dir_fd=parent)
            return False
        except IsADirectoryError:
            remove_tree(parent, last)
            return True
        finally:
            self.forget()

    def _made(self, name: bytes) -> int:
        """`directory`, component by component, following symlinks within the tree."""
        todo = name.split(b"/")[::-1]
        done: list[bytes] = []
        links = 0
        while todo:
            component = todo.pop()
            if component in (b"", b"."):
                continue
            if component == b"..":
                done = done[:-1]
                continue
            here = os.open(b"/".join(done) or b".", os.O_PATH | os.O_NOFOLLOW, dir_fd=self.root)
            try:
                mode = self._mode(here, component, done)
                if stat.S_ISLNK(mode):
                    links += 1
                    if links > _LINKS:
                        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
                    target = os.readlink(component, dir_fd=here)
                    done = [] if target.startswith(b"/") else done
                    todo += target.split(b"/")[::-1]
                    continue
            finally:
                os.close(here)
            done.append(component)
        return syscall.openat2(self.root, b"/".join(done) or b".", _DIRECTORY, _RESOLVE)

    def _mode(self, parent: int, component: bytes, above: list[bytes]) -> int:
        """The mode of `component`, which is made as a directory where it is missing."""
        try:
            return os.stat(component, dir_fd=parent, follow_symlinks=False).st_mode
        except FileNotFoundError:
            os.mkdir(component, 0o755, dir_fd=parent)
            made = b"/".join([*above, component])
            self.implicit.add(made)
            self.kept += len(made) + KEPT_BYTES
            return stat.S_IFDIR


def remove_tree(parent: int, name: bytes) -> None:
    """Remove the directory `name`, however deep: deeper directories are first moved up into it, so
    that neither the stack nor the number of open files grows. Raises OSError."""
    top = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
    moved = 0
    try:
        while directories := _emptied(top):
            for directory in directories:
                inner = os.open(directory, _DIRECTORY | os.O_NOFOLLOW, dir_fd=top)
                try:
                    for deeper in _emptied(inner):
                        while True:
                            moved += 1
                            try:
                                os.mkdir(b"%d" % moved, dir_fd=top)
                                break
                            except FileExistsError:
                                continue
                        os.rename(deeper, b"%d" % moved, src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                os.rmdir(directory, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _emptied(directory: int) -> list[bytes]:
    """Remove all but directories; returns the names of these."""
    left: list[bytes] = []
    for text in os.listdir(directory):
        name = os.fsencode(text)
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            left.append(name)
    return left
