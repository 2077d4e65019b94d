"""What a layer needs from the layers below it, which are directories of their own.

In a tar, a directory may be missing whose files are there, and a hard link may name a file of a
lower layer. Applied on one root both would come out right; as overlayfs layers the directory would
get made-up metadata that covers the real one's, and the link would dangle. So both are looked up
below: directories take over the metadata, linked files are copied up. That is why a layer that is
ready to be mounted is named by its chain id, not by its diff_id.
"""

import contextlib
import os
import stat
from collections.abc import Mapping, Sequence

from sealrun_agent.image import metadata
from sealrun_agent.image.tree import Tree


class MissingTarget(Exception):
    """A hard link to a file that is in no layer; args[0] is the link's name."""


def complete(tree: Tree, links: Mapping[bytes, bytes], lowers: Sequence[str]) -> None:
    """Give a filled layer what it lacks. links: name → target, both clean; lowers: directories of
    complete layers, lowest first. Raises MissingTarget, OSError."""
    for name, target in links.items():
        _copy_up(tree, target, lowers, name)
        directory, last = tree.parent(target)
        above, link = tree.parent(name)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link, dir_fd=above)
        os.link(last, link, src_dir_fd=directory, dst_dir_fd=above, follow_symlinks=False)
    for name in tree.implicit:
        here = tree.reopened(name)
        if here is None:
            continue  # a later entry replaced it
        try:
            _take_over(find(lowers, name), here)
        finally:
            os.close(here)


def _take_over(below: int | None, here: int) -> None:
    """The metadata of the directory below, if it is one, or what nobody said anything about gets."""
    if below is not None:
        try:
            if stat.S_ISDIR(os.fstat(below).st_mode):
                metadata.copy(below, here)
                return
        finally:
            os.close(below)
    metadata.set_on_file(here, (0, 0), 0o755, {})
    os.utime(here, ns=(0, 0))


def find(lowers: Sequence[str], name: bytes) -> int | None:
    """An open descriptor of `name` as the union of the layers shows it, symlinks not followed, or
    None. A device is opened as a path only. Raises OSError."""
    for lower in reversed(lowers):
        found = _probe(lower, name.split(b"/") if name else [])
        if found is False:
            return None
        if found is not True:
            return found
    return None


def _probe(lower: str, components: list[bytes]) -> int | bool:
    """A descriptor; False where the layer hides what lower ones have; True where it says nothing."""
    here = os.open(lower, os.O_RDONLY | os.O_DIRECTORY)
    opaque = False
    try:
        for component in components:
            opaque = opaque or _is_opaque(here)
            try:
                mode = os.stat(component, dir_fd=here, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return not opaque
            except NotADirectoryError:
                return False
            readable = stat.S_ISDIR(mode) or stat.S_ISREG(mode)
            if stat.S_ISCHR(mode):
                return False  # a whiteout, or a device that no layer above can need
            flags = os.O_RDONLY if readable else os.O_PATH
            there = os.open(component, flags | os.O_NOFOLLOW, dir_fd=here)
            os.close(here)
            here = there
        found, here = here, -1
        return found
    finally:
        if here >= 0:
            os.close(here)


def _is_opaque(directory: int) -> bool:
    try:
        return os.getxattr(directory, metadata.OPAQUE) == b"y"
    except OSError:
        return False


def _copy_up(tree: Tree, target: bytes, lowers: Sequence[str], link: bytes) -> None:
    """Put a copy of a lower layer's file into this one, unless it has one by now."""
    directory, last = tree.parent(target)
    try:
        os.stat(last, dir_fd=directory, follow_symlinks=False)
        return
    except FileNotFoundError:
        below = find([*lowers, tree.path], target)  # this layer may hide it
    if below is None:
        raise MissingTarget(link)
    try:
        if not stat.S_ISREG(os.fstat(below).st_mode):
            raise MissingTarget(link)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        copy = os.open(last, flags, 0o600, dir_fd=directory)
        try:
            while os.sendfile(copy, below, None, 1 << 30):
                pass
            metadata.copy(below, copy)
        finally:
            os.close(copy)
    finally:
        os.close(below)
