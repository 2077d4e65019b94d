"""What a container is made of: which image, who says so, and whether an image said it of itself; or
the directory on the host that the bundle names.

Looked at in this order, the first that speaks wins:

1. the annotation `io.sealrun.image`;
2. CRI-O's annotations: a `repository@digest` of ImageRepoDigests (the one of the repository that was
   asked for, else the first), else ImageName, else Image. Where CRI-O's storage, which is Podman's, has
   a stub (stub.py), what that one stands for: the digests of the annotation are those of the stub.
   containerd's annotation image-name: what the pod asked for, of containerd 2 in the very words, so that
   a name without a registry is Docker's, as it is to containerd;
3. Podman's storage, found from the bundle's path GRAPHROOT/DRIVER-containers/ID/userdata: container
   id -> image id -> name. The digest is used instead of the tag where it is known to be a
   registry's: the stored manifest has compressed layers only (a built image's are not until it is
   pushed), and the image was never known under another repository; of a stub (stub.py), which has no
   layers, where it says which digest of its own repository it stands for.

Where nobody names an image that a guest could pull (a plain bundle, `podman run --rootfs`, an image
that was built here), the root file system is the bundle's directory, if operator (`image.source`) and
tenant allow that (`choose`).

**Annotations of images are not obeyed.** Podman before 5 copies the annotations of an image's
manifest into config.json, where they look like the user's. Whoever writes an image could then name
another image, a key broker, or sizes, and thereby what this host's relay connects to. So where
its storage is found, which is CRI-O's too, an annotation that we act upon and that stands in the
image's manifest with the same value is an error, and so is one where the manifest is not there to be
compared with (`refuse_annotations_of_image`). Engines that keep no such storage do not copy annotations:
containerd passes on those of the pod that its settings name, or of the command line.
"""

import os
import re
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec

from sealrun_runtime import pod
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest
from sealrun_runtime.systemd import properties

IMAGE: Final = "io.sealrun.image"
INIT_DATA: Final = "io.sealrun.init-data"
KATA_INIT_DATA: Final = "io.katacontainers.config.hypervisor.cc_init_data"
_CRIO: Final = "io.kubernetes.cri-o."
_CRIO_KEYS: Final = ("ImageRepoDigests", "ImageName", "Image")
_CONTAINERD: Final = "io.kubernetes.cri.image-name"
_DOCKER: Final = ("docker.io", "index.docker.io")
_NAMELESS: Final = re.compile(r"(sha256:)?[0-9a-f]{64}")
_OURS: Final = "io.sealrun."

BUNDLE: Final = "bundle"
NOTHING: Final = "nothing"
REMEDY: Final = f"name it with the annotation {IMAGE}=REGISTRY/REPOSITORY:TAG"
_REFERENCE_CHARACTERS: Final = 512
_BUNDLE: Final = re.compile(
    r"(?P<root>/.+)/(?P<driver>[a-z0-9]+)-containers/(?P<id>[^/]+)/userdata"
)
# CRI-O's bundle is below the run root, with the same path from there on.
_ROOTFS: Final = re.compile(r"(?P<root>/.+)/overlay/[^/]+/merged")
_DIGEST: Final = re.compile(r".+@sha256:[0-9a-f]{64}")
# Of the image that an image stands for (stub.py): OCI image specification, annotations.md.
BASE_NAME: Final = "org.opencontainers.image.base.name"
BASE_DIGEST: Final = "org.opencontainers.image.base.digest"
_COMPRESSED: Final = ("gzip", "zstd")


_Entry = TypeVar("_Entry")
_Value = TypeVar("_Value")


class NoReference(InvalidRequest):
    """Nobody names an image that a guest could pull."""


class ImageReference(NamedTuple):
    """`registry/repository@digest` or `registry/repository:tag`, and who named it. Empty with the
    source `bundle` where the root file system is the bundle's directory, with `nothing` where the
    container runs nothing."""

    reference: str
    source: str


class _Container(msgspec.Struct, frozen=True):
    id: str
    image: str = ""
    metadata: str = ""


class _Metadata(msgspec.Struct, frozen=True, rename="kebab"):
    image_name: str = ""


class _Image(msgspec.Struct, frozen=True, rename="kebab"):
    id: str
    names: tuple[str, ...] | None = None
    names_history: tuple[str, ...] | None = None

    def known_as(self) -> tuple[str, ...]:
        """All names that the image has or had."""
        return tuple(dict.fromkeys((*(self.names or ()), *(self.names_history or ()))))


class _Layer(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str = ""


class _Manifest(msgspec.Struct, frozen=True):
    layers: tuple[_Layer, ...] = ()
    annotations: dict[str, str] | None = None


class StoredImage(NamedTuple):
    """What Podman's storage knows about the image of a container. `manifest`: as stored, may be
    empty."""

    name: str
    known_as: tuple[str, ...]
    manifest: bytes

    def annotations(self) -> dict[str, str]:
        """Those that the image's own manifest carries."""
        return self._decoded().annotations or {}

    def stands_for(self) -> str:
        """Of a stub: the `repository@digest` that it was made of. Empty for any other image."""
        name, digest = (self.annotations().get(key, "") for key in (BASE_NAME, BASE_DIGEST))
        found = f"{repository(name)}@{digest}"
        is_stub = not self._decoded().layers and name in (self.name, *self.known_as)
        return found if is_stub and _DIGEST.fullmatch(found) else ""

    def registry_digest(self) -> str:
        """The digest under which the registry of `name` has the image; empty where not known."""
        if (stub := self.stands_for()) and repository(stub) == repository(self.name):
            return stub.partition("@")[2]
        layers = self._decoded().layers
        if not layers or not all(layer.media_type.endswith(_COMPRESSED) for layer in layers):
            return ""
        repositories = {repository(name) for name in self.known_as if not _is_local(name)}
        if repositories != {repository(self.name)}:
            return ""
        import hashlib  # OpenSSL, seldom needed

        return f"sha256:{hashlib.sha256(self.manifest).hexdigest()}"

    def _decoded(self) -> _Manifest:
        if not self.manifest:
            return _Manifest()
        try:
            return msgspec.json.decode(self.manifest, type=_Manifest)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidRequest(
                f"cannot read the stored manifest of {self.name}: {error}"
            ) from error


def choose(
    container: ContainerSpec,
    stored: StoredImage | None,
    source: Literal["auto", "guest", "bundle"],
    *,
    shared_root: bool,
) -> ImageReference:
    """The container's image, or that it runs from the bundle's directory.

    source: the setting image.source. shared_root: whether the tenant allows the latter, as far as
    that can be said before a TEE is in play. Raises InvalidRequest."""
    if source == "bundle":
        return _bundle_root(container, shared_root=shared_root)
    try:
        return find(container, stored)
    except NoReference as error:
        if source == "guest":
            raise
        try:
            return _bundle_root(container, shared_root=shared_root)
        except InvalidRequest as second:
            text = f"{error.text}, and {second.text}"
            raise InvalidRequest(text, remedy=error.remedy) from second


def _bundle_root(container: ContainerSpec, *, shared_root: bool) -> ImageReference:
    if not shared_root:
        raise InvalidRequest("the init-data does not allow a root that the host shares")
    if not os.path.isdir(container.rootfs):
        raise InvalidRequest(f"$.root.path: {container.rootfs} is not a directory")
    return ImageReference("", BUNDLE)


def find(container: ContainerSpec, stored: StoredImage | None) -> ImageReference:
    """The container's image. Raises NoReference where nobody names one that could be pulled,
    InvalidRequest where what somebody names is none."""
    annotations = container.annotations
    if annotations.get(IMAGE):
        return _checked(annotations[IMAGE], f"annotation {IMAGE}")
    found = _of_crio(annotations)
    if found:
        return _checked((stored and stored.stands_for()) or found, "annotations of CRI-O")
    found = annotations.get(_CONTAINERD, "")
    if found and not _is_local(found) and not _NAMELESS.fullmatch(found):
        return _checked(_with_registry(found), f"annotation {_CONTAINERD}")
    if stored is not None and stored.name:
        return _of_podman(stored)
    raise NoReference(
        "no image reference: neither an annotation nor Podman names one", remedy=REMEDY
    )


def refuse_annotations_of_image(container: ContainerSpec, stored: StoredImage | None) -> None:
    """Raise InvalidRequest where an annotation that we act upon came from the image itself, or may
    have come from there."""
    if stored is None:
        return
    of_image = stored.annotations()
    for name, value in container.annotations.items():
        if not _acted_upon(name):
            continue
        if not stored.manifest:
            raise InvalidRequest(
                f"cannot tell who set the annotation {name}: "
                "Podman's storage has no manifest of the image",
                remedy="pull the image into the default image store",
            )
        if of_image.get(name) == value:
            raise InvalidRequest(
                f"the image itself sets the annotation {name}, which it has no right to",
                remedy="do not trust this image, or build it without the annotation",
            )


def stored_image(container: ContainerSpec) -> StoredImage | None:
    """What Podman's or CRI-O's storage knows about the container's image; None where it is none of theirs,
    or has no image (`podman run --rootfs`). Raises InvalidRequest where the storage is not as known."""
    match = _BUNDLE.fullmatch(container.bundle)
    if not match:
        return None
    driver, container_id = match["driver"], match["id"]
    graph = _ROOTFS.fullmatch(container.rootfs)
    for root in dict.fromkeys((match["root"], graph["root"] if graph else match["root"])):
        containers: list[_Container] = []
        for name in ("containers.json", "volatile-containers.json"):
            containers += _load(f"{root}/{driver}-containers/{name}", list[_Container])
        entry = next((one for one in containers if one.id == container_id), None)
        if entry is not None:
            break
    if entry is None or not entry.image:
        return None
    metadata = (
        _decode(entry.metadata.encode(), _Metadata, container.bundle) if entry.metadata else None
    )
    images = _load(f"{root}/{driver}-images/images.json", list[_Image])
    image = next((one for one in images if one.id == entry.image), None)
    known_as = image.known_as() if image else ()
    return StoredImage(
        name=_full_name(metadata.image_name if metadata else "", known_as),
        known_as=known_as,
        manifest=_read(f"{root}/{driver}-images/{entry.image}/manifest"),
    )


def repository(reference: str) -> str:
    """A reference without its tag and digest."""
    name = reference.partition("@")[0]
    head, slash, last = name.rpartition("/")
    return head + slash + last.partition(":")[0]


def _full_name(name: str, known_as: tuple[str, ...]) -> str:
    """`name` with its registry: the user may have typed a short name."""
    if not name or "/" in name:
        return name or next(iter(known_as), "")
    wanted = name if ":" in name or "@" in name else f"{name}:latest"
    return next((full for full in known_as if full.endswith(f"/{wanted}")), name)


def _of_crio(annotations: dict[str, str]) -> str:
    """Empty where it names none that a guest could pull."""
    digests, image_name, image = (annotations.get(_CRIO + key, "") for key in _CRIO_KEYS)
    candidates = [
        one for one in digests.split(",") if _DIGEST.fullmatch(one) and not _is_local(one)
    ]
    image_name, image = ("" if _is_local(name) else name for name in (image_name, image))
    asked = {repository(name) for name in (image_name, image) if name}
    for candidate in candidates:
        if repository(candidate) in asked:
            return candidate
    return candidates[0] if candidates else image_name or image


def _with_registry(name: str) -> str:
    """By the rules that containerd pulls by (reference.ParseDockerRef)."""
    registry, slash, rest = name.partition("/")
    if not slash or not ("." in registry or ":" in registry):
        registry, rest = _DOCKER[0], name
    if registry in _DOCKER:
        return f"{_DOCKER[0]}/{rest if '/' in rest else f'library/{rest}'}"
    return name


def _of_podman(stored: StoredImage) -> ImageReference:
    name = stored.name
    if _is_local(name) or "/" not in name:
        others = [other for other in stored.known_as if "/" in other and not _is_local(other)]
        known = f"; the image is also known as {', '.join(others[:3])}" if others else ""
        raise NoReference(
            f"no image reference: {name} has no registry that a guest could pull it from",
            remedy=REMEDY + known,
        )
    if "@" not in name:
        digest = stored.registry_digest()
        if digest:
            name = f"{repository(name)}@{digest}"
        elif ":" not in name.rpartition("/")[2]:
            name += ":latest"
    return _checked(name, "Podman's storage")


def _checked(reference: str, source: str) -> ImageReference:
    """What is plainly no reference fails here, before a VM boots. The guest parses it for good."""
    registry, slash, rest = reference.partition("/")
    if (
        len(reference) > _REFERENCE_CHARACTERS
        or not reference.isascii()
        or not reference.isprintable()
    ):
        problem = "it has characters that references do not have, or too many"
    elif " " in reference or "://" in reference or not slash or not rest:
        problem = "write it as REGISTRY/REPOSITORY:TAG"
    elif registry == "localhost" or not ("." in registry or ":" in registry):
        problem = "it names no registry"
    else:
        return ImageReference(reference, source)
    raise InvalidRequest(
        f"cannot use image reference {reference[:120]!r} ({source}): {problem}", remedy=REMEDY
    )


def _is_local(name: str) -> bool:
    return name.startswith("localhost/")


def _acted_upon(name: str) -> bool:
    crio = name.startswith(_CRIO) and name.removeprefix(_CRIO) in _CRIO_KEYS
    ours = name.startswith((_OURS, properties.PREFIX)) or name == _CONTAINERD
    return crio or ours or name == KATA_INIT_DATA or name in pod.ANNOTATIONS


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # this engine, or this version of it, keeps no such file
        return b""


def _load(path: str, kind: type[list[_Entry]]) -> list[_Entry]:
    content = _read(path)
    return _decode(content, kind, path) if content else []


def _decode(content: bytes, kind: type[_Value], path: str) -> _Value:
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        text = f"cannot find the image in Podman's storage: {path}: {error}"
        raise InvalidRequest(text, remedy=REMEDY) from error
