"""An image's layers on their way from the registry to their staging directories, several at once.

Up to LAYERS_AT_ONCE layers are filled by a task each, lowest first. Within a layer three threads
divide the stages, so that the network, the checks and the file system wait for each other as little
as they can (all that is costly runs in C, without the interpreter's lock):

    fetch, digest, decrypt  →  decompress, digest  →  unpack

What a layer needs of lower ones (lower.py) it takes last of all, when those are complete. The first
failure ends the other layers at their next chunk. Memory, whatever the layers' sizes: per layer not
more than 2 * stream.AHEAD + 6 chunks, and zstd's window where it is used.
"""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode, Phase

from sealrun_agent.errors import DecryptError, PullError, VerifyError
from sealrun_agent.image.decrypt import LayerKey, decrypted
from sealrun_agent.image.layer import unpack
from sealrun_agent.image.manifest import Manifest
from sealrun_agent.image.source import Source
from sealrun_agent.image.store import Claim
from sealrun_agent.image.stream import Chunks, ahead, bounded, decompressed, verified
from sealrun_agent.image.task import Task

LAYERS_AT_ONCE: Final = 3
PROGRESS_SECONDS: Final = 0.25
# Less than this is not worth a thread, or another connection to the registry.
_SMALL_BYTES: Final = 1 * limits.MIB

Progress = Callable[[Phase, str, int, int], None]
"""`progress(phase, text, done_bytes, total_bytes)`; one call at a time, from whatever thread."""


class _Abandoned(Exception):
    """Another layer has failed."""


class Filling:
    """The layers of one pull. keys: what opens the encrypted ones, by the layer's number."""

    def __init__(
        self,
        manifest: Manifest,
        diff_ids: Sequence[str],
        keys: Mapping[int, LayerKey],
        claim: Claim,
        progress: Progress,
    ) -> None:
        self._manifest, self._diff_ids, self._keys = manifest, diff_ids, keys
        self._claim = claim
        self._progress = progress
        self._lock = threading.Lock()
        self._complete: dict[int, threading.Event] = {}
        self._waiting: list[int] = []  # highest first
        self._failure: BaseException | None = None

    def run(self, missing: Sequence[int], source: Source, more: Callable[[], Source]) -> None:
        """Fill the layers of these numbers, which are in order. more: gives another source, for another
        thread. Raises PullError, VerifyError, DecryptError; nothing runs any more then."""
        self._complete = {number: threading.Event() for number in missing}
        self._waiting = list(missing[::-1])
        large = [n for n in missing if self._manifest.layers[n].descriptor.size > _SMALL_BYTES]
        with ExitStack() as stack:
            sources = [source]
            for _ in range(1, min(len(large), LAYERS_AT_ONCE)):
                sources.append(more())
                stack.callback(sources[-1].close)
            tasks = [Task(partial(self._work, one), "layer") for one in sources]
            for task in tasks:
                task.wait()
        if self._failure is not None:
            raise self._failure

    def _work(self, source: Source) -> None:
        """One thread: take the lowest layer that nobody has, until there is none. Lowest first means
        that whoever waits for a lower layer waits for somebody who works."""
        while True:
            with self._lock:
                if not self._waiting or self._failure is not None:
                    return
                number = self._waiting.pop()
            try:
                self._fill_if_true(number, source)
            except BaseException as error:
                with self._lock:
                    self._failure = self._failure or error
                raise
            finally:
                self._complete[number].set()

    def _fill_if_true(self, number: int, source: Source) -> None:
        while True:
            try:
                self._fill(number, source)
            except (VerifyError, DecryptError):
                if not source.second_chance(self._manifest.layers[number].descriptor):
                    raise
                self._claim.discard(number)
            else:
                return

    def _fill(self, number: int, source: Source) -> None:
        layer = self._manifest.layers[number]
        what = f"layer {layer.descriptor.digest}"
        try:
            directory = self._claim.stage(number)
        except OSError as error:
            raise PullError(
                ErrorCode.NO_SPACE, f"{what} cannot be unpacked: {error.strerror}"
            ) from error
        in_turn = ahead if layer.descriptor.size > _SMALL_BYTES else _as_it_is
        with ExitStack() as stages:
            blob = stages.enter_context(closing(source.blob(layer.descriptor, what)))
            plain = verified(self._counted(blob, number, source), layer.descriptor.digest, what)
            if number in self._keys:
                plain = decrypted(plain, self._keys[number], what)
            plain = stages.enter_context(closing(in_turn(plain)))
            whole = stages.enter_context(closing(self._tar(plain, number, what)))
            try:
                with closing(in_turn(whole)) as tar:
                    lowers = self._claim.below(number)
                    unpack(tar, directory, lowers, what, lambda: self._await_lower(number))
            except VerifyError as error:
                if error.code is ErrorCode.LAYER_MALFORMED:
                    # Most likely somebody changed its bytes: their checks tell, at the stream's end.
                    for _ in plain:
                        pass
                raise

    def _tar(self, plain: Chunks, number: int, what: str) -> Chunks:
        tar = decompressed(plain, self._manifest.layers[number].compression, what)
        tar = bounded(tar, limits.LAYER_TAR_BYTES, f"the tar of {what}")
        return verified(tar, self._diff_ids[number], f"the tar of {what}")

    def _await_lower(self, number: int) -> None:
        """Until all layers below are complete. Raises _Abandoned where one will not be."""
        for lower, complete in self._complete.items():
            if lower < number:
                complete.wait()
        self._check_wanted()

    def _check_wanted(self) -> None:
        if self._failure is not None:
            raise _Abandoned

    def _counted(self, chunks: Chunks, number: int, source: Source) -> Chunks:
        layer = self._manifest.layers[number].descriptor
        text = f"layer {number + 1} of {len(self._manifest.layers)}"
        done = 0
        told = 0.0
        begun = time.monotonic()
        for chunk in chunks:
            self._check_wanted()
            done += len(chunk)
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS or done == layer.size:
                origin = " from the host's cache" if source.is_cached(layer) else ""
                rate = done / max(now - begun, 0.001) / limits.MIB
                self._progress(Phase.PULL, f"{text}{origin} at {rate:.1f} MiB/s", done, layer.size)
                told = now
            yield chunk


def _as_it_is(chunks: Chunks) -> Chunks:
    return chunks
