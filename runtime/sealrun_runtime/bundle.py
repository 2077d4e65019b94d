"""The bundle: config.json (runtime-spec "Configuration") read, checked, and reduced to what the host
acts upon.

An error names the place as a JSON path: `$.process.args: …`. The types in oci_config.py say what a
value must look like, spec_rules.py what cannot be in a VM; what several of them must be together is
checked here.
"""

import os
from collections.abc import Iterable
from typing import Final

import msgspec
from sealrun_protocol import devices

from sealrun_runtime import block_devices, named_file, patterns, spec_rules
from sealrun_runtime.block_devices import BlockDevice
from sealrun_runtime.demand import Demand
from sealrun_runtime.errors import InvalidRequest, cause
from sealrun_runtime.host_limits import HostLimits
from sealrun_runtime.oci_config import (
    JSON_LIMITS,
    Device,
    Document,
    Hooks,
    IdMapping,
    Linux,
    Mount,
    Namespace,
    Process,
    Resources,
    User,
)

_NOT_JOINED: Final = ("mount", "user", "cgroup", "time")
_PATTERN: Final = "Expected `str` matching regex "
_WORDS: Final = {repr(pattern): words for pattern, words in patterns.WORDS.items()}
"""By the way msgspec writes a pattern."""
CONFIG_FILE: Final = "config.json"
CONFIG_BYTES: Final = 4 << 20  # Podman's with its seccomp profile has 60 KiB


class ContainerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A container as the engine asks for it. All paths are absolute.

    rootfs: need not exist where the image comes from a registry.
    rows, columns: the size that the terminal starts with, 0 where it is not said.
    hooks: those that the host runs, and those that belong to the guest.
    cgroups_path: as in config.json, empty where the engine gave none.
    left_out: lines about what has no effect in the guest.
    demand: what the limits of linux.resources let it use. host_limits: what the host makes of them.
    sysctl: as in config.json, by name with dots.
    uid_mappings, gid_mappings: of the container's user namespace, empty where it has none.
    block_devices: of the host, that the container gets. privileged: its device cgroup allows everything.
    """

    bundle: str
    oci_version: str
    rootfs: str
    rootfs_readonly: bool = False
    args: tuple[str, ...]
    terminal: bool
    rows: int = 0
    columns: int = 0
    hostname: str
    domainname: str = ""
    mounts: tuple[Mount, ...]
    hooks: Hooks = Hooks()
    annotations: dict[str, str]
    namespaces: tuple[Namespace, ...]
    cgroups_path: str
    left_out: tuple[str, ...] = ()
    demand: Demand = Demand()
    host_limits: HostLimits = HostLimits()
    sysctl: dict[str, str] = {}
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    block_devices: tuple[BlockDevice, ...] = ()
    privileged: bool = False


def read(bundle: str) -> tuple[ContainerSpec, bytes]:
    """The container in the directory `bundle`, and the very bytes of its config.json.

    Raises InvalidRequest."""
    try:
        bundle = os.path.abspath(bundle)
    except OSError as error:
        raise InvalidRequest(f"cannot find the current directory: {cause(error)}") from error
    path = os.path.join(bundle, CONFIG_FILE)
    content = read_file(path, pipe=False)
    try:
        return parse(content, bundle), content
    except InvalidRequest as error:
        text = f"cannot read {path}: {error.text}"
        raise InvalidRequest(text, remedy=error.remedy) from error


def read_file(path: str, *, pipe: bool = True) -> bytes:
    """A JSON file that the caller names. pipe: as in named_file. Raises InvalidRequest."""
    try:
        return named_file.read(path, CONFIG_BYTES, pipe=pipe)
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {cause(error)}") from error


def parse(content: bytes, bundle: str) -> ContainerSpec:
    """The container of a config.json that lies in the absolute path `bundle`.

    Raises InvalidRequest."""
    try:
        document = msgspec.json.decode(content, type=Document)
    except JSON_LIMITS as error:
        raise InvalidRequest(explain(error)) from error
    process, linux = document.process, document.linux or Linux()
    _check_process(process, "$.process")
    annotations = document.annotations or {}
    if "" in annotations:
        raise InvalidRequest("$.annotations: an empty key")
    left_out = spec_rules.apply(content)
    _check_linux(linux)
    _check_users(linux, process)
    return ContainerSpec(
        bundle=bundle,
        oci_version=document.oci_version,
        rootfs=os.path.normpath(os.path.join(bundle, document.root.path)),
        rootfs_readonly=document.root.readonly,
        args=process.args,
        terminal=process.terminal,
        rows=process.console_size.height if process.console_size else 0,
        columns=process.console_size.width if process.console_size else 0,
        hostname=document.hostname,
        domainname=document.domainname,
        mounts=document.mounts or (),
        hooks=document.hooks or Hooks(),
        annotations=annotations,
        namespaces=linux.namespaces or (),
        cgroups_path=linux.cgroups_path,
        left_out=left_out,
        demand=Demand().changed(linux.resources),
        host_limits=HostLimits().changed(linux.resources),
        sysctl=linux.sysctl or {},
        uid_mappings=linux.uid_mappings or (),
        gid_mappings=linux.gid_mappings or (),
        block_devices=block_devices.named(linux),
        privileged=block_devices.allows_everything(linux),
    )


def parse_process(content: bytes) -> Process:
    """A `process` object that stands for itself, as exec is given it. Raises InvalidRequest."""
    try:
        process = msgspec.json.decode(content, type=Process)
    except JSON_LIMITS as error:
        raise InvalidRequest(explain(error)) from error
    _check_process(process, "$")
    return process


def parse_resources(content: bytes) -> Resources:
    """A `linux.resources` object, as update is given it. Raises InvalidRequest."""
    try:
        return msgspec.json.decode(content, type=Resources)
    except JSON_LIMITS as error:
        raise InvalidRequest(explain(error)) from error


def _check_process(process: Process, where: str) -> None:
    """The specification: "If rlimits contains duplicated entries with same type, the runtime MUST
    generate an error"."""
    limits = process.rlimits or ()
    _refuse_twice((one.type for one in limits), f"{where}.rlimits", "limit of type")
    for index, limit in enumerate(limits):
        if limit.soft > limit.hard:
            raise InvalidRequest(f"{where}.rlimits[{index}]: soft is above hard")
    if not process.args[0]:
        raise InvalidRequest(f"{where}.args[0]: it is empty")


def _check_linux(linux: Linux) -> None:
    """The specification: "If a namespaces field contains duplicated namespaces with same type, the
    runtime MUST generate an error", and the same of devices and their paths."""
    namespaces = linux.namespaces or ()
    _refuse_twice((one.type for one in namespaces), "$.linux.namespaces", "namespace of type")
    for index, namespace in enumerate(namespaces):
        where = f"$.linux.namespaces[{index}]"
        if namespace.path and not namespace.path.startswith("/"):
            raise InvalidRequest(f"{where}.path: it is not an absolute path")
        if namespace.path and namespace.type in _NOT_JOINED:
            raise InvalidRequest(
                f"{where}.path: joining a {namespace.type} namespace is not supported"
            )
        if namespace.type == "time":
            raise InvalidRequest(f"{where}.type: time namespaces are not supported")
    given = linux.devices or ()
    _refuse_twice((os.path.normpath(one.path) for one in given), "$.linux.devices", "device at")
    if not block_devices.allows_everything(linux):
        _check_character_devices(given)


def _check_character_devices(given: Iterable[Device]) -> None:
    """The guest would refuse them, too, but only once its VM has booted."""
    for index, device in enumerate(given):
        path, number = device.path, (device.major, device.minor)
        has = devices.is_everybodys(*number) or devices.is_made_anyway(path, *number)
        if device.type in ("c", "u") and not has:
            raise InvalidRequest(
                f"$.linux.devices[{index}]: {path}: a VM cannot have the character device "
                f"{device.major}:{device.minor} of the host",
                remedy=f"do without it: the VM's own are {devices.NAMES}, and block devices can be its disks",
            )


def _check_users(linux: Linux, process: Process) -> None:
    """As runc: a user namespace and its mappings belong together, and the user is one of them."""
    own = any(one.type == "user" for one in linux.namespaces or ())
    user = process.user or User(uid=0, gid=0)
    for name, mappings, wanted in (
        ("uid", linux.uid_mappings, (user.uid,)),
        ("gid", linux.gid_mappings, (user.gid, *(user.additional_gids or ()))),
    ):
        if bool(mappings) != own:
            text = "they and a namespace of type user belong together"
            raise InvalidRequest(f"$.linux.{name}Mappings: {text}")
        for one in wanted if own else ():
            if not any(0 <= one - given.container_id < given.size for given in mappings or ()):
                text = f"{one} is not in $.linux.{name}Mappings"
                raise InvalidRequest(f"$.process.user.{name}: {text}")


def _refuse_twice(values: Iterable[str], where: str, what: str) -> None:
    seen = set()
    for index, value in enumerate(values):
        if value in seen:
            raise InvalidRequest(f"{where}[{index}]: a second {what} {value}")
        seen.add(value)


def explain(error: Exception) -> str:
    """msgspec's text, place first: `$.process.args: expected array, got str`."""
    text, _, where = str(error).partition(" - at `")
    if text.startswith(_PATTERN):
        text = _WORDS.get(text.removeprefix(_PATTERN), text)
    if not text.startswith("JSON"):
        text = text[:1].lower() + text[1:]
    return f"{where.rstrip('`')}: {text}" if where else text
