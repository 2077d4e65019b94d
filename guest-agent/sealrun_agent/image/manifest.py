"""Manifests, indexes and configurations: bytes in, checked values out. No I/O.

OCI image specification 1.1 (manifest.md, image-index.md, config.md, descriptor.md) and Docker's
Image Manifest Version 2, Schema 2. Rules, in order:

1. The `mediaType` member decides what a document is; where it is missing, the registry's
   Content-Type does. A document with both `manifests` and `layers` is refused: two readers could
   take it for two different images.
2. From an index the first entry for linux, this architecture and the best variant is taken.
   Entries without a platform are never taken: attestations and signatures are stored that way.
3. A manifest names one configuration and at most limits.LAYERS layers of known media types.
4. The configuration is for this platform and names one diff_id for each layer.
"""

import hashlib
import os
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
from sealrun_protocol import limits
from sealrun_protocol.decoding import from_json
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import PullError, VerifyError
from sealrun_agent.image.reference import is_sha256

_T = TypeVar("_T")

INDEX_TYPES: Final = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFEST_TYPES: Final = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
CONFIG_TYPES: Final = (
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
)
ENCRYPTED: Final = "+encrypted"

_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
_FOREIGN_TAR: Final = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_TAR: Final = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN_TAR: Final = "application/vnd.docker.image.rootfs.foreign.diff.tar"
_COMPRESSION: Final = {
    _TAR: "",
    f"{_TAR}+gzip": "gzip",
    f"{_TAR}+zstd": "zstd",
    _FOREIGN_TAR: "",
    f"{_FOREIGN_TAR}+gzip": "gzip",
    f"{_FOREIGN_TAR}+zstd": "zstd",
    _DOCKER_TAR: "",
    f"{_DOCKER_TAR}.gzip": "gzip",
    f"{_DOCKER_TAR}.zstd": "zstd",
    f"{_DOCKER_FOREIGN_TAR}.gzip": "gzip",
}
# uname's machine → architecture and the variants this CPU surely runs, best first. An entry without
# variant counts as "". amd64's v2 to v4 are not listed: the CPU of the VM may lack them.
_PLATFORMS: Final = {
    "x86_64": ("amd64", ("", "v1")),
    "aarch64": ("arm64", ("v8", "")),
    "ppc64le": ("ppc64le", ("",)),
    "riscv64": ("riscv64", ("",)),
    "s390x": ("s390x", ("",)),
}


class Platform(NamedTuple):
    """What this guest runs. variants: acceptable ones, best first."""

    architecture: str
    variants: tuple[str, ...]

    def __str__(self) -> str:
        return f"linux/{self.architecture}"


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    """Names a blob or manifest by digest and size in bytes (descriptor.md)."""

    digest: str
    size: int
    media_type: str = ""
    annotations: dict[str, str] = {}


class Layer(NamedTuple):
    """A layer as the manifest describes it. compression: "", "gzip" or "zstd"."""

    descriptor: Descriptor
    compression: str
    encrypted: bool


class Manifest(NamedTuple):
    """An image manifest. Layers are lowest first."""

    config: Descriptor
    layers: tuple[Layer, ...]


class RootFs(msgspec.Struct, frozen=True):
    """diff_ids: digests of the uncompressed layers, lowest first."""

    diff_ids: tuple[str, ...]


class Defaults(msgspec.Struct, frozen=True, rename="pascal"):
    """What the image gives to a process that is not told otherwise; None = it does not say."""

    user: str | None = None
    env: tuple[str, ...] | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str | None = None
    volumes: dict[str, Any] | None = None


class ImageConfig(msgspec.Struct, frozen=True):
    """The image's configuration (config.md), as far as the guest uses it."""

    architecture: str
    os: str
    rootfs: RootFs
    config: Defaults | None = None


class _IndexPlatform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""


class _IndexEntry(Descriptor, frozen=True, rename="camel"):
    platform: _IndexPlatform | None = None


class _Index(msgspec.Struct, frozen=True):
    manifests: tuple[_IndexEntry, ...]


class _Manifest(msgspec.Struct, frozen=True):
    config: Descriptor
    layers: tuple[Descriptor, ...]


class _Kind(msgspec.Struct, frozen=True, rename="camel"):
    """The members that tell an index from a manifest."""

    schema_version: int
    media_type: str = ""
    manifests: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    layers: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


def this_platform() -> Platform:
    """From uname(2)."""
    machine = os.uname().machine
    return Platform(*_PLATFORMS.get(machine, (machine, ("",))))


def media_type_of(document: bytes, content_type: str) -> str:
    """One of INDEX_TYPES or MANIFEST_TYPES. Raises VerifyError(MANIFEST_INVALID,
    MEDIA_TYPE_UNSUPPORTED)."""
    kind = _decode(document, _Kind, "manifest")
    media_type = kind.media_type or content_type.partition(";")[0].strip()
    if kind.schema_version != 2:
        raise VerifyError(
            ErrorCode.MEDIA_TYPE_UNSUPPORTED, f"manifest of schema version {kind.schema_version}"
        )
    if kind.manifests is not msgspec.UNSET and kind.layers is not msgspec.UNSET:
        raise VerifyError(
            ErrorCode.MANIFEST_INVALID, "manifest: it is an index and a manifest at once"
        )
    if media_type not in INDEX_TYPES + MANIFEST_TYPES:
        raise VerifyError(
            ErrorCode.MEDIA_TYPE_UNSUPPORTED, f"manifest of media type {_shown(media_type)}"
        )
    return media_type


def select(document: bytes, platform: Platform) -> Descriptor:
    """The entry of an index for this platform. Raises VerifyError(MANIFEST_INVALID,
    LIMIT_EXCEEDED), PullError(PLATFORM_NOT_FOUND)."""
    entries = _decode(document, _Index, "index").manifests
    if len(entries) > limits.INDEX_ENTRIES:
        raise VerifyError(
            ErrorCode.LIMIT_EXCEEDED,
            f"index of {len(entries)} entries: more than {limits.INDEX_ENTRIES}",
        )
    for variant in platform.variants:
        for entry in entries:
            if entry.platform == _IndexPlatform(platform.architecture, "linux", variant):
                return _checked(entry, "index entry", limits.MANIFEST_BYTES)
    offered = sorted({f"{e.platform.os}/{e.platform.architecture}" for e in entries if e.platform})
    raise PullError(
        ErrorCode.PLATFORM_NOT_FOUND,
        f"the image has no variant for {platform}, only for {_shown(', '.join(offered)) or 'none'}",
    )


def parse_manifest(document: bytes) -> Manifest:
    """Raises VerifyError(MANIFEST_INVALID, LIMIT_EXCEEDED, MEDIA_TYPE_UNSUPPORTED)."""
    parsed = _decode(document, _Manifest, "manifest")
    if len(parsed.layers) > limits.LAYERS:
        raise VerifyError(
            ErrorCode.LIMIT_EXCEEDED,
            f"manifest of {len(parsed.layers)} layers: more than {limits.LAYERS}",
        )
    if parsed.config.media_type not in CONFIG_TYPES:
        raise VerifyError(
            ErrorCode.MEDIA_TYPE_UNSUPPORTED,
            f"configuration of media type {_shown(parsed.config.media_type)}: not a container image",
        )
    config = _checked(parsed.config, "configuration", limits.IMAGE_CONFIG_BYTES)
    return Manifest(config, tuple(_layer(descriptor) for descriptor in parsed.layers))


def parse_config(document: bytes, manifest: Manifest, platform: Platform) -> ImageConfig:
    """Raises VerifyError(MANIFEST_INVALID), PullError(PLATFORM_NOT_FOUND)."""
    config = _decode(document, ImageConfig, "configuration")
    if (config.os, config.architecture) != ("linux", platform.architecture):
        raise PullError(
            ErrorCode.PLATFORM_NOT_FOUND,
            f"the image is for {_shown(f'{config.os}/{config.architecture}')}, not for {platform}",
        )
    diff_ids = config.rootfs.diff_ids
    if not all(is_sha256(diff_id) for diff_id in diff_ids):
        raise VerifyError(
            ErrorCode.MANIFEST_INVALID, "configuration: a diff_id is not a sha256 digest"
        )
    if len(diff_ids) != len(manifest.layers):
        raise VerifyError(
            ErrorCode.MANIFEST_INVALID,
            f"configuration: {len(diff_ids)} diff_ids for {len(manifest.layers)} layers",
        )
    return config


def chain_ids(diff_ids: tuple[str, ...]) -> tuple[str, ...]:
    """What each layer, applied on those below it, is called (config.md, Layer ChainID)."""
    chain: list[str] = []
    for diff_id in diff_ids:
        below = f"{chain[-1]} " if chain else ""
        chain.append(
            f"sha256:{hashlib.sha256(f'{below}{diff_id}'.encode()).hexdigest()}"
            if below
            else diff_id
        )
    return tuple(chain)


def _layer(descriptor: Descriptor) -> Layer:
    plain_type = descriptor.media_type.removesuffix(ENCRYPTED)
    compression = _COMPRESSION.get(plain_type)
    if compression is None:
        raise VerifyError(
            ErrorCode.MEDIA_TYPE_UNSUPPORTED, f"layer of media type {_shown(descriptor.media_type)}"
        )
    checked = _checked(descriptor, "layer", limits.LAYER_BLOB_BYTES)
    return Layer(checked, compression, plain_type != descriptor.media_type)


def _checked(descriptor: Descriptor, what: str, limit: int) -> Descriptor:
    if not is_sha256(descriptor.digest):
        raise VerifyError(
            ErrorCode.MANIFEST_INVALID,
            f"{what}: {_shown(descriptor.digest)} is not a sha256 digest",
        )
    if descriptor.size < 0:
        raise VerifyError(ErrorCode.MANIFEST_INVALID, f"{what} {descriptor.digest}: negative size")
    if descriptor.size > limit:
        raise VerifyError(
            ErrorCode.LIMIT_EXCEEDED,
            f"{what} {descriptor.digest} of {descriptor.size} bytes: more than {limit}",
        )
    return descriptor


def _decode(document: bytes, kind: type[_T], what: str) -> _T:
    try:
        return from_json(document, kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise VerifyError(
            ErrorCode.MANIFEST_INVALID, f"cannot read the {what}: {_shown(str(error))}"
        ) from error


def _shown(text: str) -> str:
    """Text of the registry in an error: printable, bounded."""
    return ascii(text[:200])[1:-1]
