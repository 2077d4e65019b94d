"""What of the host a container gets to see: its root file system where that is the bundle's, and the
sources of its bind mounts.

    a directory or file      shared: what either side writes, the other sees
    an engine's empty volume neither: the guest makes it (volumes.py)
    hosts, hostname, resolv.conf, .containerenv, Podman's secrets
                             copied: small, and prepared for this container alone
    an engine's /etc/passwd and /etc/group
                             neither, where the guest pulls the image: it has that one's
    /dev/shm, devices like /dev/null, and the kernel's own file systems (/proc, /sys, ...) at their own
                             places: neither, the guest has its own

A shared source is opened as a mount of its own (open_tree(2)) by whoever creates the container, in
the caller's mount namespace, and travels to the shim as a descriptor. What a path means is looked up
once, nothing is mounted where the host could see it, and a mount that nobody took ends with its
descriptor. Read-only is what config.json says is read-only: on this mount, not in the guest.

A container with a user namespace works on the shared files as the users that `hostID` names, as it would
on the host: in the guest its ids are mapped to themselves, on this mount they are shifted.
"""

import os
import stat
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from sealrun_protocol import limits, share

from sealrun_runtime import namespaces
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest, cause
from sealrun_runtime.oci_config import Mount

if TYPE_CHECKING:
    from sealrun_protocol.init_data import Host

    from sealrun_runtime.handover import Handover

COPIED: Final = frozenset(("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"))
"""What engines prepare for each container and bind-mount over the image's own, by destination."""

_IMAGE_S: Final = frozenset(("/etc/passwd", "/etc/group"))
SHARED_MEMORY: Final = "/dev/shm"
_KERNEL_S: Final = frozenset(("/proc", "/sys", "/sys/fs/cgroup", "/dev/mqueue", "/dev/pts"))
_OF_VERSION_1: Final = (
    "/sys/fs/cgroup/systemd"  # beside /sys/fs/cgroup, for systemd; no guest has it
)
_DEVICES: Final = frozenset(("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"))
_SECRETS: Final = "secrets"  # in Podman's bundles: copies of the container's secrets
_NOBODY: Final = -1
_RESTRICTED: Final = (
    namespaces.MOUNT_ATTR_NOSUID
    | namespaces.MOUNT_ATTR_NODEV
    | namespaces.MOUNT_ATTR_NOEXEC
    | namespaces.MOUNT_ATTR_NOSYMFOLLOW
)
"""For a server that opens files by name at a guest's word, and has none of this to do."""
_PROPAGATED: Final = frozenset(("slave", "rslave", "shared", "rshared"))


class Plan(NamedTuple):
    """root: whether the root file system is shared. shared, copied: indices of mounts."""

    root: bool
    shared: tuple[int, ...]
    copied: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """What the shared things are called in the guest's part of the tree, in the order in which
        their descriptors travel."""
        return (*((share.ROOT,) if self.root else ()), *map(str, self.shared))


class Tree(NamedTuple):
    """A shared source as a mount that is nowhere yet. destination: in the container."""

    descriptor: int
    destination: str
    directory: bool


class Sources(NamedTuple):
    """Open sources. for_guest: as Plan.names says. for_stand_in: of the mounts alone."""

    for_guest: tuple[int, ...]
    for_stand_in: tuple[Tree, ...]


def plan(
    container: ContainerSpec, image: str, *, own: Collection[int] = (), idle: bool = False
) -> Plan:
    """What the guest gets. image: the reference; empty where the root is the bundle's directory.
    own: mounts that the guest makes by itself. idle: the container runs nothing in the guest."""
    if idle:
        return Plan(False, (), ())
    binds = [
        index
        for index, mount in enumerate(container.mounts)
        if is_bind(mount)
        and not _is_the_guest_s(mount)
        and not (image and _is_the_image_s(container, mount))
    ]
    copied = tuple(index for index in binds if _is_copied(container, container.mounts[index]))
    shared = tuple(index for index in binds if index not in copied and index not in own)
    return Plan(not image, shared, copied)


def planned(handover: "Handover") -> Plan:
    """What `create` resolved."""
    container, image = handover.container, handover.image
    return plan(container, image, own=handover.volumes, idle=handover.idle)


def check(container: ContainerSpec, given: Plan, host: "Host | None") -> None:
    """host: what the tenant allows; None where no tenant says anything. The guest decides; what it
    would refuse is refused before a VM boots. Raises InvalidRequest."""
    for index, mount in enumerate(container.mounts):
        if mount.type == "overlay":
            raise InvalidRequest(
                f"$.mounts[{index}]: an overlay of the host's directories at {mount.destination} is not "
                "supported",
                remedy="share a directory (--volume without O), or let the guest pull the image",
            )
    if len(given.names) > limits.SHARES:
        raise InvalidRequest(f"$.mounts: more than {limits.SHARES} are directories of the host")
    for index in given.shared:
        destination = container.mounts[index].destination
        if host is not None and not host.may_share_at(destination):
            raise InvalidRequest(
                f"$.mounts[{index}]: the init-data does not allow a directory of the host at "
                f"{destination}",
                remedy="name the place in [host] insecure_shared_directories of the init-data, do without "
                "the volume, or, where nothing of the host's is meant, name it in the annotation "
                "io.sealrun.ephemeral-volumes",
            )


def source_of(container: ContainerSpec, index: int) -> str:
    """The path on the host. config.md: a relative one is relative to the bundle."""
    return os.path.join(container.bundle, container.mounts[index].source)


@contextmanager
def open_sources(container: ContainerSpec, given: Plan) -> Iterator[Sources]:
    """The sources, for as long as the block lasts. Raises InvalidRequest."""
    with ExitStack() as opened:
        guest: list[int] = []
        stand_in: list[Tree] = []
        users = _users(container, opened) if given.names else _NOBODY
        if given.root:
            options = ("rbind", "ro") if container.rootfs_readonly else ("rbind",)
            mount = Mount(destination="/", source=container.rootfs, options=options)
            guest.append(_open("$.root", container.rootfs, mount, users, opened).descriptor)
        for index in given.shared:
            mount, path = container.mounts[index], source_of(container, index)
            # One for each: a mount can be moved once.
            guest.append(_open(f"$.mounts[{index}]", path, mount, users, opened).descriptor)
            stand_in.append(_open(f"$.mounts[{index}]", path, mount, users, opened))
        yield Sources(tuple(guest), tuple(stand_in))


def _users(container: ContainerSpec, opened: ExitStack) -> int:
    """A user namespace whose maps lead from the owners on the disk to those in the container; _NOBODY
    where they are the same. Raises InvalidRequest."""
    shifted = (*container.uid_mappings, *container.gid_mappings)
    if all(one.host_id == one.container_id for one in shifted):
        return _NOBODY
    maps = (
        "".join(f"{one.host_id} {one.container_id} {one.size}\n" for one in mappings)
        for mappings in (container.uid_mappings, container.gid_mappings)
    )
    try:
        users = namespaces.user_namespace(*maps)
    except OSError as error:  # a rootless engine's root may map only ranges within its own
        raise _not_shifted("$.linux.uidMappings: cannot share files", error) from error
    opened.callback(os.close, users)
    return users


def _open(where: str, path: str, mount: Mount, users: int, opened: ExitStack) -> Tree:
    """users: of _users. Raises InvalidRequest."""
    options = mount.options or ()
    try:
        descriptor = namespaces.clone_tree(path, recursive="rbind" in options)
        opened.callback(os.close, descriptor)
        # What the host mounts there later is seen where that is asked for, never the other way round.
        wanted = bool(_PROPAGATED.intersection(options))
        propagation = namespaces.MS_SLAVE if wanted else namespaces.MS_PRIVATE
        namespaces.restrict_tree(descriptor, _RESTRICTED, propagation, recursive=True)
        access = [option for option in options if option in {"ro", "rro", "rw", "rrw"}]
        if access and access[-1] in {"ro", "rro"}:
            readonly = namespaces.MOUNT_ATTR_RDONLY
            namespaces.restrict_tree(descriptor, readonly, recursive="rro" in options)
        if users != _NOBODY:
            _map(where, path, descriptor, users, recursive="rbind" in options)
        kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    except OSError as error:
        raise InvalidRequest(f"{where}: cannot share {path}: {cause(error)}") from error
    if kind not in (stat.S_IFDIR, stat.S_IFREG):
        raise InvalidRequest(
            f"{where}: cannot share {path}: a {_KINDS[kind]} of the host is of no use in a VM"
        )
    # The specification, since 1.2: a relative destination is relative to the root.
    return Tree(descriptor, os.path.join("/", mount.destination), kind == stat.S_IFDIR)


def _map(where: str, path: str, descriptor: int, users: int, *, recursive: bool) -> None:
    try:
        namespaces.map_tree(descriptor, users, recursive=recursive)
    except OSError as error:
        raise _not_shifted(f"{where}: cannot share {path}", error) from error


def _not_shifted(what: str, error: OSError) -> InvalidRequest:
    remedy = "do without a user namespace (--userns)" + (
        ", or without files of the host: only the host's root may mount them so"
        if namespaces.is_rootless()
        else ""
    )
    return InvalidRequest(
        f"{what} with a container that has a user namespace: their file system cannot be mounted with "
        f"other owners: {cause(error)}",
        remedy=remedy,
    )


_KINDS: Final = {
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "fifo",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


def is_bind(mount: Mount) -> bool:
    """Whether the source of a mount is a directory or file of the host."""
    if mount.type in ("", "none"):
        return bool({"bind", "rbind"}.intersection(mount.options or ()))
    return mount.type == "bind"


def _is_the_guest_s(mount: Mount) -> bool:
    if mount.destination == SHARED_MEMORY or mount.source in _DEVICES:
        return True
    kernel_s = mount.destination in _KERNEL_S or mount.destination == _OF_VERSION_1
    return kernel_s and mount.source == mount.destination


def _is_the_image_s(container: ContainerSpec, mount: Mount) -> bool:
    """Whether an engine wrote this from its own copy of the image, for a user whom that does not know and
    under a root that is read-only (Podman), or for any user (CRI-O): the guest has the image itself."""
    directory, _, name = mount.source.rpartition("/")
    # GRAPHROOT/DRIVER-containers/ID/userdata is the bundle, RUNROOT/DRIVER-containers/ID/userdata is like it.
    place = container.bundle.split("/")[-3:]
    own = directory.split("/")[-3:] == place and place[-1] == "userdata"
    return own and mount.destination in _IMAGE_S and mount.destination == f"/etc/{name}"


def _is_copied(container: ContainerSpec, mount: Mount) -> bool:
    secrets = os.path.join(container.bundle, _SECRETS)
    source = os.path.normpath(os.path.join(container.bundle, mount.source))
    return mount.destination in COPIED or os.path.dirname(source) == secrets
