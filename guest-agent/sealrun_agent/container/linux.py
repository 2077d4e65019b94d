"""What becomes of the `linux` part of the host's config.json (config-linux.md).

Decided by the guest:
- namespaces: always new pid, ipc, uts, mount and cgroup ones. The network is the VM's. A user
  namespace is refused: the image's owners would have to be mapped, which comes later.
- cgroupsPath: the guest's own.
- annotations, AppArmor and SELinux labels, rootfsPropagation (but see below): left out.

Accepted: masked and read-only paths, seccomp, device rules, sysctl of the container's namespaces.
Sysctl of the network concern the VM's network, which is the container's; crun would want a network
namespace for them, so the agent sets them (`network_sysctl`).

Left out because they describe the host and mean nothing in the VM: cpuset and NUMA nodes, block
devices' limits, huge pages, RDMA, network classes, swap (the VM has none) and cgroup v1's kernel
memory. The host's own limits hold outside of the VM as before.

Device nodes: the standard ones are there anyway. In a privileged container (a device rule allows
everything) an engine lists every device of the *host*: those are left out, since the VM does not
have them. Any other device was asked for by name, and is refused.
"""

import re
from typing import Final, NamedTuple

import msgspec

from sealrun_agent.container.mounts import check_absolute
from sealrun_agent.container.reading import check_for_c, read
from sealrun_agent.container.runtime_spec import (
    Cpu,
    Device,
    DeviceRule,
    Linux,
    Memory,
    Namespace,
    Resources,
    Seccomp,
    refused,
)

_NAMESPACES: Final = tuple(Namespace(kind) for kind in ("pid", "ipc", "uts", "mount", "cgroup"))
_KNOWN_NAMESPACES: Final = frozenset({"pid", "ipc", "uts", "mount", "cgroup", "network"})
_STANDARD_DEVICES: Final = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
    "/dev/console": (5, 1),
    "/dev/ptmx": (5, 2),
}
_PROPAGATION: Final = frozenset({"", "private", "rprivate", "slave", "rslave"})
_IPC_SYSCTL: Final = re.compile(
    r"kernel\.(shm(max|all|mni|_rmid_forced)|msg(max|mnb|mni)|sem)|fs\.mqueue\.[a-z_]+"
)
_NETWORK_SYSCTL: Final = re.compile(r"net(\.[a-z0-9_-]+)+")
_UNIFIED: Final = re.compile(r"(memory|cpu|pids)\.[a-z_.]+")
_DEVICE_RULE_TYPES: Final = frozenset({None, "a", "b", "c"})
_ACCESS: Final = re.compile(r"[rwm]{0,3}")
_ACTION: Final = re.compile(r"SCMP_ACT_(KILL|KILL_PROCESS|KILL_THREAD|TRAP|ERRNO|ALLOW|LOG)")
_ARCHITECTURE: Final = re.compile(r"SCMP_ARCH_[A-Z0-9_]+")
_OPERATOR: Final = re.compile(r"SCMP_CMP_(NE|LT|LE|EQ|GE|GT|MASKED_EQ)")
_SECCOMP_FLAG: Final = re.compile(r"SECCOMP_FILTER_FLAG_(TSYNC|LOG|SPEC_ALLOW)")


class AcceptedLinux(NamedTuple):
    """For crun, without cgroupsPath; and what the agent sets itself."""

    part: Linux
    network_sysctl: dict[str, str]


def accept_linux(given: Linux) -> AcceptedLinux:
    """Raises StartError(SPEC_REFUSED)."""
    _check_namespaces(given)
    if given.rootfsPropagation not in _PROPAGATION:
        raise refused("linux.rootfsPropagation", "mounts are not shared with the guest")
    resources = given.resources or Resources()
    _check_devices(given.devices or (), privileged=_allows_everything(resources.devices or ()))
    for name in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(getattr(given, name) or ()):
            check_absolute(f"linux.{name}[{index}]", path)
    sysctl, network_sysctl = _split_sysctl(given.sysctl or {})
    part = Linux(
        namespaces=_NAMESPACES,
        resources=_accept_resources(resources, "linux.resources"),
        maskedPaths=given.maskedPaths,
        readonlyPaths=given.readonlyPaths,
        seccomp=_accept_seccomp(given.seccomp),
        sysctl=sysctl or None,
    )
    return AcceptedLinux(part, network_sysctl)


def accept_update(resources: bytes) -> Resources:
    """New limits for a container that exists. resources: JSON text of a linux.resources.

    Raises StartError(SPEC_REFUSED)."""
    accepted = _accept_resources(read(resources, Resources, "resources"), "resources")
    accepted = msgspec.structs.replace(accepted, devices=None)
    check_for_c("resources", accepted)
    return accepted


def _check_namespaces(given: Linux) -> None:
    for index, namespace in enumerate(given.namespaces or ()):
        if namespace.type not in _KNOWN_NAMESPACES:
            raise refused(
                f"linux.namespaces[{index}].type",
                f"a namespace of type {namespace.type!a} is not supported in the guest",
            )


def _allows_everything(rules: tuple[DeviceRule, ...]) -> bool:
    return any(
        rule.allow
        and rule.type in {None, "a"}
        and rule.major is None
        and rule.minor is None
        and set(rule.access) == set("rwm")
        for rule in rules
    )


def _check_devices(devices: tuple[Device, ...], *, privileged: bool) -> None:
    for index, device in enumerate(devices):
        standard = _STANDARD_DEVICES.get(device.path) == (device.major, device.minor)
        if not (privileged or (standard and device.type in {"c", "u"})):
            raise refused(
                f"linux.devices[{index}]", f"{device.path}: devices of the host are not in the VM"
            )


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
    return Resources(
        memory=memory and Memory(limit=memory.limit, reservation=memory.reservation),
        cpu=cpu and Cpu(shares=cpu.shares, quota=cpu.quota, period=cpu.period, burst=cpu.burst),
        pids=given.pids,
        devices=given.devices,
        unified=given.unified,
    )


def _split_sysctl(given: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    container: dict[str, str] = {}
    network: dict[str, str] = {}
    for name, value in given.items():
        if _IPC_SYSCTL.fullmatch(name):
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
