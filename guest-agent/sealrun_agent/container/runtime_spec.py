"""The parts of the OCI runtime specification's config.json that the guest knows, as types.

What is not here is unknown, and refused by name: a part that the guest would silently leave out
might be the one that was meant to protect something. What is accepted and then left out stands in
spec.py with the reason.

Names are those of the specification (config.md, config-linux.md). Null stands for an absent list,
since Go writes it so.
"""

from typing import Annotated

import msgspec
from msgspec import Meta
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import StartError

Id = Annotated[int, Meta(ge=0, le=0xFFFF_FFFE)]  # of a user or group; the highest means «unchanged»
Uint16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
Uint32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Unsigned = Annotated[int, Meta(ge=0)]  # msgspec cannot bound it by 2**64: reading.py does
Int64 = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


def refused(path: str, cause: str) -> StartError:
    """The error for a part that the guest does not accept. path: as in `process.args[0]`."""
    return StartError(ErrorCode.SPEC_REFUSED, f"{path}: {cause}")


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """An object of config.json."""


class User(Part, frozen=True):
    """process.user."""

    uid: Id
    gid: Id
    umask: Annotated[int, Meta(ge=0, le=0o777)] | None = None
    additionalGids: tuple[Id, ...] | None = None


class Capabilities(Part, frozen=True):
    """process.capabilities."""

    bounding: tuple[str, ...] | None = None
    effective: tuple[str, ...] | None = None
    permitted: tuple[str, ...] | None = None
    inheritable: tuple[str, ...] | None = None
    ambient: tuple[str, ...] | None = None


class Rlimit(Part, frozen=True):
    """An entry of process.rlimits."""

    type: str
    soft: Unsigned
    hard: Unsigned


class ConsoleSize(Part, frozen=True):
    """process.consoleSize."""

    height: Uint16
    width: Uint16


class Process(Part, frozen=True):
    """process."""

    args: tuple[str, ...]
    cwd: str
    user: User = User(uid=0, gid=0)
    env: tuple[str, ...] | None = None
    terminal: bool = False
    consoleSize: ConsoleSize | None = None
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] | None = None
    noNewPrivileges: bool = False
    oomScoreAdj: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    apparmorProfile: str = ""
    selinuxLabel: str = ""


class Root(Part, frozen=True):
    """root. `path` is on the host and means nothing here."""

    path: str
    readonly: bool = False


class Mount(Part, frozen=True):
    """An entry of mounts."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] | None = None


class IdMapping(Part, frozen=True):
    """An entry of linux.uidMappings or gidMappings. `hostID` is the host's and means nothing here."""

    containerID: Uint32
    hostID: Uint32
    size: Annotated[int, Meta(ge=1, le=0xFFFF_FFFF)]


class Personality(Part, frozen=True):
    """linux.personality."""

    domain: str
    flags: tuple[str, ...] | None = None


class Hook(Part, frozen=True):
    """An entry of one of the hooks. timeout: seconds."""

    path: str
    args: tuple[str, ...] | None = None
    env: tuple[str, ...] | None = None
    timeout: Annotated[int, Meta(ge=1, le=0x7FFF_FFFF)] | None = None


class Hooks(Part, frozen=True):
    """hooks."""

    prestart: tuple[Hook, ...] | None = None
    createRuntime: tuple[Hook, ...] | None = None
    createContainer: tuple[Hook, ...] | None = None
    startContainer: tuple[Hook, ...] | None = None
    poststart: tuple[Hook, ...] | None = None
    poststop: tuple[Hook, ...] | None = None


class Namespace(Part, frozen=True):
    """An entry of linux.namespaces."""

    type: str
    path: str = ""


class Device(Part, frozen=True):
    """An entry of linux.devices."""

    path: str
    type: str
    major: Int64 | None = None
    minor: Int64 | None = None
    fileMode: Uint32 | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


class DeviceRule(Part, frozen=True):
    """An entry of linux.resources.devices."""

    allow: bool
    type: str | None = None
    major: Int64 | None = None
    minor: Int64 | None = None
    access: str = ""


class Memory(Part, frozen=True):
    """linux.resources.memory. Sizes in bytes."""

    limit: Int64 | None = None
    reservation: Int64 | None = None
    swap: Int64 | None = None
    kernel: Int64 | None = None
    kernelTCP: Int64 | None = None
    swappiness: Int64 | None = None
    disableOOMKiller: bool = False
    useHierarchy: bool | None = None
    checkBeforeUpdate: bool = False


class Cpu(Part, frozen=True):
    """linux.resources.cpu. Times in microseconds."""

    shares: Int64 | None = None
    quota: Int64 | None = None
    period: Int64 | None = None
    burst: Int64 | None = None
    idle: Int64 | None = None
    realtimeRuntime: Int64 | None = None
    realtimePeriod: Int64 | None = None
    cpus: str = ""
    mems: str = ""


class Pids(Part, frozen=True):
    """linux.resources.pids."""

    limit: Int64 | None = None


class Resources(Part, frozen=True):
    """linux.resources."""

    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    devices: tuple[DeviceRule, ...] | None = None
    unified: dict[str, str] | None = None
    blockIO: msgspec.Raw = msgspec.Raw()
    hugepageLimits: msgspec.Raw = msgspec.Raw()
    network: msgspec.Raw = msgspec.Raw()
    rdma: msgspec.Raw = msgspec.Raw()


class SyscallArgument(Part, frozen=True):
    """An entry of a system call rule's args."""

    index: Annotated[int, Meta(ge=0, le=5)]
    value: Unsigned
    op: str
    valueTwo: Unsigned = 0


class Syscall(Part, frozen=True):
    """An entry of linux.seccomp.syscalls."""

    names: tuple[str, ...]
    action: str
    errnoRet: Uint32 | None = None
    args: tuple[SyscallArgument, ...] | None = None


class Seccomp(Part, frozen=True):
    """linux.seccomp."""

    defaultAction: str
    defaultErrnoRet: Uint32 | None = None
    architectures: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None
    syscalls: tuple[Syscall, ...] | None = None


class Linux(Part, frozen=True):
    """linux."""

    namespaces: tuple[Namespace, ...] | None = None
    uidMappings: tuple[IdMapping, ...] | None = None
    gidMappings: tuple[IdMapping, ...] | None = None
    devices: tuple[Device, ...] | None = None
    resources: Resources | None = None
    cgroupsPath: str = ""
    maskedPaths: tuple[str, ...] | None = None
    readonlyPaths: tuple[str, ...] | None = None
    seccomp: Seccomp | None = None
    sysctl: dict[str, str] | None = None
    rootfsPropagation: str = ""
    mountLabel: str = ""
    personality: Personality | None = None


class Spec(Part, frozen=True):
    """config.json."""

    ociVersion: str
    process: Process
    root: Root
    linux: Linux = Linux()
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] | None = None
    annotations: dict[str, str] | None = None
    hooks: Hooks | None = None
