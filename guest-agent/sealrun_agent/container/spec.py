"""What the guest accepts of the host's config.json, and the config.json that it writes for crun.

The host describes the container; the guest decides. Nothing is passed through: every value is read
into a type of runtime_spec.py, checked, and written again, so crun never parses a byte that the
host wrote. What is unknown is refused, what is left out stands here, in mounts.py and in linux.py
with the reason:

- prestart, createRuntime, poststart and poststop hooks are left out: the host runs them. createContainer
  and startContainer hooks run here, where the tenant allows them (workload.py).
- annotations are left out: crun obeys some of them (run.oci.*).
- root.path is the host's and means nothing here; the root file system of the image, or the one that
  the host shares, stands in its place.
- strings with NUL (crun reads C strings) are refused.

Texts name the place as JSON path: `process.args[0]: expected str, got int`.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol import limits, messages
from sealrun_protocol.volume import Volume

from sealrun_agent.container import process
from sealrun_agent.container.linux import accept_linux, has_own_users, place_disks
from sealrun_agent.container.mounts import (
    COPY,
    SANDBOX,
    SHARE,
    VOLUME,
    Sources,
    accept_mounts,
    check_absolute,
    is_placed,
)
from sealrun_agent.container.reading import check_for_c, read
from sealrun_agent.container.runtime_spec import Hooks, Mount, Namespace, Root, Spec, refused

_VERSION: Final = "1.0.2"
_NAME_BYTES: Final = 64  # HOST_NAME_MAX, and the kernel's __NEW_UTS_LEN
_SIZES: Final = range(2**63)
_IDS: Final = range(2**32 - 1)  # of users and groups

_encoder = msgspec.json.Encoder()


class OwnVolume(NamedTuple):
    """A volume of the sandbox's own, and where the container has it."""

    destination: str
    volume: Volume


class Accepted(NamedTuple):
    """A container that the guest is willing to run.

    files: what the bundle's `files` directory holds, by name there.
    shared: where in the container something is mounted that the host shares.
    volumes: of the sandbox's own, by the number of the mount.
    network_sysctl: to be set in the VM's network namespace, by name with dots.
    disks: the serials of block devices, by their paths in the container. Numbers of devices in the spec
        are the host's until `with_disks`.
    """

    spec: Spec
    files: dict[str, messages.File]
    shared: tuple[str, ...]
    volumes: dict[str, OwnVolume]
    network_sysctl: dict[str, str]
    disks: dict[str, str]


def accept(request: messages.CreateContainer) -> Accepted:
    """Read and check. Raises StartError(SPEC_REFUSED)."""
    given = read(request.config, Spec, "")
    if not given.ociVersion.startswith("1."):
        raise refused("ociVersion", f"{given.ociVersion!a} is not 1.x")
    for name in ("hostname", "domainname"):
        if len(getattr(given, name).encode()) > _NAME_BYTES:
            raise refused(name, f"it is longer than {_NAME_BYTES} bytes")
    linux = accept_linux(given.linux, request.joins, request.disks, shared_root=request.shared_root)
    sources = Sources(
        request.files,
        request.shared_mounts,
        request.volumes,
        request.shm_bytes,
        pod_shm="ipc" in request.joins,
    )
    mounts = accept_mounts(
        given.mounts or (),
        sources,
        shared_root=request.shared_root,
        own_users=has_own_users(given.linux),
    )
    spec = Spec(
        ociVersion=_VERSION,
        process=process.accept(given.process, request, "process"),
        root=Root(path="", readonly=given.root.readonly),
        hostname=given.hostname,
        domainname=given.domainname,
        mounts=mounts,
        linux=linux.part,
        hooks=_accept_hooks(given.hooks or Hooks()),
    )
    check_for_c("", spec)
    return Accepted(
        spec,
        check_files(request.files),
        tuple(mount.destination for mount in mounts if mount.source.startswith(f"{SHARE}/")),
        _accept_volumes(mounts, request.volumes),
        linux.network_sysctl,
        linux.disks,
    )


def with_disks(accepted: Accepted, numbers: Mapping[str, tuple[int, int]]) -> Accepted:
    """numbers: major and minor of each of its disks in this VM, by path."""
    linux = place_disks(accepted.spec.linux, numbers)
    return accepted._replace(spec=msgspec.structs.replace(accepted.spec, linux=linux))


class Places(NamedTuple):
    """Absolute paths in the guest that take the place of the host's. files: directory of copies.
    share: directory of what the host shares for this container. sandbox: directory of what the containers
    of the pod share; empty where this one joins nothing. volumes: each one's directory, by the
    number of the mount. cgroup: below the root of the cgroup file system, starting with a slash."""

    rootfs: str
    files: str
    share: str
    sandbox: str
    volumes: Mapping[str, str]
    cgroup: str


def render(accepted: Accepted, places: Places) -> bytes:
    """The config.json that crun gets."""
    spec = accepted.spec
    directories = {COPY: places.files, SHARE: places.share, SANDBOX: places.sandbox}

    def path(source: str) -> str:
        kind, _, name = source.partition("/")
        if kind == VOLUME:
            return places.volumes[name]
        return f"{directories[kind]}/{name}"

    def placed(mount: Mount) -> Mount:
        return (
            msgspec.structs.replace(mount, source=path(mount.source)) if is_placed(mount) else mount
        )

    def joined(namespace: Namespace) -> Namespace:
        return Namespace(namespace.type, path(namespace.path)) if namespace.path else namespace

    return _encoder.encode(
        msgspec.structs.replace(
            spec,
            root=Root(path=places.rootfs, readonly=spec.root.readonly),
            mounts=tuple(map(placed, spec.mounts or ())),
            linux=msgspec.structs.replace(
                spec.linux,
                cgroupsPath=places.cgroup,
                namespaces=tuple(map(joined, spec.linux.namespaces or ())),
            ),
        )
    )


def _accept_hooks(given: Hooks) -> Hooks | None:
    """Those that are the guest's."""
    for name in ("createContainer", "startContainer"):
        for index, hook in enumerate(getattr(given, name) or ()):
            check_absolute(f"hooks.{name}[{index}].path", hook.path)
    if not (given.createContainer or given.startContainer):
        return None
    return Hooks(createContainer=given.createContainer, startContainer=given.startContainer)


def _accept_volumes(mounts: tuple[Mount, ...], given: Mapping[int, Volume]) -> dict[str, OwnVolume]:
    found = {}
    for mount in mounts:
        kind, _, number = mount.source.partition("/")
        if kind != VOLUME:
            continue
        volume = given[int(number)]
        if not 0 < len(volume.name.encode()) <= limits.VOLUME_NAME_BYTES:
            raise refused(
                f"mounts[{number}]", "its volume has no name, or a longer one than a path"
            )
        if not 0 <= volume.mode <= 0o7777 or not (volume.uid in _IDS and volume.gid in _IDS):
            raise refused(f"mounts[{number}]", "its volume's mode or owner is none")
        if volume.size not in _SIZES:
            raise refused(f"mounts[{number}]", "its volume's size is none")
        if volume.subpath and (volume.file or not _is_within(volume.subpath)):
            raise refused(
                f"mounts[{number}]", "the part of its volume is no relative path, or of a file"
            )
        found[number] = OwnVolume(mount.destination, volume)
    return found


def _is_within(path: str) -> bool:
    steps = path.split("/")
    known = len(path.encode()) <= limits.VOLUME_NAME_BYTES and "\0" not in path
    return known and not any(step in ("", ".", "..") for step in steps)


def check_files(files: Mapping[int, messages.File]) -> dict[str, messages.File]:
    """Copies by their name in the bundle. Raises StartError(SPEC_REFUSED)."""
    for index, file in files.items():
        if len(file.content) > limits.FILE_BYTES:
            raise refused(f"mounts[{index}]", f"its file is longer than {limits.FILE_BYTES} bytes")
        if not 0 <= file.mode <= 0o777 or not (file.uid in _IDS and file.gid in _IDS):
            raise refused(f"mounts[{index}]", "its file's mode or owner is none")
    return {str(index): file for index, file in files.items()}
