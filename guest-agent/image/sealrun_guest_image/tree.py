"""A file tree in memory: what the initrd will hold, and what packages and wheels bring.

Paths are relative (`usr/bin/crun`), without `.`, `..` or a leading slash.
"""

from collections.abc import Iterator
from typing import NamedTuple

from sealrun_guest_image.errors import BuildError


class File(NamedTuple):
    """A regular file. changed: when a package says that was, in seconds since 1970; no part of the image."""

    data: bytes
    mode: int = 0o644
    changed: int = 0


class Directory(NamedTuple):
    """A directory."""

    mode: int = 0o755


class Link(NamedTuple):
    """A symbolic link."""

    target: str


class Device(NamedTuple):
    """A character device node."""

    major: int
    minor: int
    mode: int


Entry = File | Directory | Link | Device


class Tree:
    """Paths and what stands there; parents come by themselves."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def add(self, path: str, entry: Entry) -> None:
        """Put `entry` at `path`, over what was there. Raises BuildError for an unsafe path."""
        parts = path.split("/")
        if any(part in {"", ".", ".."} for part in parts):
            raise BuildError(f"cannot add {path!r} to the guest image: not a plain relative path")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if not isinstance(self._entries.setdefault(parent, Directory()), Directory):
                raise BuildError(
                    f"cannot add {path!r} to the guest image: {parent} is no directory"
                )
        self._entries[path] = entry

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def resolve(self, path: str) -> str:
        """Where the file at `path` stands, links followed within the tree. Raises BuildError."""
        wanted, entry = path, self._entries.get(path)
        for _ in range(8):
            if not isinstance(entry, Link):
                break
            path = _target(path, entry.target)
            entry = self._entries.get(path)
        if not isinstance(entry, File):
            raise BuildError(f"cannot find {wanted} among the packages of the guest image")
        return path

    def file(self, path: str) -> File:
        """The file at `path`, links followed within the tree. Raises BuildError without one."""
        entry = self._entries[self.resolve(path)]
        assert isinstance(entry, File)
        return entry

    def walk(self) -> Iterator[tuple[str, Entry]]:
        """All entries, sorted by path, so that a directory precedes what it holds."""
        yield from sorted(self._entries.items())


def _target(path: str, target: str) -> str:
    parts = [] if target.startswith("/") else path.split("/")[:-1]
    for part in target.split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)
