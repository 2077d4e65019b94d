"""From an image reference to checked layers on disk: the image service's one entry.

Rules, in order:

1. The reference is resolved once. What a tag means is asked for once; everything after that is
   asked for by digest, and every document and blob is checked against digest and size.
2. The tenant's allowed images are checked twice: the reference before any traffic, the digests when
   they are known and before anything else is fetched.
3. An encrypted image is opened only if the tenant named its digest.
4. Keys are asked for only if the image has an encrypted layer that is not here yet, once, and before
   layers are fetched: an image that cannot be opened costs no traffic.
5. A layer is fetched, checked, decrypted, decompressed, checked and unpacked as one stream, into a
   staging directory. Its stages, and what each of them promises at the stream's end:
       Source.blob      as many bytes as the manifest says
       verified         the blob's digest is the manifest's
       decrypted        HMAC and plaintext digest are those of the encryption annotations
       decompressed     the compression ends where the data does
       bounded          no more than limits.LAYER_TAR_BYTES
       verified         the tar's digest is the configuration's diff_id
6. Layers get their names when all of them have passed. A pull that fails leaves nothing.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Final

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode, Phase

from sealrun_agent.dial import Dial
from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image.decrypt import LayerKey, decrypted, layer_key, load_keys
from sealrun_agent.image.layer import unpack
from sealrun_agent.image.manifest import (
    MANIFEST_TYPES,
    ImageConfig,
    Manifest,
    Platform,
    chain_ids,
    media_type_of,
    parse_config,
    parse_manifest,
    select,
    this_platform,
)
from sealrun_agent.image.policy import ImagePolicy, check_digests, check_pinned, check_reference
from sealrun_agent.image.reference import Reference, parse
from sealrun_agent.image.registry import Registry
from sealrun_agent.image.source import Source
from sealrun_agent.image.store import Claim, Image, Store
from sealrun_agent.image.stream import Chunks, bounded, decompressed, verified

__all__ = ["Image", "ImagePolicy", "Progress", "pull"]

PROGRESS_SECONDS: Final = 0.25

Progress = Callable[[Phase, str, int, int], None]
"""`progress(phase, text, done_bytes, total_bytes)`; called from the thread that pulls."""

Keys = Callable[[], Sequence[bytes]]

Resolved = Callable[[str, str], None]
"""`resolved(reference, digest)`: the manifest's digest, when the tenant's checks have passed."""


def pull(
    reference: str,
    *,
    policy: ImagePolicy,
    dial: Dial,
    resolved: Resolved,
    keys: Keys,
    store: Store,
    progress: Progress,
) -> Image:
    """Pull the image that `reference` names. resolved: is told of it before any key is asked for. keys:
    gets the PEM private keys. What these two raise passes through.

    Raises PullError, VerifyError, DecryptError."""
    wanted = parse(reference)
    check_reference(policy, wanted)
    platform = this_platform()
    source: Source
    with closing(Registry(wanted, policy, dial)) as source:
        progress(Phase.PULL, f"resolving {wanted}", 0, 0)
        digests, document = _resolved(source, wanted, platform)
        check_digests(policy, wanted, digests)
        manifest = parse_manifest(document)
        config = parse_config(_config(source, manifest), manifest, platform)
        with store.claim(chain_ids(config.rootfs.diff_ids)) as claim:
            missing = [n for n in range(len(manifest.layers)) if not claim.present(n)]
            if any(layer.encrypted for layer in manifest.layers):
                check_pinned(policy, wanted, digests)
            resolved(str(wanted), digests[-1])
            layer_keys = _layer_keys(manifest, missing, keys, progress)
            for number in missing:
                fill = _Fill(source, manifest, config, number, layer_keys.get(number))
                fill.run(claim, progress)
            layers = _published(claim)
    return Image(str(wanted), digests[-1], config, layers)


def _resolved(
    source: Source, wanted: Reference, platform: Platform
) -> tuple[tuple[str, ...], bytes]:
    """The manifest, and the digests of the documents on the way to it, its own last."""
    version = wanted.version
    digests: list[str] = []
    while len(digests) <= limits.INDEX_DEPTH:
        document, content_type = source.manifest(version)
        digest = f"sha256:{hashlib.sha256(document).hexdigest()}"
        if version.startswith("sha256:") and digest != version:
            raise VerifyError(
                ErrorCode.DIGEST_MISMATCH, f"manifest of {wanted.name} is {digest}, not {version}"
            )
        digests.append(digest)
        if media_type_of(document, content_type) in MANIFEST_TYPES:
            return tuple(digests), document
        version = select(document, platform).digest
    raise VerifyError(
        ErrorCode.LIMIT_EXCEEDED, f"indexes of {wanted} are nested deeper than {limits.INDEX_DEPTH}"
    )


def _config(source: Source, manifest: Manifest) -> bytes:
    what = f"configuration {manifest.config.digest}"
    blob = source.blob(manifest.config, what)
    return b"".join(verified(blob, manifest.config.digest, what))


def _layer_keys(
    manifest: Manifest, missing: Sequence[int], keys: Keys, progress: Progress
) -> Mapping[int, LayerKey]:
    """What opens each encrypted layer, by the layer's number."""
    encrypted = [number for number in missing if manifest.layers[number].encrypted]
    if not encrypted:
        return {}
    progress(Phase.DECRYPT, "getting the image's keys", 0, 0)
    loaded = load_keys(keys())
    return {number: layer_key(manifest.layers[number].descriptor, loaded) for number in encrypted}


def _published(claim: Claim) -> tuple[str, ...]:
    try:
        return claim.publish()
    except OSError as error:
        raise PullError(
            ErrorCode.NO_SPACE, f"cannot publish the image's layers: {error.strerror}"
        ) from error


class _Fill:
    """One layer on its way from its source to its staging directory."""

    def __init__(
        self,
        source: Source,
        manifest: Manifest,
        config: ImageConfig,
        number: int,
        key: LayerKey | None,
    ) -> None:
        self._source = source
        self._layer = manifest.layers[number]
        self._diff_id = config.rootfs.diff_ids[number]
        self._number = number
        self._count = len(manifest.layers)
        self._key = key
        self._what = f"layer {self._layer.descriptor.digest}"

    def run(self, claim: Claim, progress: Progress) -> None:
        """Raises PullError, VerifyError, DecryptError."""
        try:
            directory = claim.stage(self._number)
        except OSError as error:
            raise PullError(
                ErrorCode.NO_SPACE, f"{self._what} cannot be unpacked: {error.strerror}"
            ) from error
        with closing(self._source.blob(self._layer.descriptor, self._what)) as blob:
            plain = verified(
                self._counted(blob, progress), self._layer.descriptor.digest, self._what
            )
            if self._key is not None:
                plain = decrypted(plain, self._key, self._what)
            try:
                unpack(self._tar(plain), directory, claim.below(self._number), self._what)
            except VerifyError as error:
                if error.code is ErrorCode.LAYER_MALFORMED:
                    # Most likely somebody changed its bytes: their checks tell, at the stream's end.
                    for _ in plain:
                        pass
                raise

    def _tar(self, plain: Chunks) -> Chunks:
        tar = decompressed(plain, self._layer.compression, self._what)
        tar = bounded(tar, limits.LAYER_TAR_BYTES, f"the tar of {self._what}")
        return verified(tar, self._diff_id, f"the tar of {self._what}")

    def _counted(self, chunks: Chunks, progress: Progress) -> Chunks:
        text = f"layer {self._number + 1} of {self._count}"
        total = self._layer.descriptor.size
        done = 0
        told = 0.0
        for chunk in chunks:
            done += len(chunk)
            now = time.monotonic()
            if now - told >= PROGRESS_SECONDS or done == total:
                progress(Phase.PULL, text, done, total)
                told = now
            yield chunk
