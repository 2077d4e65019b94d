"""An image for an engine that has the configuration of a registry's and none of its layers.

Engines insist on an image to run, and take program, environment, user, ports and labels from it; the
layers only the guest needs. What is stored is an image without layers, whose manifest says in the
standard annotations of an image's base which image it stands for: by its digest `create` then names the
image to the guest, as it would that of an image which Podman or CRI-O pulled.

containerd tells the runtime a name only. Of several names it takes the one that says most, so the stub is
also stored under `repository:tag@digest`.
"""

import hashlib
import os
import re
import subprocess
import tarfile
import tempfile
from typing import Any, Final, NamedTuple

import msgspec

from sealrun_runtime.cache.store import CacheFailed
from sealrun_runtime.cache.upstream import SKOPEO, Upstream
from sealrun_runtime.errors import HostError, InvalidRequest, cause
from sealrun_runtime.image_reference import BASE_DIGEST, BASE_NAME, repository

_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
CTR: Final = "ctr"  # Debian has it in /usr/bin, the tarball of containerd in /usr/local/bin
_NAMESPACE: Final = "k8s.io"  # of the images that containerd has for Kubernetes
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_IMAGE_NAME: Final = "io.containerd.image.name"  # of an index's entry, as containerd reads it
_SECONDS: Final = 120


class Stub(NamedTuple):
    """name: by which the engine knows it. reference: what the guest will pull."""

    name: str
    reference: str


def make(reference: str, *, insecure: bool, authfile: str, containerd: bool = False) -> Stub:
    """Store the stub of `registry/repository[:tag][@digest]` in the storage that Podman and CRI-O share,
    or in containerd's. Raises InvalidRequest, HostError."""
    base, name, version = _parts(reference)
    upstream = Upstream(base, insecure=insecure, authfile=authfile)
    try:
        document = upstream.manifest(version)
        digest = f"sha256:{hashlib.sha256(document).hexdigest()}"
        if version.startswith("sha256:") and version != digest:
            raise HostError(f"cannot make a stub of {reference}: the registry sent {digest}")
        config = _without_layers(upstream.config(digest), f"{name} ({digest})")
    except CacheFailed as error:
        raise HostError(f"cannot make a stub of {reference}: {error}") from error
    if containerd and "@" in reference:
        name = reference
    _store(config, name, digest, containerd=containerd)
    return Stub(name, f"{base}@{digest}")


def _parts(reference: str) -> tuple[str, str, str]:
    """Repository, the stub's name, and the tag or digest that is asked for."""
    name, at, digest = reference.partition("@")
    base = repository(name)
    registry, slash, rest = base.partition("/")
    if (
        not slash
        or not rest
        or not ("." in registry or ":" in registry)
        or (at and not _DIGEST.fullmatch(digest))
        or not reference.isascii()
        or not reference.isprintable()
        or " " in reference
    ):
        raise InvalidRequest(
            f"cannot read the image reference {reference[:120]!r}",
            remedy="write it as REGISTRY/REPOSITORY:TAG or REGISTRY/REPOSITORY@sha256:…",
        )
    tag = name[len(base) + 1 :]
    # Podman finds an image by a digest only where it is that of what is stored.
    tag = tag or (digest[7:19] if at else "latest")
    return base, f"{base}:{tag}", digest or tag


def _without_layers(config: bytes, what: str) -> bytes:
    """what: the image; Podman takes images with the same configuration for one. Raises HostError."""
    try:
        document: dict[str, Any] = msgspec.json.decode(config, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HostError(f"cannot read the image's configuration: {error}") from error
    document["rootfs"] = {"type": "layers", "diff_ids": []}
    document["history"] = [{"created_by": f"sealrun image stub of {what}", "empty_layer": True}]
    return msgspec.json.encode(document)


def _store(config: bytes, name: str, digest: str, *, containerd: bool) -> None:
    """Raises HostError."""
    descriptor = {"mediaType": _CONFIG, "digest": _digest(config), "size": len(config)}
    manifest = msgspec.json.encode(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": descriptor,
            "layers": [],
            "annotations": {BASE_NAME: name, BASE_DIGEST: digest},
        }
    )
    entry = {"mediaType": _MANIFEST, "digest": _digest(manifest), "size": len(manifest)}
    names = (
        list(dict.fromkeys((name, f"{name.partition('@')[0]}@{digest}"))) if containerd else [""]
    )
    entries = [{**entry, "annotations": {_IMAGE_NAME: one}} if one else entry for one in names]
    index = msgspec.json.encode({"schemaVersion": 2, "manifests": entries})
    with tempfile.TemporaryDirectory(prefix="sealrun-stub-") as directory:
        layout = os.path.join(directory, "layout")
        blobs = os.path.join(layout, "blobs/sha256")
        os.makedirs(blobs)
        for path, content in (
            (os.path.join(layout, "oci-layout"), b'{"imageLayoutVersion":"1.0.0"}'),
            (os.path.join(layout, "index.json"), index),
            (os.path.join(blobs, _digest(config)[7:]), config),
            (os.path.join(blobs, _digest(manifest)[7:]), manifest),
        ):
            with open(path, "wb") as file:
                file.write(content)
        if containerd:
            archive = os.path.join(directory, "stub.tar")
            with tarfile.open(archive, "w") as tar:
                tar.add(layout, arcname=".")
            _run([CTR, "--namespace", _NAMESPACE, "images", "import", archive])
        else:
            _run([SKOPEO, "--insecure-policy", "copy", "--quiet", f"oci:{layout}", _stored(name)])


def _stored(name: str) -> str:
    return f"containers-storage:{name}"


def _run(command: list[str]) -> None:
    program = os.path.basename(command[0])
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError as error:
        raise HostError(f"cannot store the stub: {program} is not installed") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        text = cause(error) if isinstance(error, OSError) else f"{program} took too long"
        raise HostError(f"cannot store the stub: {text}") from error
    if done.returncode:
        line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise HostError(f"cannot store the stub: {line[:400]}")


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
