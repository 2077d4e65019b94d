"""The properties of a container's scope: what runc and crun set, the limits, and what an annotation
`org.systemd.property.NAME` says, in GVariant's text format."""

import re
from collections.abc import Mapping
from typing import Final

from sealrun_runtime.host_limits import UNLIMITED, VmLimits, members
from sealrun_runtime.systemd.unit import Unit
from sealrun_runtime.systemd.variant import Value, parse

PREFIX: Final = "org.systemd.property."
Properties = tuple[tuple[str, Value], ...]

_INFINITY: Final = 2**64 - 1
_NAME: Final = re.compile(r"[A-Za-z]{3,64}")
_OURS: Final = frozenset(("PIDs", "Slice", "Delegate"))
_SECONDS: Final = re.compile(r"(?P<stem>.*[a-z])Sec")
_PERCENT_US: Final = 10_000  # systemd keeps whole percents of a CPU: so many us in a second


def describe(container: str) -> str:
    """By which a scope is known as that of a container, or of a pod's VM."""
    return f"sealrun container {container}"


def of_scope(unit: Unit, description: str, pid: int) -> Properties:
    """Of a new one. pid: its first process."""
    return (
        ("Description", ("s", description)),
        ("Slice", ("s", unit.slice)),
        ("Delegate", ("b", True)),
        ("PIDs", ("au", [pid])),
        ("MemoryAccounting", ("b", True)),
        ("CPUAccounting", ("b", True)),
        ("IOAccounting", ("b", True)),
        ("TasksAccounting", ("b", True)),
        ("DefaultDependencies", ("b", False)),
        # A VM whose memory ran out is no unit that somebody has to reset.
        ("CollectMode", ("s", "inactive-or-failed")),
    )


def of_limits(limits: VmLimits) -> Properties:
    """Of control groups of version 2. Raises ValueError."""
    found: list[tuple[str, Value]] = []
    if limits.memory is not None:
        found.append(("MemoryMax", ("t", _or_infinity(limits.memory))))
    if limits.cpus is not None:
        per_second = -(-int(limits.cpus * 1_000_000) // _PERCENT_US) * _PERCENT_US
        found.append(("CPUQuotaPeriodUSec", ("t", limits.period)))
        quota = _INFINITY if limits.cpus == UNLIMITED else per_second
        found.append(("CPUQuotaPerSecUSec", ("t", quota)))
    if limits.weight is not None:
        found.append(("CPUWeight", ("t", limits.weight)))
    if limits.tasks is not None:
        found.append(("TasksMax", ("t", _or_infinity(limits.tasks))))
    for name, numbers in (("AllowedCPUs", limits.cpuset), ("AllowedMemoryNodes", limits.nodes)):
        if numbers:
            found.append((name, ("ay", _bits(numbers))))
    return tuple(found)


def of_annotations(annotations: Mapping[str, str]) -> Properties:
    """As runc and crun take them: seconds in `…Sec` become microseconds in `…USec`. Raises ValueError."""
    found: list[tuple[str, Value]] = []
    for key, text in sorted(annotations.items()):
        if not key.startswith(PREFIX):
            continue
        name = key.removeprefix(PREFIX)
        if not _NAME.fullmatch(name):
            raise ValueError(f"annotation {key[:80]}: no property has such a name")
        if name in _OURS:
            raise ValueError(f"annotation {key}: the runtime sets this property")
        try:
            value = parse(text)
            if match := _SECONDS.fullmatch(name):
                name, value = f"{match['stem']}USec", _microseconds(value)
        except ValueError as error:
            raise ValueError(f"annotation {key}: {error}") from error
        found.append((name, value))
    return tuple(found)


def _microseconds(value: Value) -> Value:
    _, number = value
    if not isinstance(number, int | float) or isinstance(number, bool) or number < 0:
        raise ValueError("seconds are a number")
    result = int(number * 1_000_000)
    if result > _INFINITY:
        raise ValueError(f"{number} is out of range")
    return "t", result


def _or_infinity(limit: int) -> int:
    return _INFINITY if limit == UNLIMITED else limit


def _bits(numbers: str) -> bytes:
    """One bit a number, the lowest byte first, as systemd has CPU sets."""
    found = members(numbers)
    total = sum(1 << number for number in found)
    return total.to_bytes(found[-1] // 8 + 1, "little")
