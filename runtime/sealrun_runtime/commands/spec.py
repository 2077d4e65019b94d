"""`sealrun spec [--bundle DIR] [--rootless]`: write a config.json to start from, as runc does."""

import json
import os
from typing import Any

from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.bundle import CONFIG_FILE
from sealrun_runtime.errors import HostError, InvalidRequest, UsageError, cause
from sealrun_runtime.version import OCI_VERSION_MAX

USAGE = "spec [--bundle DIR] [--rootless]"

OPTIONS = {"bundle": "bundle=", "b": "bundle=", "rootless": "rootless"}
_CAPABILITIES = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]
_MASKED = [
    *(f"/proc/{name}" for name in ("acpi", "asound", "kcore", "keys", "latency_stats")),
    *(f"/proc/{name}" for name in ("timer_list", "timer_stats", "sched_debug")),
    "/sys/firmware",
    "/proc/scsi",
]
_READONLY = [f"/proc/{name}" for name in ("bus", "fs", "irq", "sys", "sysrq-trigger")]


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Raises InvalidRequest where there is a config.json already."""
    parsed = parse(arguments, OPTIONS)
    if parsed.operands:
        raise UsageError(f"spec: unexpected operand {parsed.operands[0]}")
    path = os.path.join(parsed.value("bundle", "."), CONFIG_FILE)
    text = json.dumps(document(rootless=parsed.flag("rootless")), indent="\t")
    try:
        with open(path, "x") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidRequest(f"{path} exists already", remedy="remove it first") from None
    except OSError as error:
        raise HostError(f"cannot write {path}: {cause(error)}") from error
    return 0


def document(*, rootless: bool) -> dict[str, Any]:
    """The configuration of a shell in ./rootfs."""
    sets = ("bounding", "effective", "permitted", "ambient")
    return {
        "ociVersion": OCI_VERSION_MAX,
        "process": {
            "terminal": True,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": dict.fromkeys(sets, _CAPABILITIES),
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": True,
        },
        "root": {"path": "rootfs", "readonly": True},
        "hostname": "sealrun",
        "mounts": _mounts(rootless=rootless),
        "linux": _linux(rootless=rootless),
    }


def _mounts(*, rootless: bool) -> list[dict[str, Any]]:
    hardened = ["nosuid", "noexec", "nodev"]
    group = [] if rootless else ["gid=5"]  # which a rootless user cannot give files to
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", *group]
    system = (
        _mount("/sys", "none", "/sys", ["rbind", *hardened, "ro"])
        if rootless
        else _mount("/sys", "sysfs", "sysfs", [*hardened, "ro"])
    )
    devices = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    return [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        _mount("/dev", "tmpfs", "tmpfs", devices),
        _mount("/dev/pts", "devpts", "devpts", terminals),
        _mount("/dev/shm", "tmpfs", "shm", [*hardened, "mode=1777", "size=65536k"]),
        _mount("/dev/mqueue", "mqueue", "mqueue", hardened),
        system,
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*hardened, "relatime", "ro"]),
    ]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _linux(*, rootless: bool) -> dict[str, Any]:
    kinds = ["pid", "network", "ipc", "uts", "mount"]
    linux: dict[str, Any] = {"resources": {"devices": [{"allow": False, "access": "rwm"}]}}
    if rootless:
        kinds = ["pid", "ipc", "uts", "mount", "user"]
        linux = {
            "uidMappings": [{"containerID": 0, "hostID": os.geteuid(), "size": 1}],
            "gidMappings": [{"containerID": 0, "hostID": os.getegid(), "size": 1}],
        }
    namespaces = [{"type": kind} for kind in kinds]
    return {**linux, "namespaces": namespaces, "maskedPaths": _MASKED, "readonlyPaths": _READONLY}
