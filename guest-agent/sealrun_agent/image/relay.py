"""The second way to an image: the host's cache, asked by digest over the channel, and the registry
where that gives nothing or something else.

Rules:

1. What a tag stands for only the registry is asked: the host could name any image.
2. A document from the cache that does not have its digest, and one that does not come, is fetched from
   the registry. So is the rest of a blob that ends early, or comes too slowly.
3. A blob that turned out wrong (second_chance) is fetched from the registry as a whole.
4. After the first failure of the cache nothing more is asked of it for this image.
"""

import hashlib
import io
import socket
from collections.abc import Callable
from contextlib import closing
from typing import IO, Final

from sealrun_protocol import limits

from sealrun_agent.errors import DialFailed
from sealrun_agent.image.connection import PacedReader
from sealrun_agent.image.manifest import Descriptor
from sealrun_agent.image.source import Source
from sealrun_agent.image.stream import CHUNK_BYTES, Chunks

Fetch = Callable[[str], socket.socket]
"""The content with a digest, to be read to its end. Raises DialFailed."""

_SHA256: Final = "sha256:"


class HostCache:
    """The way to it, for all sources of one image. report: is told why it is not used any more."""

    def __init__(self, fetch: Fetch, report: Callable[[str], None]) -> None:
        self.fetch = fetch
        self.usable = True
        self._report = report

    def give_up(self, why: str) -> None:
        """Ask it nothing more."""
        if self.usable:
            self.usable = False
            self._report(f"the host's cache is of no use, so the registry is asked: {why}")


class Relay:
    """A Source over the host's cache and a registry."""

    def __init__(self, cache: HostCache, registry: Source) -> None:
        self._cache, self._registry = cache, registry
        self._from_cache: set[str] = set()

    def manifest(self, version: str) -> tuple[bytes, str]:
        """See Source."""
        if self._cache.usable and version.startswith(_SHA256):
            document = self._document(version)
            if document is not None:
                return document, ""
        return self._registry.manifest(version)

    def blob(self, descriptor: Descriptor, what: str) -> Chunks:
        """See Source."""
        position = 0
        if self._cache.usable and descriptor.size:
            self._from_cache.add(descriptor.digest)
            try:
                with closing(self._opened(descriptor.digest)) as stream:
                    while position < descriptor.size and (chunk := stream.read(CHUNK_BYTES)):
                        chunk = chunk[: descriptor.size - position]
                        position += len(chunk)
                        yield chunk
            except (DialFailed, OSError) as error:
                self._cache.give_up(str(error))
            if position == descriptor.size:
                return
            self._cache.give_up(f"{what} ends at byte {position} of {descriptor.size}")
        skipped = 0
        with closing(self._registry.blob(descriptor, what)) as rest:
            for chunk in rest:
                fresh = chunk[max(0, position - skipped) :]
                skipped += len(chunk)
                if fresh:
                    yield fresh

    def second_chance(self, descriptor: Descriptor) -> bool:
        """See Source."""
        if descriptor.digest not in self._from_cache:
            return False
        self._from_cache.discard(descriptor.digest)
        self._cache.give_up(f"{descriptor.digest} was not what it is called")
        return True

    def is_cached(self, descriptor: Descriptor) -> bool:
        """See Source."""
        return self._cache.usable and descriptor.digest in self._from_cache

    def close(self) -> None:
        """See Source."""
        self._registry.close()

    def _document(self, digest: str) -> bytes | None:
        """None where the cache does not have it."""
        document = bytearray()
        try:
            with closing(self._opened(digest)) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    document += chunk
                    if len(document) > limits.MANIFEST_BYTES:
                        break
        except (DialFailed, OSError) as error:
            self._cache.give_up(str(error))
            return None
        if f"{_SHA256}{hashlib.sha256(document).hexdigest()}" != digest:
            self._cache.give_up(f"manifest {digest} was not what it is called")
            return None
        return bytes(document)

    def _opened(self, digest: str) -> IO[bytes]:
        """Raises DialFailed."""
        connection = self._cache.fetch(digest)
        connection.settimeout(limits.HTTP_SECONDS)
        with connection:
            return io.BufferedReader(
                PacedReader(connection.makefile("rb", buffering=0)), CHUNK_BYTES
            )
