"""The secret in the image, and the search for it on the host's disk.

The secret is random, so that gzip stores it as it is: a search for raw bytes sees through the
layer's compression, and finding the markers in the plain layer proves that the search works.
"""

import hashlib
import mmap
import os
import stat
from collections.abc import Iterable, Iterator

SECRET_BYTES = 256 * 1024
MARKER_BYTES = 32


class Secret:
    """Random bytes that exist on the tenant's side only."""

    def __init__(self) -> None:
        self.content = os.urandom(SECRET_BYTES)
        self.sha256 = hashlib.sha256(self.content).hexdigest()
        # More than one, since a marker may straddle the border of two of deflate's stored blocks.
        offsets = range(1000, SECRET_BYTES - MARKER_BYTES, SECRET_BYTES // 4)
        self.markers = [self.content[at : at + MARKER_BYTES] for at in offsets]


def find(markers: Iterable[bytes], places: Iterable[str]) -> tuple[list[str], int, int]:
    """The files at or below `places` that hold one of `markers`; how many files and bytes were read."""
    wanted = list(markers)
    hits: list[str] = []
    files = size = 0
    seen: set[tuple[int, int]] = set()
    for path in _regular_files(places):
        try:
            with open(path, "rb") as stream:
                status = os.fstat(stream.fileno())
                if (status.st_dev, status.st_ino) in seen:
                    continue
                seen.add((status.st_dev, status.st_ino))
                files, size = files + 1, size + status.st_size
                if status.st_size and _holds(stream.fileno(), wanted):
                    hits.append(path)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it went away meanwhile
    return hits, files, size


def _holds(descriptor: int, markers: list[bytes]) -> bool:
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as content:
        return any(content.find(marker) >= 0 for marker in markers)


def _regular_files(places: Iterable[str]) -> Iterator[str]:
    for place in places:
        if os.path.isfile(place):
            yield place
        for directory, _, names in os.walk(place):
            for name in names:
                path = os.path.join(directory, name)
                try:
                    if stat.S_ISREG(os.lstat(path).st_mode):
                        yield path
                except FileNotFoundError:
                    continue
