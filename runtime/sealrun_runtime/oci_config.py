"""config.json of the runtime-spec (config.md, config-linux.md) as types: what a value must look like.

What is of another type or out of its range is an error, also where only the guest acts upon it: it is
told before a VM boots. The guest reads the file again and judges it on its own, with types of its own.
Members that are not here are errors, too: the specification would have them ignored, but the one that
is misspelt, or newer than we are, might be the one that protects something.

What stands here as `Raw` is refused or left out whatever it is (spec_rules.py).

Null stands for an absent list or object, since Go writes it so.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Raw

from sealrun_runtime import patterns

NamespaceType = Literal["pid", "network", "mount", "ipc", "uts", "user", "cgroup", "time"]
Text = Annotated[str, Meta(pattern=patterns.C_STRING)]
"""What is handed to the kernel as a C string."""
Path = Annotated[str, Meta(pattern=patterns.ABSOLUTE)]
SomePath = Annotated[str, Meta(pattern=patterns.SOME_PATH)]
Unsigned = Annotated[int, Meta(ge=0)]  # of 64 bits, which msgspec cannot bound
Uint32 = Annotated[int, Meta(ge=0, le=0xFFFF_FFFF)]
Mode = Annotated[int, Meta(ge=0, le=0o7777)]
Texts = tuple[Text, ...] | None


class Part(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """An object of config.json."""


def _raw(name: str = "") -> Raw:
    raw: Raw = msgspec.field(name=name or None, default=Raw())
    return raw


class ConsoleSize(Part, frozen=True, kw_only=True, rename="camel"):
    """process.consoleSize, in characters."""

    height: Annotated[int, Meta(ge=0, le=0xFFFF)]
    width: Annotated[int, Meta(ge=0, le=0xFFFF)]


class User(Part, frozen=True, kw_only=True, rename="camel"):
    """process.user."""

    uid: Uint32
    gid: Uint32
    umask: Mode | None = None
    additional_gids: tuple[Uint32, ...] | None = None
    username: Text = ""


class Capabilities(Part, frozen=True, kw_only=True, rename="camel"):
    """process.capabilities."""

    bounding: Texts = None
    effective: Texts = None
    permitted: Texts = None
    inheritable: Texts = None
    ambient: Texts = None


class Rlimit(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of process.rlimits."""

    type: Annotated[str, Meta(pattern=patterns.RLIMIT)]
    soft: Unsigned
    hard: Unsigned


class Process(Part, frozen=True, kw_only=True, rename="camel"):
    """process: a program to run in the guest, the container's first or an exec's."""

    args: Annotated[tuple[Text, ...], Meta(min_length=1)]
    cwd: Path
    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User | None = None
    env: Texts = None
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] | None = None
    no_new_privileges: bool = False
    oom_score_adj: Annotated[int, Meta(ge=-1000, le=1000)] | None = None
    apparmor_profile: Text = ""
    selinux_label: Text = ""
    command_line: Text = ""
    scheduler: Raw = Raw()
    io_priority: Raw = Raw()
    exec_cpu_affinity: Raw = _raw("execCPUAffinity")


class Root(Part, frozen=True, kw_only=True, rename="camel"):
    """root: the file system on the host, the engine's copy of the image or a plain bundle's."""

    path: SomePath
    readonly: bool = False


class IdMapping(Part, frozen=True, kw_only=True):
    """An entry of linux.uidMappings or gidMappings, or of a mount's."""

    container_id: Uint32 = msgspec.field(name="containerID")
    host_id: Uint32 = msgspec.field(name="hostID")
    size: Uint32


class Mount(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of mounts."""

    destination: SomePath
    type: Text = ""
    source: Text = ""
    options: Texts = None
    uid_mappings: tuple[IdMapping, ...] | None = None
    gid_mappings: tuple[IdMapping, ...] | None = None


class Hook(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of one of the hooks. timeout: seconds."""

    path: Path
    args: Texts = None
    env: Texts = None
    timeout: Annotated[int, Meta(ge=1)] | None = None


class Hooks(Part, frozen=True, kw_only=True, rename="camel"):
    """hooks, in the order of a container's life."""

    prestart: tuple[Hook, ...] | None = None
    create_runtime: tuple[Hook, ...] | None = None
    create_container: tuple[Hook, ...] | None = None
    start_container: tuple[Hook, ...] | None = None
    poststart: tuple[Hook, ...] | None = None
    poststop: tuple[Hook, ...] | None = None


class Namespace(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of linux.namespaces; an empty path means a new one."""

    type: NamespaceType
    path: Text = ""


class Device(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of linux.devices."""

    type: Literal["c", "b", "u", "p"]
    path: Path
    major: int = 0
    minor: int = 0
    file_mode: Uint32 | None = None
    uid: Uint32 | None = None
    gid: Uint32 | None = None


class DeviceRule(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of linux.resources.devices."""

    allow: bool
    type: Literal["a", "c", "b"] | None = None
    major: int | None = None
    minor: int | None = None
    access: Annotated[str, Meta(pattern=patterns.ACCESS)] = ""


class Memory(Part, frozen=True, kw_only=True):
    """linux.resources.memory. Sizes in bytes, -1 for no limit."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = msgspec.field(name="kernelTCP", default=None)
    swappiness: Annotated[int, Meta(ge=0, le=100)] | None = None
    disable_oom_killer: bool | None = msgspec.field(name="disableOOMKiller", default=None)
    use_hierarchy: bool | None = msgspec.field(name="useHierarchy", default=None)
    check_before_update: bool | None = msgspec.field(name="checkBeforeUpdate", default=None)


class Cpu(Part, frozen=True, kw_only=True, rename="camel"):
    """linux.resources.cpu. Times in microseconds."""

    shares: Unsigned | None = None
    quota: int | None = None
    burst: Unsigned | None = None
    period: Unsigned | None = None
    realtime_runtime: int | None = None
    realtime_period: Unsigned | None = None
    cpus: Annotated[str, Meta(pattern=patterns.NUMBERS)] = ""
    mems: Annotated[str, Meta(pattern=patterns.NUMBERS)] = ""
    idle: int | None = None


class Pids(Part, frozen=True, kw_only=True, rename="camel"):
    """linux.resources.pids."""

    limit: int | None = None


class WeightDevice(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of linux.resources.blockIO.weightDevice."""

    major: int
    minor: int
    weight: Annotated[int, Meta(ge=0, le=1000)] | None = None
    leaf_weight: Annotated[int, Meta(ge=0, le=1000)] | None = None


class ThrottleDevice(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of one of linux.resources.blockIO.throttle…Device."""

    major: int
    minor: int
    rate: Unsigned


class BlockIo(Part, frozen=True, kw_only=True):
    """linux.resources.blockIO."""

    weight: Annotated[int, Meta(ge=0, le=1000)] | None = None
    leaf_weight: Annotated[int, Meta(ge=0, le=1000)] | None = msgspec.field(
        name="leafWeight", default=None
    )
    weight_device: tuple[WeightDevice, ...] | None = msgspec.field(
        name="weightDevice", default=None
    )
    read_rate: tuple[ThrottleDevice, ...] | None = msgspec.field(
        name="throttleReadBpsDevice", default=None
    )
    write_rate: tuple[ThrottleDevice, ...] | None = msgspec.field(
        name="throttleWriteBpsDevice", default=None
    )
    read_operations: tuple[ThrottleDevice, ...] | None = msgspec.field(
        name="throttleReadIOPSDevice", default=None
    )
    write_operations: tuple[ThrottleDevice, ...] | None = msgspec.field(
        name="throttleWriteIOPSDevice", default=None
    )


class HugepageLimit(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of linux.resources.hugepageLimits."""

    page_size: Annotated[str, Meta(pattern=patterns.PAGE_SIZE)]
    limit: Unsigned


class Resources(Part, frozen=True, kw_only=True):
    """linux.resources, also what `update` is given."""

    devices: tuple[DeviceRule, ...] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = msgspec.field(name="blockIO", default=None)
    hugepage_limits: tuple[HugepageLimit, ...] | None = msgspec.field(
        name="hugepageLimits", default=None
    )
    unified: dict[str, str] | None = None
    network: Raw = Raw()
    rdma: Raw = Raw()


class SyscallArgument(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of the args of a seccomp rule."""

    index: Uint32
    value: Unsigned
    value_two: Unsigned = 0
    op: str


class Syscall(Part, frozen=True, kw_only=True, rename="camel"):
    """An entry of linux.seccomp.syscalls."""

    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    action: str
    errno_ret: Uint32 | None = None
    args: tuple[SyscallArgument, ...] | None = None


class Seccomp(Part, frozen=True, kw_only=True, rename="camel"):
    """linux.seccomp."""

    default_action: str
    default_errno_ret: Uint32 | None = None
    architectures: tuple[str, ...] | None = None
    flags: tuple[str, ...] | None = None
    listener_path: Text = ""
    listener_metadata: Text = ""
    syscalls: tuple[Syscall, ...] | None = None


class Personality(Part, frozen=True, kw_only=True):
    """linux.personality."""

    domain: Literal["LINUX", "LINUX32"]
    flags: Texts = None


class Linux(Part, frozen=True, kw_only=True):
    """linux."""

    namespaces: tuple[Namespace, ...] | None = None
    uid_mappings: tuple[IdMapping, ...] | None = msgspec.field(name="uidMappings", default=None)
    gid_mappings: tuple[IdMapping, ...] | None = msgspec.field(name="gidMappings", default=None)
    devices: tuple[Device, ...] | None = None
    cgroups_path: Text = msgspec.field(name="cgroupsPath", default="")
    resources: Resources | None = None
    sysctl: dict[str, Text] | None = None
    seccomp: Seccomp | None = None
    rootfs_propagation: (
        Literal[
            "", "shared", "slave", "private", "rshared", "rslave", "rprivate",
        ]
    ) = msgspec.field(name="rootfsPropagation", default="")  # fmt: skip
    masked_paths: tuple[Path, ...] | None = msgspec.field(name="maskedPaths", default=None)
    readonly_paths: tuple[Path, ...] | None = msgspec.field(name="readonlyPaths", default=None)
    mount_label: Text = msgspec.field(name="mountLabel", default="")
    personality: Personality | None = None
    intel_rdt: Raw = _raw("intelRdt")
    memory_policy: Raw = _raw("memoryPolicy")
    net_devices: Raw = _raw("netDevices")
    time_offsets: Raw = _raw("timeOffsets")


class Document(Part, frozen=True, kw_only=True, rename="camel"):
    """The whole of config.json."""

    oci_version: Annotated[str, Meta(pattern=patterns.VERSION)]
    process: Process
    root: Root
    hostname: Annotated[str, Meta(max_length=64, pattern=patterns.C_STRING)] = ""
    domainname: Annotated[str, Meta(max_length=64, pattern=patterns.C_STRING)] = ""
    mounts: tuple[Mount, ...] | None = None
    hooks: Hooks | None = None
    annotations: dict[str, str] | None = None
    linux: Linux | None = None
    freebsd: Raw = Raw()
    solaris: Raw = Raw()
    vm: Raw = Raw()
    windows: Raw = Raw()
    zos: Raw = Raw()


JSON_LIMITS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding untrusted JSON raises."""
