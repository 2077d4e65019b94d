"""Which bind mounts are places for a container to write to and nothing of the host's, so that the guest
makes them by itself, on its own disk (sealrun_protocol/volume.py). The host's directory stays empty.

    /…/pods/UID/volumes/kubernetes.io~empty-dir/NAME    kubelet's emptyDir; a tmpfs with medium: Memory
    /…/pods/UID/volume-subpaths/NAME/CONTAINER/INDEX    a part of it (subPath), which kubelet binds there
    /…/volumes/64 DIGITS/_data                          Podman's anonymous volumes: `-v /data`, VOLUME of images
    /…/io.containerd.grpc.v1.cri/containers/ID/volumes/ID   containerd's, for VOLUME of images
    /…/overlay-containers/ID/userdata/run/secrets       where Podman puts a container's secrets
    /…/pods/UID/containers/NAME/8 DIGITS                the file from which kubelet reads a container's last words: with
                                                        an init-data that does not allow to share it
    what the annotation io.sealrun.ephemeral-volumes names, places in the container, with commas between

Those but the last that are not empty are shared like any other directory (sharing.py), and the log
says so: nothing that is there is hidden from the container. An emptyDir may have directories without files in it: kubelet makes
them for a subPath. Which part that is, the mount table says. So are all of them where the root file system is the bundle's
directory: then the host has everything anyway, and Podman has filled the volumes itself.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import msgspec
from sealrun_protocol.volume import Volume

from sealrun_runtime import mount_table, sharing
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest, cause
from sealrun_runtime.oci_config import IdMapping

if TYPE_CHECKING:
    from sealrun_protocol.init_data import Host

ANNOTATION: Final = "io.sealrun.ephemeral-volumes"

_KUBELET: Final = re.compile(r"/.*/pods/[^/]+/volumes/kubernetes\.io~empty-dir/[^/]+")
_SUBPATH: Final = re.compile(r"(/.*/pods/[^/]+)/volume-subpaths/([^/]+)/[^/]+/[0-9]+")
_TERMINATION: Final = re.compile(r"(/.*/pods/[^/]+/containers/[^/]+)/[0-9a-f]{8}")
_PODMAN: Final = re.compile(r"/.*/volumes/[^/]+/_data")
_ANONYMOUS: Final = re.compile(r"/.*/volumes/[0-9a-f]{64}/_data")
_CONTAINERD: Final = re.compile(
    r"/.*/io\.containerd\.grpc\.v1\.cri/containers/[^/]+/volumes/[0-9a-f]+"
)
_SECRETS: Final = re.compile(r"/.*/[a-z0-9]+-containers/[^/]+/userdata/run/secrets")
_OVERFLOW_ID: Final = 65534  # Linux' word for an id that has no name in a user namespace


def find(
    container: ContainerSpec, image: str, host: "Host | None", *, alone: bool
) -> dict[int, Volume]:
    """The volumes by index of the mount. image: the reference; empty where the root is the bundle's
    directory. host: what the tenant allows; None where no tenant says anything. alone: not in a pod, whose annotations are those of all its containers. Raises
    InvalidRequest."""
    named = _named(container, alone=alone)
    found = {}
    for index in sharing.plan(container, image).shared:
        path = os.path.normpath(sharing.source_of(container, index))
        chosen = _place(container.mounts[index].destination) in named
        whole = _emptydir_of_part(path) or path
        if chosen or (image and _is_engines(whole) and _is_empty(whole)):
            subpath = _subpath(index, path, whole) if whole != path else ""
            found[index] = _volume(container, index, whole, subpath)
        elif (
            image
            and host
            and not host.may_share_at(container.mounts[index].destination)
            and (last_words := _last_words(path))
        ):
            found[index] = last_words
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


def _last_words(path: str) -> Volume | None:
    """None where it is no such file. kubelet makes a new one for each life of a container."""
    match = _TERMINATION.fullmatch(path)
    try:
        about = os.lstat(path)
    except OSError:
        return None  # whoever opens it to share it says why
    if match is None or not stat.S_ISREG(about.st_mode) or about.st_size:
        return None
    return Volume(name=match[1], file=True, mode=stat.S_IMODE(about.st_mode))


def _emptydir_of_part(path: str) -> str:
    """Where the emptyDir is; empty where `path` is no part of one."""
    found = _SUBPATH.fullmatch(path)
    whole = f"{found[1]}/volumes/kubernetes.io~empty-dir/{found[2]}" if found else ""
    return whole if os.path.isdir(whole) else ""


def _subpath(index: int, path: str, whole: str) -> str:
    """Which part of `whole` is mounted at `path`. Raises InvalidRequest."""
    table = mount_table.read()
    part, place = mount_table.at(table, os.path.realpath(path)), os.path.realpath(whole)
    below = mount_table.above(table, place)
    top = os.path.join(below.root, os.path.relpath(place, below.place))
    if part is not None and part.device == below.device:
        found = os.path.relpath(part.root, top)
        with contextlib.suppress(OSError):
            inside = found.partition("/")[0] not in (os.curdir, os.pardir)
            if inside and os.path.samefile(path, f"{place}/{found}"):
                return found
    raise InvalidRequest(
        f"$.mounts[{index}]: cannot tell which part of the emptyDir {whole} is mounted at {path}",
        remedy="mount the whole volume, and let the container use a directory in it",
    )


def _is_empty(path: str) -> bool:
    try:
        with os.scandir(path) as entries:
            if not _KUBELET.fullmatch(path):
                return next(entries, None) is None
            return all(
                entry.is_dir(follow_symlinks=False) and _has_no_file(entry.path)
                for entry in entries
            )
    except OSError:
        return False  # whoever opens it to share it says why


def _has_no_file(directory: str) -> bool:
    """But for directories, of which none has one. Raises OSError."""
    for _, directories, files, top in os.fwalk(directory, onerror=_raise):
        if files or any(stat.S_ISLNK(os.lstat(name, dir_fd=top).st_mode) for name in directories):
            return False
    return True


def _raise(error: OSError) -> None:
    raise error


def _volume(container: ContainerSpec, index: int, path: str, subpath: str) -> Volume:
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
        subpath=subpath,
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
    found = mount_table.at(mount_table.read(), os.path.realpath(path))
    if found is None or found.kind != "tmpfs":
        return None
    given = any(option.startswith("size=") for option in found.options.split(","))
    about = os.statvfs(path)
    return about.f_blocks * about.f_frsize if given else 0
