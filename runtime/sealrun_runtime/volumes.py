"""Which bind mounts are places for a container to write to and nothing of the host's, so that the guest
makes them by itself, on its own disk (sealrun_protocol/volume.py). The host's directory stays empty.

    /…/pods/UID/volumes/kubernetes.io~empty-dir/NAME    kubelet's emptyDir; a tmpfs with medium: Memory
    /…/volumes/64 DIGITS/_data                          Podman's anonymous volumes: `-v /data`, VOLUME of images
    /…/io.containerd.grpc.v1.cri/containers/ID/volumes/ID   containerd's, for VOLUME of images
    /…/overlay-containers/ID/userdata/run/secrets       where Podman puts a container's secrets
    what the annotation io.sealrun.ephemeral-volumes names, places in the container, with commas between

Those of the first four that are not empty are shared like any other directory (sharing.py), and the log
says so: nothing that is there is hidden from the container. So are all four where the root file system is the bundle's
directory: then the host has everything anyway, and Podman has filled the volumes itself.
"""

import os
import re
import stat
from collections.abc import Iterable
from typing import Final

import msgspec
from sealrun_protocol.volume import Volume

from sealrun_runtime import sharing
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest, cause
from sealrun_runtime.oci_config import IdMapping

ANNOTATION: Final = "io.sealrun.ephemeral-volumes"

_KUBELET: Final = re.compile(r"/.*/pods/[^/]+/volumes/kubernetes\.io~empty-dir/[^/]+")
_SUBPATH: Final = re.compile(r"(/.*/pods/[^/]+)/volume-subpaths/([^/]+)/[^/]+/[0-9]+")
_PODMAN: Final = re.compile(r"/.*/volumes/[^/]+/_data")
_ANONYMOUS: Final = re.compile(r"/.*/volumes/[0-9a-f]{64}/_data")
_CONTAINERD: Final = re.compile(
    r"/.*/io\.containerd\.grpc\.v1\.cri/containers/[^/]+/volumes/[0-9a-f]+"
)
_SECRETS: Final = re.compile(r"/.*/[a-z0-9]+-containers/[^/]+/userdata/run/secrets")
_MOUNTS: Final = "/proc/self/mountinfo"
_OVERFLOW_ID: Final = 65534  # Linux' word for an id that has no name in a user namespace


def find(container: ContainerSpec, image: str, *, alone: bool) -> dict[int, Volume]:
    """The volumes by index of the mount. image: the reference; empty where the root is the bundle's
    directory. alone: not in a pod, whose annotations are those of all its containers. Raises
    InvalidRequest."""
    named = _named(container, alone=alone)
    found = {}
    for index in sharing.plan(container, image).shared:
        path = os.path.normpath(sharing.source_of(container, index))
        chosen = _place(container.mounts[index].destination) in named
        if image and not chosen and _is_part_of_emptydir(path):
            # Containers that have all of it have it in the guest.
            raise InvalidRequest(
                f"$.mounts[{index}]: a subPath of an emptyDir is not supported: {path}",
                remedy="mount the whole volume, and let the container use a directory in it",
            )
        if chosen or (image and _is_engines(path) and _is_empty(path)):
            found[index] = _volume(container, index, path)
    return found


def noted(container: ContainerSpec, shared: Iterable[int]) -> ContainerSpec:
    """With a line for the log for each engine's volume that is shared because something is in it."""
    lines = (
        f"$.mounts[{index}]: {container.mounts[index].destination} is shared with the host: its directory "
        f"there is not empty; {ANNOTATION} would make it the guest's own"
        for index in shared
        if _is_engines(os.path.normpath(sharing.source_of(container, index)))
    )
    return msgspec.structs.replace(container, left_out=(*container.left_out, *lines))


def _named(container: ContainerSpec, *, alone: bool) -> set[str]:
    """Places of the annotation. Raises InvalidRequest."""
    text = container.annotations.get(ANNOTATION, "")
    named = {_place(word.strip()) for word in text.split(",") if word.strip()}
    there = {_place(mount.destination) for mount in container.mounts}
    for place in sorted(named - there):
        if alone:
            raise InvalidRequest(f"annotation {ANNOTATION}: nothing is mounted at {place[:200]}")
    return named


def _place(destination: str) -> str:
    return os.path.normpath(os.path.join("/", destination))


def _is_engines(path: str) -> bool:
    kinds = (_KUBELET, _ANONYMOUS, _CONTAINERD, _SECRETS)
    return any(kind.fullmatch(path) for kind in kinds)


def _is_part_of_emptydir(path: str) -> bool:
    found = _SUBPATH.fullmatch(path)
    return found is not None and os.path.isdir(
        f"{found[1]}/volumes/kubernetes.io~empty-dir/{found[2]}"
    )


def _is_empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            return next(entries, None) is None
    except OSError:
        return False  # whoever opens it to share it says why


def _volume(container: ContainerSpec, index: int, path: str) -> Volume:
    """Raises InvalidRequest."""
    try:
        about = os.stat(path)
    except OSError as error:
        raise InvalidRequest(f"$.mounts[{index}]: cannot read {path}: {cause(error)}") from error
    if not stat.S_ISDIR(about.st_mode):
        raise InvalidRequest(f"annotation {ANNOTATION}: {path} is no directory")
    size = _tmpfs_bytes(path)
    return Volume(
        name=path,
        mode=stat.S_IMODE(about.st_mode),
        uid=_inside(about.st_uid, container.uid_mappings),
        gid=_inside(about.st_gid, container.gid_mappings),
        memory=size is not None,
        size=size or 0,
        copy_up=bool(_PODMAN.fullmatch(path) or _CONTAINERD.fullmatch(path)),
    )


def _inside(number: int, mappings: Iterable[IdMapping]) -> int:
    """What an owner on the host is called in the container."""
    mappings = tuple(mappings)
    for one in mappings:
        if one.host_id <= number < one.host_id + one.size:
            return number - one.host_id + one.container_id
    return _OVERFLOW_ID if mappings else number


def _tmpfs_bytes(path: str) -> int | None:
    """The size of the tmpfs that is mounted at `path`, 0 where it was not given one; None where it is none."""
    found = None
    with open(_MOUNTS, encoding="utf-8", errors="surrogateescape") as mounts:
        for line in mounts:
            fields, _, more = line.rstrip("\n").partition(" - ")
            if fields.split(" ")[4] == path:  # the last one is on top
                found = more.split(" ")
    if found is None or found[0] != "tmpfs":
        return None
    given = any(option.startswith("size=") for option in found[2].split(","))
    about = os.statvfs(path)
    return about.f_blocks * about.f_frsize if given else 0
