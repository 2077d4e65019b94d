"""The mounts of this process, as proc(5) has them in /proc/self/mountinfo."""

import os
import re
from typing import Final, NamedTuple

_FILE: Final = "/proc/self/mountinfo"
_ESCAPED: Final = re.compile(r"\\([0-7]{3})")


class Mounted(NamedTuple):
    """place: the mount point. root: which directory or file of the file system is there. device: major:minor.
    flags: of the mount. options: of the file system."""

    place: str
    root: str
    device: str
    flags: str
    kind: str
    options: str


def read() -> list[Mounted]:
    """All of them; what was mounted later, and so is on top, comes later."""
    with open(_FILE, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        return parse(file.read())


def parse(text: str) -> list[Mounted]:
    """The same of the file's content."""
    # The kernel escapes the end of its lines, and nothing of what else Python takes for one.
    return [_parse(line) for line in text.split("\n") if line]


def at(table: list[Mounted], path: str) -> Mounted | None:
    """The mount of which `path`, without links, is the mount point."""
    return next((one for one in reversed(table) if one.place == path), None)


def above(table: list[Mounted], path: str) -> Mounted:
    """The mount on which `path`, without links, lies."""
    while (found := at(table, path)) is None and path != "/":
        path = os.path.dirname(path)
    return found or Mounted("/", "/", "", "", "", "")


def _parse(line: str) -> Mounted:
    fields, _, more = line.partition(" - ")
    _, _, device, root, place, flags, *_ = fields.split(" ")
    kind, _, options, *_ = more.split(" ")
    return Mounted(_plain(place), _plain(root), device, flags, kind, options)


def _plain(text: str) -> str:
    return _ESCAPED.sub(lambda found: chr(int(found[1], 8)), text)
