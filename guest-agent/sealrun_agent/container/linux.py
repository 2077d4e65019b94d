"""What becomes of the `linux` part of the host's config.json (config-linux.md).

Decided by the guest:
- namespaces: always new mount and cgroup ones; new pid, ipc and uts ones, but for those that the
  containers of a pod share (sandbox_namespaces.py). The network is the VM's. A user namespace
  is a new one where it is asked for, but ids are mapped to themselves: `hostID` is of the host, where
  nothing of the container runs, and the image's files have the owners that the image says. Its root has
  no capability over the VM, but owns the files of its kernel: /proc/sys and the like are read-only then.
- cgroupsPath: the guest's own.
- annotations, AppArmor and SELinux labels: left out.

Accepted: masked and read-only paths, seccomp, device rules, propagation of the root, personality, sysctl
of the container's namespaces. Sysctl of the network concern the VM's network, which is the container's;
crun would want a network namespace for them, so the agent sets them (`network_sysctl`).

Left out because they describe the host and mean nothing in the VM: cpuset and NUMA nodes, block
devices' limits, huge pages, RDMA, network classes, swap (the VM has none) and cgroup v1's kernel
memory.

Device nodes: those that every kernel has (devices.py of the protocol), anywhere below /dev; and block devices of the host for
which the host says that the VM has a disk, with that one's numbers (`place_disks`). In a privileged container
(a device rule allows everything) an engine lists every device of the *host*: those are left out, since
the VM does not have them. Any other device was asked for by name, and is refused.

Device rules: the numbers of block devices are the host's, so a rule that names some is kept for those of
the container's disks that it means, with their numbers here, and for nothing else.
"""

import re
from collections.abc import Collection, Mapping
from typing import Final, NamedTuple

import msgspec
from sealrun_protocol import devices as known
from sealrun_protocol import disk_names, limits

from sealrun_agent.container.mounts import SANDBOX, check_absolute
from sealrun_agent.container.reading import check_for_c, read
from sealrun_agent.container.runtime_spec import (
    Cpu,
    Device,
    DeviceRule,
    IdMapping,
    Linux,
    Memory,
    Namespace,
    Personality,
    Resources,
    Seccomp,
    refused,
)

_NAMESPACES: Final = ("pid", "ipc", "uts", "mount", "cgroup")
_SHARED: Final = frozenset({"pid", "ipc", "uts"})
_KNOWN_NAMESPACES: Final = frozenset({"pid", "ipc", "uts", "mount", "cgroup", "network", "user"})
_IDS: Final = 0xFFFF_FFFF
_EXTENTS: Final = 340  # of a map of ids: UID_GID_MAP_MAX_EXTENTS in the kernel
_ROOT_S: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What only its owner's id protects."""
_PROPAGATION: Final = frozenset(
    {"", *(f"{r}{kind}" for r in ("", "r") for kind in ("private", "slave", "shared"))}
)
_PERSONALITIES: Final = frozenset({"LINUX", "LINUX32"})
_OWN_SYSCTL: Final = re.compile(
    r"kernel\.(shm(max|all|mni|_rmid_forced)|msg(max|mnb|mni)|sem|domainname)|fs\.mqueue\.[a-z_]+"
)
_NETWORK_SYSCTL: Final = re.compile(r"net(\.[a-z0-9_-]+)+")
_UNIFIED: Final = re.compile(r"(memory|cpu|pids)\.[a-z_.]+")
_DEVICE_RULE_TYPES: Final = frozenset({None, "a", "b", "c"})
_DISK: Final = re.compile(disk_names.CONTAINER_S)
_ANY: Final = (None, -1)
_DENY: Final = DeviceRule(allow=False, type="a", access="rwm")
_ACCESS: Final = re.compile(r"[rwm]{0,3}")
_ACTION: Final = re.compile(r"SCMP_ACT_(KILL|KILL_PROCESS|KILL_THREAD|TRAP|ERRNO|ALLOW|LOG)")
_ARCHITECTURE: Final = re.compile(r"SCMP_ARCH_[A-Z0-9_]+")
_OPERATOR: Final = re.compile(r"SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)")
_SECCOMP_FLAG: Final = re.compile(r"SECCOMP_FILTER_FLAG_(TSYNC|LOG|SPEC_ALLOW)")


class AcceptedLinux(NamedTuple):
    """For crun, without cgroupsPath; and what the agent sets itself. disks: serials, by the paths of
    devices whose numbers are still the host's."""

    part: Linux
    network_sysctl: dict[str, str]
    disks: dict[str, str]


def accept_linux(
    given: Linux,
    joins: Collection[str] = (),
    disks: Mapping[int, str] | None = None,
    *,
    shared_root: bool = False,
) -> AcceptedLinux:
    """joins: kinds of namespaces that are the pod's. disks: serials of the VM's disks, by index of the
    device. shared_root: the root is a directory of the host. Raises StartError(SPEC_REFUSED)."""
    _check_namespaces(given, joins)
    if given.rootfsPropagation not in _PROPAGATION:
        raise refused("linux.rootfsPropagation", f"{given.rootfsPropagation!a} is not accepted")
    personality = given.personality
    if personality and (personality.flags or personality.domain not in _PERSONALITIES):
        raise refused("linux.personality", f"{personality.domain!a} or a flag is not accepted")
    resources = given.resources or Resources()
    disks = disks or {}
    own_users = has_own_users(given)
    _check_disks(given.devices or (), disks, shared_root=shared_root, own_users=own_users)
    devices = _accept_devices(
        given.devices or (), disks, privileged=_allows_everything(resources.devices or ())
    )
    for name in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(getattr(given, name) or ()):
            check_absolute(f"linux.{name}[{index}]", path)
    sysctl, network_sysctl = split_sysctl(given.sysctl or {})
    part = Linux(
        namespaces=(
            *(
                Namespace(kind, f"{SANDBOX}/{kind}" if kind in joins else "")
                for kind in _NAMESPACES
            ),
            *((Namespace("user"),) if own_users else ()),
        ),
        uidMappings=_accept_mappings("uidMappings", given.uidMappings, wanted=own_users),
        gidMappings=_accept_mappings("gidMappings", given.gidMappings, wanted=own_users),
        devices=devices or None,
        resources=_accept_resources(resources, "linux.resources"),
        maskedPaths=given.maskedPaths,
        readonlyPaths=_readonly_paths(given, own_users=own_users),
        seccomp=_accept_seccomp(given.seccomp),
        sysctl=sysctl or None,
        rootfsPropagation=given.rootfsPropagation,
        personality=personality and Personality(personality.domain),
    )
    found = {(given.devices or ())[index].path: serial for index, serial in disks.items()}
    return AcceptedLinux(part, network_sysctl, found)


def place_disks(part: Linux, numbers: Mapping[str, tuple[int, int]]) -> Linux:
    """An accepted part with the numbers that its disks have in this VM, by path."""
    devices, places = [], []
    for device in part.devices or ():
        here = numbers.get(device.path)
        if here is None:
            devices.append(device)
            continue
        places.append(_Place((device.major, device.minor), here))
        devices.append(msgspec.structs.replace(device, major=here[0], minor=here[1]))
    resources = part.resources
    if resources is not None and resources.devices:
        rules = tuple(one for rule in resources.devices for one in _translated(rule, places))
        resources = msgspec.structs.replace(resources, devices=rules or (_DENY,))
    return msgspec.structs.replace(part, devices=tuple(devices) or None, resources=resources)


class _Place(NamedTuple):
    """Major and minor of a block device."""

    host: tuple[int | None, int | None]
    guest: tuple[int, int]


def _translated(rule: DeviceRule, places: Collection[_Place]) -> tuple[DeviceRule, ...]:
    wanted = (rule.major, rule.minor)
    if rule.type != "b" or all(number in _ANY for number in wanted):
        return (rule,)
    meant = dict.fromkeys(
        place.guest
        for place in places
        if all(one in _ANY or one == other for one, other in zip(wanted, place.host, strict=True))
    )
    return tuple(msgspec.structs.replace(rule, major=major, minor=minor) for major, minor in meant)


def has_own_users(given: Linux) -> bool:
    """Whether the container has a user namespace."""
    return any(namespace.type == "user" for namespace in given.namespaces or ())


def accept_update(resources: bytes) -> Resources:
    """New limits for a container that exists. resources: JSON text of a linux.resources.

    Raises StartError(SPEC_REFUSED)."""
    accepted = _accept_resources(read(resources, Resources, "resources"), "resources")
    accepted = msgspec.structs.replace(accepted, devices=None)
    check_for_c("resources", accepted)
    return accepted


def _readonly_paths(given: Linux, *, own_users: bool) -> tuple[str, ...] | None:
    if not own_users:
        return given.readonlyPaths
    return tuple(dict.fromkeys((*(given.readonlyPaths or ()), *_ROOT_S)))


def _check_namespaces(given: Linux, joins: Collection[str]) -> None:
    for kind in joins:
        if kind not in _SHARED:
            raise refused("linux.namespaces", f"a namespace of type {kind!a} cannot be shared")
    if joins and has_own_users(given):
        # Which has no rights over namespaces that were made outside of it.
        raise refused("linux.namespaces", "a user namespace, and others shared with a pod")
    for index, namespace in enumerate(given.namespaces or ()):
        if namespace.type not in _KNOWN_NAMESPACES:
            raise refused(
                f"linux.namespaces[{index}].type",
                f"a namespace of type {namespace.type!a} is not supported in the guest",
            )
        if namespace.type == "user" and namespace.path:
            raise refused(f"linux.namespaces[{index}].path", "it is one of the host's")


def _accept_mappings(
    name: str, given: tuple[IdMapping, ...] | None, *, wanted: bool
) -> tuple[IdMapping, ...] | None:
    """The same ids, mapped to themselves; they are there exactly where a user namespace is."""
    path = f"linux.{name}"
    if bool(given) != wanted:
        raise refused(path, "a user namespace and its mappings belong together")
    if not given:
        return None
    if len(given) > _EXTENTS:
        raise refused(path, f"there are more than {_EXTENTS}")
    end = 0
    for mapping in sorted(given, key=lambda one: one.containerID):
        if mapping.containerID < end or mapping.containerID + mapping.size > _IDS:
            raise refused(
                path, f"the range at {mapping.containerID} overlaps another, or is no range"
            )
        end = mapping.containerID + mapping.size
    return tuple(IdMapping(one.containerID, one.containerID, one.size) for one in given)


def _allows_everything(rules: tuple[DeviceRule, ...]) -> bool:
    return any(
        rule.allow
        and rule.type in {None, "a"}
        and rule.major is None
        and rule.minor is None
        and set(rule.access) == set("rwm")
        for rule in rules
    )


def _check_disks(
    devices: tuple[Device, ...], disks: Mapping[int, str], *, shared_root: bool, own_users: bool
) -> None:
    """Raises StartError(SPEC_REFUSED)."""
    if len(disks) > limits.DISKS:
        raise refused("linux.devices", f"more than {limits.DISKS} are block devices")
    paths = [device.path for device in devices]
    for index, name in disks.items():
        path = f"linux.devices[{index}]"
        if not 0 <= index < len(devices) or devices[index].type != "b":
            raise refused(path, "there is no such block device, but a disk for it")
        if not _DISK.fullmatch(name):
            raise refused(path, f"{name!a:.40} names no disk of a container")
        place = devices[index].path
        check_absolute(f"{path}.path", place)
        if paths.count(place) > 1 or not place.strip("/"):
            raise refused(f"{path}.path", f"{place!a} is no place for one device")
        if own_users:
            raise refused(path, "nobody can make its node in a user namespace")
        if shared_root and not place.startswith("/dev/"):
            # It would be a node on the host.
            raise refused(
                f"{path}.path", f"{place!a} is not below /dev, and the host shares the root"
            )


def _accept_devices(
    devices: tuple[Device, ...], disks: Mapping[int, str], *, privileged: bool
) -> tuple[Device, ...]:
    """Those to be made."""
    accepted = []
    for index, device in enumerate(devices):
        path = f"linux.devices[{index}]"
        number = (device.major, device.minor)
        fifo, character = device.type == "p", device.type in {"c", "u"}
        if index in disks:
            accepted.append(device)
        elif fifo or (character and known.is_everybodys(*number)):
            check_absolute(f"{path}.path", device.path)
            if not device.path.startswith("/dev/"):
                raise refused(f"{path}.path", f"{device.path!a} is not below /dev")
            accepted.append(device)
        elif not privileged and not known.is_made_anyway(device.path, *number):
            raise refused(path, f"{device.path}: devices of the host are not in the VM")
    return tuple(accepted)


def _accept_resources(given: Resources, where: str) -> Resources:
    for index, rule in enumerate(given.devices or ()):
        path = f"{where}.devices[{index}]"
        if rule.type not in _DEVICE_RULE_TYPES:
            raise refused(f"{path}.type", f"{rule.type!a} is not a type of device")
        if not _ACCESS.fullmatch(rule.access):
            raise refused(f"{path}.access", f"{rule.access!a} is not made of r, w and m")
    for key in given.unified or {}:
        if not _UNIFIED.fullmatch(key):
            raise refused(f"{where}.unified", f"{key!a} is not accepted")
    memory, cpu = given.memory, given.cpu
    for name in ("realtimeRuntime", "realtimePeriod"):
        if cpu and getattr(cpu, name):
            raise refused(f"{where}.cpu.{name}", "the guest has no real-time groups")
    unified = dict(given.unified or {})
    if cpu and cpu.idle is not None:  # which crun does not know yet
        unified.setdefault("cpu.idle", str(cpu.idle))
    return Resources(
        memory=memory
        and Memory(
            limit=memory.limit,
            reservation=memory.reservation,
            checkBeforeUpdate=memory.checkBeforeUpdate,
        ),
        cpu=cpu and Cpu(shares=cpu.shares, quota=cpu.quota, period=cpu.period, burst=cpu.burst),
        pids=given.pids,
        devices=given.devices,
        unified=unified or None,
    )


def split_sysctl(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Those of namespaces that a container can have for itself, and those of the network. Raises
    StartError(SPEC_REFUSED)."""
    container: dict[str, str] = {}
    network: dict[str, str] = {}
    for name, value in given.items():
        if _OWN_SYSCTL.fullmatch(name):
            container[name] = value
        elif _NETWORK_SYSCTL.fullmatch(name):
            network[name] = value
        else:
            raise refused("linux.sysctl", f"{name!a} does not belong to the container alone")
    return container, network


def _accept_seccomp(given: Seccomp | None) -> Seccomp | None:
    if given is None:
        return None
    path = "linux.seccomp"
    _check(f"{path}.defaultAction", given.defaultAction, _ACTION)
    for index, architecture in enumerate(given.architectures or ()):
        _check(f"{path}.architectures[{index}]", architecture, _ARCHITECTURE)
    for index, flag in enumerate(given.flags or ()):
        _check(f"{path}.flags[{index}]", flag, _SECCOMP_FLAG)
    for index, rule in enumerate(given.syscalls or ()):
        _check(f"{path}.syscalls[{index}].action", rule.action, _ACTION)
        for number, argument in enumerate(rule.args or ()):
            _check(f"{path}.syscalls[{index}].args[{number}].op", argument.op, _OPERATOR)
    return given


def _check(path: str, value: str, pattern: re.Pattern[str]) -> None:
    if not pattern.fullmatch(value):
        raise refused(path, f"{value!a} is not accepted")
