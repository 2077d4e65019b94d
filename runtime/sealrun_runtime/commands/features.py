"""`sealrun features`: what this runtime can do, as the runtime-spec's features document (features.md).

CRI-O and newer Podman ask for it. Only what holds for the whole way from the engine into the guest
is claimed: a feature that the guest's crun has and the guest does not accept is left out.
"""

import json
import sys

from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.errors import UsageError
from sealrun_runtime.version import OCI_VERSION_MAX, OCI_VERSION_MIN, VERSION

USAGE = "features"

HOOKS = [
    "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
]  # fmt: skip
_NEGATABLE = ("suid", "dev", "exec", "atime", "diratime", "relatime", "strictatime", "mand")
_RECURSIVE = (
    *_NEGATABLE,
    *(f"no{option}" for option in _NEGATABLE),
    *("ro", "rw", "sync", "async", "dirsync", "private", "slave", "shared", "unbindable", "bind"),
)
MOUNT_OPTIONS = sorted(
    [*_RECURSIVE, *(f"r{option}" for option in _RECURSIVE), "defaults", "tmpcopyup"]
)
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP"
        " LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER"
        " SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE"
        " SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP"
        " MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF"
        " CHECKPOINT_RESTORE"
    ).split()
]
SECCOMP = {
    "enabled": True,
    "actions": [
        f"SCMP_ACT_{name}"
        for name in ("ALLOW", "ERRNO", "KILL", "KILL_PROCESS", "KILL_THREAD", "LOG", "TRAP")
    ],
    "operators": [f"SCMP_CMP_{name}" for name in ("EQ", "GE", "GT", "LE", "LT", "MASKED_EQ", "NE")],
    "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
    "knownFlags": [f"SECCOMP_FILTER_FLAG_{name}" for name in ("LOG", "SPEC_ALLOW", "TSYNC")],
    "supportedFlags": [f"SECCOMP_FILTER_FLAG_{name}" for name in ("LOG", "SPEC_ALLOW", "TSYNC")],
}


def document() -> dict[str, object]:
    """The features structure."""
    return {
        "ociVersionMin": OCI_VERSION_MIN,
        "ociVersionMax": OCI_VERSION_MAX,
        "hooks": HOOKS,
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "user", "uts"],
            "capabilities": CAPABILITIES,
            # Of the host's cgroup, which holds the VM. That of the guest is nobody's business.
            "cgroup": {
                "v1": True,
                "v2": True,
                "systemd": True,
                "systemdUser": True,
                "rdma": False,
            },
            "seccomp": SECCOMP,
            "apparmor": {"enabled": False},
            "selinux": {"enabled": False},
            "intelRdt": {"enabled": False},
            "mountExtensions": {"idmap": {"enabled": False}},
            "netDevices": {"enabled": False},
        },
        "annotations": {"io.sealrun.version": VERSION},
        "potentiallyUnsafeConfigAnnotations": ["io.sealrun.", "org.systemd.property."],
    }


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Print the document."""
    parsed = parse(arguments, {})
    if parsed.operands:
        raise UsageError(f"features: unexpected operand {parsed.operands[0]}")
    sys.stdout.write(json.dumps(document(), indent=4) + "\n")
    return 0
