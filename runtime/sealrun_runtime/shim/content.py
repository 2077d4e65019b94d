"""What the host's cache has of a sandbox's images, for the guest to ask for by digest.

Not a proxy: a guest gets what can be reached from the references that its containers were made with
(the manifest of the reference, those that it lists, their configurations and layers) and nothing else of
the registry, whatever it knows of it.
"""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Final

import msgspec
from sealrun_protocol.decoding import from_json

from sealrun_runtime.cache import delivery
from sealrun_runtime.cache.delivery import Blob
from sealrun_runtime.cache.store import Cache, CacheFailed, is_digest
from sealrun_runtime.cache.upstream import Upstream
from sealrun_runtime.handover import Handover
from sealrun_runtime.image_reference import repository

_DOCUMENTS: Final = 64  # of one image
_MIB: Final = 1 << 20

Report = Callable[[str], None]


class _Descriptor(msgspec.Struct, frozen=True):
    digest: str
    size: int = 0


class _Document(msgspec.Struct, frozen=True):
    """What an index or a manifest names."""

    manifests: tuple[_Descriptor, ...] = ()
    config: _Descriptor | None = None
    layers: tuple[_Descriptor, ...] = ()


class Unreachable(Exception):
    """The guest has no right to it."""


class _Image:
    """One reference, and what was seen to be reachable from it. For any number of threads."""

    def __init__(self, reference: str, upstream: Upstream) -> None:
        self.upstream = upstream
        name, at, digest = reference.partition("@")
        tag = name[len(repository(reference)) + 1 :]
        self._root = digest if at else tag or "latest"
        self._lock = threading.Lock()
        self._known: set[str] | None = None
        self._blobs: dict[str, Blob] = {}
        self._read: set[str] = set()

    def find(self, cache: Cache, digest: str) -> Blob | bytes:
        """A blob that may be delivered, or a manifest's content. Raises Unreachable, CacheFailed,
        OSError."""
        with self._lock:
            self._begin()
            assert self._known is not None
            if digest in self._blobs:
                return self._blobs[digest]
            if digest not in self._known:
                raise Unreachable(digest)
            document = delivery.manifest(cache, self.upstream, digest)
            self._note(digest, document)
            return document

    def _begin(self) -> None:
        """What the reference stands for; a tag does so for as long as the sandbox lives."""
        if self._known is not None:
            return
        if is_digest(self._root):
            self._known = {self._root}
            return
        document = self.upstream.manifest(self._root)
        self._known = set()
        self._note(self._root, document)

    def _note(self, version: str, document: bytes) -> None:
        """Raises CacheFailed."""
        assert self._known is not None
        if version in self._read:
            return
        if len(self._read) >= _DOCUMENTS:
            raise CacheFailed(f"more than {_DOCUMENTS} manifests of one image")
        self._read.add(version)
        try:
            read = from_json(document, _Document)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise CacheFailed(f"{version} is no manifest: {error}") from error
        self._known.update(entry.digest for entry in read.manifests)
        for entry in (*([read.config] if read.config else []), *read.layers):
            if is_digest(entry.digest) and entry.size >= 0:
                self._blobs.setdefault(entry.digest, Blob(entry.digest, entry.size, version))


class Contents:
    """All images of a sandbox. Event loop, but for the threads that deliver."""

    def __init__(self, report: Report) -> None:
        """report: a line for the log."""
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._images: dict[str, _Image] = {}
        self._cache: Cache | None = None

    def add(self, handover: Handover) -> None:
        """A container's image may be asked for, if the operator offers that."""
        config, image = handover.config, handover.image
        if config.image.transport != "cache" or not image or image in self._images:
            return
        try:
            self._cache = self._cache or Cache(config.cache.directory, config.cache.size * _MIB)
        except OSError as error:
            self._report(f"cannot use the cache in {config.cache.directory}: {error.strerror}")
            return
        name = repository(image)
        insecure = name.partition("/")[0] in config.image.insecure_registries
        upstream = Upstream(name, insecure=insecure, authfile=config.cache.authfile)
        self._images[image] = _Image(image, upstream)

    async def open(self, reference: str, digest: str) -> socket.socket:
        """A socket that the content can be read from, to its end. Raises Unreachable, CacheFailed,
        OSError."""
        image = self._images.get(reference)
        if image is None or self._cache is None or not is_digest(digest):
            raise Unreachable(digest)
        opened: asyncio.Future[socket.socket] = self._loop.create_future()
        arguments = (self._cache, image, digest, opened)
        threading.Thread(target=self._serve, args=arguments, name="deliver", daemon=True).start()
        return await opened

    def close(self) -> None:
        """End what fills the cache for this sandbox."""
        for image in self._images.values():
            image.upstream.close()

    def _serve(
        self, cache: Cache, image: _Image, digest: str, opened: "asyncio.Future[socket.socket]"
    ) -> None:
        """Thread."""
        near, far = socket.socketpair()
        try:
            wanted = image.find(cache, digest)
            near.setblocking(False)
            self._settle(lambda: _hand_over(opened, near))
            if isinstance(wanted, bytes):
                far.sendall(wanted)
            else:
                delivery.deliver(cache, image.upstream, wanted, far, self._tell)
        except (Unreachable, CacheFailed, OSError) as error:
            failure = error
            self._settle(lambda: _refuse(opened, near, failure))
        finally:
            far.close()

    def _tell(self, text: str) -> None:
        self._settle(lambda: self._report(text))

    def _settle(self, call: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(call)


def _hand_over(opened: "asyncio.Future[socket.socket]", end: socket.socket) -> None:
    if opened.done():  # not wanted any more
        end.close()
    else:
        opened.set_result(end)


def _refuse(
    opened: "asyncio.Future[socket.socket]", end: socket.socket, failure: Exception
) -> None:
    """Where it was handed over before, the reader sees that it ends early."""
    if not opened.done():
        end.close()
        opened.set_exception(failure)
