"""From an image reference to checked layers on disk: the image service's one entry.

Rules, in order:

1. The reference is resolved once. What a tag means is asked for once; everything after that is
   asked for by digest, and every document and blob is checked against digest and size.
2. The tenant's allowed images are checked twice: the reference before any traffic, the digests when
   they are known and before anything else is fetched; then its image security policy decides.
3. An encrypted image is opened only if the tenant named its digest, or a signature that it asked for does.
   So is one that has a layer which is here because it was decrypted, whatever its manifest calls it.
4. Layers that are larger than the space there is are not fetched.
5. Keys are asked for only if the image has an encrypted layer that is not here yet, each once, and
   before layers are fetched: an image that cannot be opened costs no traffic.
6. A layer is fetched, checked, decrypted, decompressed, checked and unpacked as one stream, into a
   staging directory; several layers at once (filling.py). The stages, and what each of them promises
   at the stream's end:
       Source.blob      as many bytes as the manifest says
       verified         the blob's digest is the manifest's
       decrypted        the HMAC over the ciphertext is that of the encryption annotations
       decompressed     the compression ends where the data does
       bounded          no more than limits.LAYER_TAR_BYTES
       verified         the tar's digest is the configuration's diff_id
7. What was not what it is called is fetched once more where it then comes from elsewhere: a lie of the
   host's cache costs time, and nothing else (relay.py).
8. Layers get their names when all of them have passed. A pull that fails leaves nothing.
"""

import hashlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial

from sealrun_protocol import limits, registries
from sealrun_protocol.errors import ErrorCode, Phase

from sealrun_agent.dial import Dial
from sealrun_agent.errors import AgentError, PullError, VerifyError
from sealrun_agent.image import space
from sealrun_agent.image.admission import Admission
from sealrun_agent.image.authorization import Authorizations
from sealrun_agent.image.credentials import Safe
from sealrun_agent.image.decrypt import Keys, LayerKey, Opener
from sealrun_agent.image.filling import Filling, Progress
from sealrun_agent.image.manifest import (
    MANIFEST_TYPES,
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
from sealrun_agent.image.relay import Fetch, HostCache, Relay
from sealrun_agent.image.source import Source
from sealrun_agent.image.store import Claim, Image, Store
from sealrun_agent.image.stream import verified
from sealrun_agent.image.ways import Ways
from sealrun_agent.wipe import wipe

__all__ = ["Image", "ImagePolicy", "Keys", "Progress", "pull"]

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
    fetch: Fetch | None = None,
) -> Image:
    """Pull the image that `reference` names. fetch: asks the host's cache, if it may be asked.
    resolved: is told of the image before any key is asked for. What it and the keys raise passes
    through.

    Raises PullError, VerifyError, DecryptError."""
    wanted = _named(reference, policy)
    check_reference(policy, wanted)
    platform = this_platform()
    telling = threading.Lock()

    def told(phase: Phase, text: str, done: int, total: int) -> None:
        with telling:
            progress(phase, text, done, total)

    registry = _registry(wanted, policy, dial, keys)
    cache = HostCache(fetch, lambda text: told(Phase.PULL, text, 0, 0)) if fetch else None

    def connected() -> Source:
        return Relay(cache, registry()) if cache is not None else registry()

    with _naming(wanted), closing(connected()) as source:
        progress(Phase.PULL, f"resolving {wanted}", 0, 0)
        digests, document = _resolved(source, wanted, platform)
        check_digests(policy, wanted, digests)
        signed = Admission(policy, wanted, registry, keys.resource).admit(digests[-1])
        manifest = parse_manifest(document)
        config = parse_config(_config(source, manifest), manifest, platform)
        with store.claim(chain_ids(config.rootfs.diff_ids)) as claim:
            missing = [n for n in range(len(manifest.layers)) if not claim.present(n)]
            _expect_room(store, wanted, [manifest.layers[n].descriptor.size for n in missing])
            if len(missing) < len(manifest.layers):
                here = len(manifest.layers) - len(missing)
                told(Phase.PULL, f"{here} of {len(manifest.layers)} layers are here already", 0, 0)
            if claim.decrypted or any(layer.encrypted for layer in manifest.layers):
                check_pinned(policy, wanted, digests, signed=signed)
            resolved(str(wanted), digests[-1])
            layer_keys = _layer_keys(manifest, missing, keys, progress)
            filling = Filling(manifest, config.rootfs.diff_ids, layer_keys, claim, told)
            try:
                filling.run(missing, source, connected)
            finally:
                wipe(key.symkey for key in layer_keys.values())
            layers = _published(claim, manifest)
    return Image(str(wanted), digests[-1], config, layers)


@contextmanager
def _naming(wanted: Reference) -> Iterator[None]:
    """Every error says which image of which registry it is about."""
    try:
        yield
    except AgentError as error:
        if wanted.registry in str(error):
            raise
        raise type(error)(error.code, f"{error} (image {wanted})") from error


def _registry(
    wanted: Reference, policy: ImagePolicy, dial: Dial, keys: Keys
) -> Callable[[], Registry]:
    """Connections to where the image comes from. They share credentials, tokens and ways."""
    find = Safe(policy.credentials_uri, keys.resource).find
    return partial(Registry, wanted, policy, Ways(policy, dial, find), Authorizations(find))


def _named(reference: str, policy: ImagePolicy) -> Reference:
    """Raises PullError(REFERENCE_INVALID)."""
    try:
        return parse(registries.completed(policy.registries, reference))
    except registries.RegistriesInvalid as error:
        raise PullError(
            ErrorCode.REFERENCE_INVALID, f"cannot read the image reference: {error}"
        ) from error


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
    while True:
        try:
            blob = source.blob(manifest.config, what)
            return b"".join(verified(blob, manifest.config.digest, what))
        except VerifyError:
            if not source.second_chance(manifest.config):
                raise


def _expect_room(store: Store, wanted: Reference, sizes: Sequence[int]) -> None:
    """What is to be fetched takes at least as much space when it is unpacked (but for a layer that has a
    file several times over). Raises PullError(NO_SPACE)."""
    needed = sum(sizes)
    if needed > space.free_bytes(store.root):
        least = -(-needed // limits.MIB)
        raise PullError(
            ErrorCode.NO_SPACE,
            f"image {wanted} needs more than {least} MiB, and {space.left(store.root)}",
        )


def _layer_keys(
    manifest: Manifest, missing: Sequence[int], keys: Keys, progress: Progress
) -> Mapping[int, LayerKey]:
    """What opens each encrypted layer, by the layer's number."""
    encrypted = [number for number in missing if manifest.layers[number].encrypted]
    if not encrypted:
        return {}
    progress(Phase.DECRYPT, "getting the image's keys", 0, 0)
    opener = Opener(keys)
    return {number: opener.layer_key(manifest.layers[number].descriptor) for number in encrypted}


def _published(claim: Claim, manifest: Manifest) -> tuple[str, ...]:
    encrypted = [number for number, layer in enumerate(manifest.layers) if layer.encrypted]
    try:
        return claim.publish(encrypted)
    except OSError as error:
        raise PullError(
            ErrorCode.NO_SPACE, f"cannot publish the image's layers: {error.strerror}"
        ) from error
