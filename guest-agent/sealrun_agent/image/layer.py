"""Unpacking one layer into a directory of its own, for overlayfs, whatever the tar says.

OCI image specification, layer.md, with these decisions where it leaves room (as containers/storage
does, unless stated):

- Names are cleaned and stay inside: "/etc/x" and "a/../b" are "etc/x" and "b"; a name or a hard
  link's target that leads above the root is LAYER_UNSAFE. A symlink may say what it likes; it is
  followed only within the layer.
- An entry replaces what an earlier one of the same name left, except that a directory keeps its
  content when another directory entry follows.
- `.wh.NAME` becomes overlayfs's whiteout (a character device 0:0), `.wh..wh..opq` its opaque mark.
  They speak of lower layers only: what this layer has by that name stays. The lowest layer has
  nothing to hide. Other `.wh..wh.` names are leftovers of AUFS and are ignored.
- A directory where this layer first had something else, or a whiteout, is opaque.
- Hard links take nothing but the name from their entry; a target in a lower layer is copied up.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import AgentError, PullError, VerifyError
from sealrun_agent.image import lower, metadata, space
from sealrun_agent.image.archive import Archive, Entry
from sealrun_agent.image.stream import Chunks
from sealrun_agent.image.tree import KEPT_BYTES, OutsideError, Tree, clean

WHITEOUT: Final = b".wh."
_AUFS: Final = b".wh..wh."
_OPAQUE_MARK: Final = b".wh..wh..opq"
_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(
    chunks: Chunks,
    directory: str,
    lowers: Sequence[str],
    what: str,
    await_lowers: Callable[[], None] = lambda: None,
) -> None:
    """Read the tar to the end of the stream and fill `directory` with it. lowers: directories of the
    layers below, lowest first; await_lowers: returns when they are complete. Raises VerifyError(LAYER_MALFORMED, LAYER_UNSAFE, LIMIT_EXCEEDED),
    PullError(NO_SPACE), and what the stages of the stream raise; `directory` is then of no use."""
    with Tree(directory) as tree:
        archive = Archive(chunks, what)
        writer = _Writer(tree, archive, lowest=not lowers)
        name = b""
        try:
            for count, entry in enumerate(archive):
                name = entry.name
                if count >= limits.LAYER_ENTRIES:
                    raise archive.exceeds(f"more than {count} entries")
                writer.apply(entry)
                if writer.kept + tree.kept > limits.LAYER_NAMES_BYTES:
                    raise archive.exceeds(
                        f"more than {limits.LAYER_NAMES_BYTES} bytes of names to keep"
                    )
            archive.drain()
            name = b""
            await_lowers()
            lower.complete(tree, writer.links, lowers)
            writer.set_directory_times()
        except OutsideError:
            raise VerifyError(
                ErrorCode.LAYER_UNSAFE, f"{what}: entry {_shown(name)} leads out of the layer"
            ) from None
        except lower.MissingTarget as error:
            raise archive.malformed(f"{_shown(error.args[0])} links to a missing file") from None
        except OSError as error:
            raise _translated(error, directory, what, name) from error


class _Writer:
    """Applies entries. links: hard links whose targets this layer does not have (yet). kept: bytes of
    names that are remembered until the layer's end."""

    def __init__(self, tree: Tree, archive: Archive, *, lowest: bool) -> None:
        self.links: dict[bytes, bytes] = {}
        self._tree = tree
        self._archive = archive
        self._lowest = lowest
        self._times: dict[bytes, int] = {}  # of directories: what is put into them changes them
        self.kept = 0

    def apply(self, entry: Entry) -> None:
        """Raises OutsideError, VerifyError, OSError."""
        name = clean(entry.name)
        if len(name) >= limits.PATH_BYTES:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), name)
        last = name.rpartition(b"/")[2]
        if last.startswith(WHITEOUT):
            self._whiteout(name, last)
            return
        if self.links:
            self.links.pop(name, None)
        if entry.kind == 0x30:
            self._file(name, entry)
        elif entry.kind == 0x35:
            self._directory(name, entry)
        elif not name:
            raise self._archive.malformed("its root is not a directory")
        elif entry.kind == 0x31:
            self._link(name, entry)
        else:
            self._special(name, entry)

    def set_directory_times(self) -> None:
        """The last step. Raises OSError."""
        for name, mtime in self._times.items():
            fd = self._tree.reopened(name)
            if fd is None:
                continue  # a later entry replaced it
            try:
                os.utime(fd, ns=(mtime, mtime))
            finally:
                os.close(fd)

    def _file(self, name: bytes, entry: Entry) -> None:
        if not name:
            raise self._archive.malformed("its root is not a directory")
        parent, last = self._tree.parent(name)
        try:
            fd = os.open(last, _CREATE, 0o600, dir_fd=parent)
        except FileExistsError:
            parent, last = self._cleared(name)
            fd = os.open(last, _CREATE, 0o600, dir_fd=parent)
        try:
            if entry.segments is None:
                if entry.size:
                    self._archive.copy(fd, entry.size)
            else:
                for offset, length in entry.segments:
                    os.lseek(fd, offset, os.SEEK_SET)
                    self._archive.copy(fd, length)
                os.ftruncate(fd, entry.real_size)
            metadata.set_on_file(fd, (entry.uid, entry.gid), entry.mode, entry.xattrs)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    def _directory(self, name: bytes, entry: Entry) -> None:
        if name:
            parent, last = self._tree.parent(name)
            try:
                os.mkdir(last, 0o700, dir_fd=parent)
            except FileExistsError:
                status = os.stat(last, dir_fd=parent, follow_symlinks=False)
                if not stat.S_ISDIR(status.st_mode):
                    parent, last = self._cleared(name)
                    os.mkdir(last, 0o700, dir_fd=parent)
                    self._make_opaque(name)
        self._tree.implicit.discard(name)
        fd = self._tree.directory(name)
        metadata.set_on_file(fd, (entry.uid, entry.gid), entry.mode, entry.xattrs)
        self.kept += len(name) + KEPT_BYTES
        self._times[name] = entry.mtime_ns

    def _special(self, name: bytes, entry: Entry) -> None:
        """A symlink, device or fifo."""
        parent, last = self._tree.parent(name)
        try:
            _make_special(parent, last, entry)
        except FileExistsError:
            parent, last = self._cleared(name)
            _make_special(parent, last, entry)
        mode = None if entry.kind == 0x32 else entry.mode
        metadata.set_on_name(parent, last, (entry.uid, entry.gid), mode, entry.xattrs)
        times = (entry.mtime_ns, entry.mtime_ns)
        os.utime(last, ns=times, dir_fd=parent, follow_symlinks=False)

    def _link(self, name: bytes, entry: Entry) -> None:
        target = clean(entry.link)
        if not target or target == name:
            raise self._archive.malformed(f"{_shown(name)} is a hard link to itself or to the root")
        try:
            self._link_to(target, name)
        except FileExistsError:
            self._cleared(name)
            self._link_to(target, name)

    def _link_to(self, target: bytes, name: bytes) -> None:
        above = target.rpartition(b"/")[0]
        if not self._tree.exists(above):
            self.kept += len(name) + len(target) + KEPT_BYTES
            self.links[name] = target
            return
        parent, last = self._tree.parent(name)
        source = self._tree.directory(above)
        target_last = target.rpartition(b"/")[2]
        try:
            os.link(target_last, last, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            self.kept += len(name) + len(target) + KEPT_BYTES
            self.links[name] = target

    def _whiteout(self, name: bytes, last: bytes) -> None:
        above = name.rpartition(b"/")[0]
        if last.startswith(_AUFS):
            if last == _OPAQUE_MARK:
                self._make_opaque(above)
            return
        hidden = last[len(WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise OutsideError
        if self._lowest:
            return
        parent = self._tree.directory(above)
        try:
            os.mknod(hidden, stat.S_IFCHR, os.makedev(0, 0), dir_fd=parent)
        except FileExistsError:
            status = os.stat(hidden, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                self._make_opaque(above + b"/" + hidden if above else hidden)

    def _make_opaque(self, name: bytes) -> None:
        if not self._lowest:
            os.setxattr(self._tree.directory(name), metadata.OPAQUE, b"y")

    def _cleared(self, name: bytes) -> tuple[int, bytes]:
        """Remove what an earlier entry left there; the parent and last component."""
        if self._tree.remove(name):
            below = name + b"/"
            self.links = {n: t for n, t in self.links.items() if not n.startswith(below)}
        return self._tree.parent(name)


def _make_special(parent: int, last: bytes, entry: Entry) -> None:
    if entry.kind == 0x32:
        os.symlink(entry.link, last, dir_fd=parent)
        return
    kind = {0x33: stat.S_IFCHR, 0x34: stat.S_IFBLK, 0x36: stat.S_IFIFO}[entry.kind]
    major, minor = entry.device
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), last)
    os.mknod(last, kind | 0o600, os.makedev(major, minor), dir_fd=parent)


def _translated(error: OSError, directory: str, what: str, name: bytes) -> AgentError:
    failed = space.failure(error, directory, f"{what} cannot be unpacked", PullError)
    if failed is not None:
        return failed
    entry = f"entry {_shown(name)}" if name else "it"
    return VerifyError(
        ErrorCode.LAYER_MALFORMED, f"{what} cannot be unpacked: {entry}: {error.strerror}"
    )


def _shown(name: bytes) -> str:
    return ascii(os.fsdecode(name[:120]))
