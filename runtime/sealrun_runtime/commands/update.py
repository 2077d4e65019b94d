"""`sealrun update [options] ID`: change the limits of a container.

Limits that have no meaning in a guest are refused where keeping silent would promise something
(--l3-cache-schema, --mem-bw-schema: a cache that the VM shares with others; the real-time scheduler's,
which no guest kernel has), and ignored where runc ignores them too (--kernel-memory,
--kernel-memory-tcp: the kernel has them no more).
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from sealrun_runtime import bundle, spec_rules, store
from sealrun_runtime.arguments import Invocation, Parsed, container_id, parse
from sealrun_runtime.errors import NOT_RUNNING, InvalidRequest, UsageError
from sealrun_runtime.inquiry import ask
from sealrun_runtime.log import Log

USAGE = (
    "update [--resources FILE|-] [--memory BYTES] [--memory-swap BYTES]"
    " [--memory-reservation BYTES] [--cpu-period USECS] [--cpu-quota USECS] [--cpu-burst USECS]"
    " [--cpu-share N] [--cpu-idle N] [--cpuset-cpus LIST] [--cpuset-mems LIST] [--pids-limit N]"
    " [--blkio-weight N] ID"
)

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}
_IGNORED = ("kernel-memory", "kernel-memory-tcp")
_REFUSED = ("l3-cache-schema", "mem-bw-schema", "cpu-rt-period", "cpu-rt-runtime")


def number(text: str) -> int:
    """A decimal number. Raises ValueError."""
    return int(text)


def size(text: str) -> int:
    """Bytes, with a unit of 1024: `512m`, `1.5GiB`, `-1`. Raises ValueError."""
    digits = text.strip().lower().removesuffix("b").removesuffix("i").strip()
    unit = digits[-1:] if digits[-1:].isalpha() else ""
    if unit not in _UNITS:
        raise ValueError(unit)
    return int(float(digits.removesuffix(unit)) * _UNITS[unit])


_Member = tuple[str, str, Callable[[str], object]]
_MEMBERS: dict[str, _Member] = {
    "memory": ("memory", "limit", size),
    "memory-swap": ("memory", "swap", size),
    "memory-reservation": ("memory", "reservation", size),
    "cpu-period": ("cpu", "period", number),
    "cpu-quota": ("cpu", "quota", number),
    "cpu-burst": ("cpu", "burst", number),
    "cpu-share": ("cpu", "shares", number),
    "cpu-idle": ("cpu", "idle", number),
    "cpuset-cpus": ("cpu", "cpus", str),
    "cpuset-mems": ("cpu", "mems", str),
    "pids-limit": ("pids", "limit", number),
    "blkio-weight": ("blockIO", "weight", number),
}
OPTIONS = {
    "resources": "resources=",
    "r": "resources=",
    **{name: f"{name}=" for name in (*_MEMBERS, *_IGNORED, *_REFUSED)},
}


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Raises WrongState where the container has stopped."""
    parsed = parse(arguments, OPTIONS)
    container = container_id("update", parsed)
    for name in _REFUSED:
        if parsed.value(name):
            raise InvalidRequest(f"option --{name} is not supported: a guest has no such limit")
    directory = store.open_container(invocation.root, container)
    content = _file(parsed.value("resources")) if parsed.value("resources") else _options(parsed)
    log = Log(invocation.log, invocation.log_format, debug=invocation.debug)
    for line in spec_rules.apply(content, spec_rules.RESOURCES):
        log.info(line)
    ask(directory, "update", content.decode(), otherwise=NOT_RUNNING)
    return 0


def _file(path: str) -> bytes:
    """A `linux.resources` object, which is alone then, as with runc."""
    where = "stdin" if path == "-" else path
    content = sys.stdin.buffer.read(bundle.CONFIG_BYTES) if path == "-" else bundle.read_file(path)
    try:
        bundle.parse_resources(content)
    except InvalidRequest as error:
        raise InvalidRequest(f"cannot read {where}: {error.text}") from error
    return content


def _options(parsed: Parsed) -> bytes:
    resources: dict[str, dict[str, Any]] = {}
    for option, (group, member, convert) in _MEMBERS.items():
        text = parsed.value(option)
        if not text:
            continue
        try:
            resources.setdefault(group, {})[member] = convert(text)
        except (ValueError, OverflowError) as error:
            raise UsageError(f"option --{option} does not take {text}") from error
    content = json.dumps(resources).encode()
    bundle.parse_resources(content)
    return content
