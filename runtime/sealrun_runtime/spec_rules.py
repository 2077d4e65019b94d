"""Parts of config.json that a VM cannot have, or has no use for: refused by name, or left out with a word.

A part that is not on these lists is carried out, or it is unknown, and refused for that (oci_config.py).
docs/runtime-spec.md says the same to users; tests/unit/runtime/test_spec_rules.py holds the two
together, and the agent to both. Paths are JSON paths; `[]` stands for every element of a list. A value
that means nothing (null, empty, 0, false) does not count as given.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from sealrun_runtime.errors import InvalidRequest

_OTHER_PLATFORM: Final = "it is for containers of another platform"
_OLD_CRUN: Final = "the crun in the guest does not know it"
_REALTIME: Final = "the guest has no real-time groups"
_LISTENER: Final = "whoever listened would be a program of the host"
_IDMAPPED: Final = "idmapped mounts are not supported"

REFUSED: Final[Mapping[str, str]] = {
    "$.freebsd": _OTHER_PLATFORM,
    "$.solaris": _OTHER_PLATFORM,
    "$.vm": "the VM is described by the operator, in sealrun.toml",
    "$.windows": _OTHER_PLATFORM,
    "$.zos": _OTHER_PLATFORM,
    "$.process.commandLine": _OTHER_PLATFORM,
    "$.process.execCPUAffinity": _OLD_CRUN,
    "$.process.ioPriority": _OLD_CRUN,
    "$.process.scheduler": _OLD_CRUN,
    "$.process.user.username": _OTHER_PLATFORM,
    "$.mounts[].gidMappings": _IDMAPPED,
    "$.mounts[].uidMappings": _IDMAPPED,
    "$.linux.intelRdt": "a guest has no share of the host's caches",
    "$.linux.memoryPolicy": _OLD_CRUN,
    "$.linux.netDevices": "a network device of the host cannot be moved into the VM",
    "$.linux.resources.cpu.realtimePeriod": _REALTIME,
    "$.linux.resources.cpu.realtimeRuntime": _REALTIME,
    "$.linux.seccomp.listenerMetadata": _LISTENER,
    "$.linux.seccomp.listenerPath": _LISTENER,
    "$.linux.timeOffsets": "time namespaces are not supported",
}
"""What is an error, and why."""

LEFT_OUT: Final[Mapping[str, str]] = {
    "$.process.apparmorProfile": "the guest has no AppArmor",
    "$.process.selinuxLabel": "the guest has no SELinux",
    "$.linux.mountLabel": "the guest has no SELinux",
    "$.linux.resources.blockIO": "the disks are the host's",
    "$.linux.resources.cpu.cpus": "the numbers are the host's: on cgroup v2 it holds the VM to them",
    "$.linux.resources.cpu.mems": "the numbers are the host's: on cgroup v2 it holds the VM to them",
    "$.linux.resources.hugepageLimits": "the guest has no huge pages set aside",
    "$.linux.resources.memory.disableOOMKiller": "control groups of version 2 cannot do it",
    "$.linux.resources.memory.kernel": "the kernel has no such limit any more",
    "$.linux.resources.memory.kernelTCP": "control groups of version 2 have no such limit",
    "$.linux.resources.memory.swap": "the guest has no swap",
    "$.linux.resources.memory.swappiness": "the guest has no swap",
    "$.linux.resources.memory.useHierarchy": "control groups of version 2 are always hierarchical",
    "$.linux.resources.network": "control groups of version 2 have no network classes",
    "$.linux.resources.rdma": "the guest has no RDMA devices",
}
"""What has no effect in the guest, and why."""

PROCESS: Final = "$.process"
RESOURCES: Final = "$.linux.resources"


def apply(content: bytes, root: str = "$") -> tuple[str, ...]:
    """The parts of `content` that are left out, one line each. root: the path at which the text stands
    in a config.json; places in texts are relative to it, as the caller has no more than this text.

    content: valid JSON. Raises InvalidRequest."""
    document: object = msgspec.json.decode(content)
    for place, why in _given(document, REFUSED, root):
        raise InvalidRequest(f"{place}: {why}")
    return tuple(f"{place} is left out: {why}" for place, why in _given(document, LEFT_OUT, root))


def _given(document: object, rules: Mapping[str, str], root: str) -> Iterator[tuple[str, str]]:
    for path, why in rules.items():
        if path.startswith(f"{root}."):
            for place in _find(document, path.removeprefix(f"{root}.").split("."), "$"):
                yield place, why


def _find(value: object, names: list[str], place: str) -> Iterator[str]:
    if not names:
        if value:
            yield place
        return
    name, *rest = names
    inner = value.get(name.removesuffix("[]")) if isinstance(value, dict) else None
    place = f"{place}.{name.removesuffix('[]')}"
    if not name.endswith("[]"):
        yield from _find(inner, rest, place)
    elif isinstance(inner, list):
        for index, one in enumerate(inner):
            yield from _find(one, rest, f"{place}[{index}]")
