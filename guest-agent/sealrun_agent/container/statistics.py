"""What a container uses, from its cgroup (v2), in the shape of the `data` of runc's `events --stats`
(types/events.go there). Blocking: for workers.

As in runc on cgroup v2: figures without a counterpart are absent or 0, «max» is 2**64 - 1, swap is
memory and swap together. Beyond it: memory.usage.failcnt counts how often the limit was met, kernel
and kernelTCP have their usage, and network_interfaces are the VM's, which its containers share.
"""

from typing import Any, Final

import msgspec

from sealrun_agent.container.cgroup import Cgroup

_UNLIMITED: Final = 2**64 - 1
_MICROSECOND: Final = 1000  # ns
_NETWORK: Final = "/proc/net/dev"
_CPUSET: Final = (
    "cpu_exclusive", "mem_hardwall", "mem_exclusive", "memory_migrate", "memory_spread_page",
    "memory_spread_slab", "memory_pressure", "sched_load_balance", "sched_relax_domain_level",
)  # fmt: skip
_INTERFACE: Final = (
    ("RxBytes", 0), ("RxPackets", 1), ("RxErrors", 2), ("RxDropped", 3),
    ("TxBytes", 8), ("TxPackets", 9), ("TxErrors", 10), ("TxDropped", 11),
)  # fmt: skip
"""runc's names, and the columns of /proc/net/dev behind the interface's name."""

_Figures = dict[str, Any]


def read_statistics(cgroup: Cgroup, network: str = _NETWORK) -> bytes:
    """JSON text. network: a file like /proc/net/dev."""
    return msgspec.json.encode(
        {
            "cpu": _cpu(cgroup),
            "cpuset": _cpuset(cgroup),
            "memory": _memory(cgroup),
            "pids": _pids(cgroup),
            "blkio": _blkio(cgroup),
            "hugetlb": _hugetlb(cgroup),
            "intel_rdt": {},
            "network_interfaces": _interfaces(network) or None,
        }
    )


def _cpu(cgroup: Cgroup) -> _Figures:
    figures = cgroup.table("cpu.stat")
    return {
        "usage": {
            "total": figures.get("usage_usec", 0) * _MICROSECOND,
            "kernel": figures.get("system_usec", 0) * _MICROSECOND,
            "user": figures.get("user_usec", 0) * _MICROSECOND,
        },
        "throttling": {
            "periods": figures.get("nr_periods", 0),
            "throttledPeriods": figures.get("nr_throttled", 0),
            "throttledTime": figures.get("throttled_usec", 0) * _MICROSECOND,
        },
    }


def _cpuset(cgroup: Cgroup) -> _Figures:
    lists = {
        name: _numbers(text)
        for name in ("cpus", "mems")
        if (text := cgroup.read(f"cpuset.{name}.effective"))
    }
    return lists | dict.fromkeys(_CPUSET, 0)


def _memory(cgroup: Cgroup) -> _Figures:
    usage, limit = _number(cgroup, "memory.current"), _number(cgroup, "memory.max")
    swap, swap_limit = _number(cgroup, "memory.swap.current"), _number(cgroup, "memory.swap.max")
    together = _UNLIMITED if _UNLIMITED in (limit, swap_limit) else limit + swap_limit
    peak = _number(cgroup, "memory.peak")
    raw = cgroup.table("memory.stat")
    return {
        "cache": raw.get("file", 0),
        "usage": {
            "limit": limit,
            "usage": usage,
            "max": peak,
            "failcnt": cgroup.table("memory.events").get("max", 0),
        },
        "swap": {"limit": together, "usage": usage + swap, "failcnt": 0},
        "kernel": {"limit": 0, "usage": raw.get("kernel", 0), "failcnt": 0},
        "kernelTCP": {"limit": 0, "usage": raw.get("sock", 0), "failcnt": 0},
        "raw": raw,
    }


def _pids(cgroup: Cgroup) -> _Figures:
    """limit: 0 where there is none."""
    limit = _number(cgroup, "pids.max")
    return {
        "current": _number(cgroup, "pids.current"),
        "limit": 0 if limit == _UNLIMITED else limit,
    }


def _blkio(cgroup: Cgroup) -> _Figures:
    lists: dict[str, list[_Figures]] = {"ioServiceBytesRecursive": [], "ioServicedRecursive": []}
    for line in (cgroup.read("io.stat") or "").splitlines():
        device, *pairs = line.split()
        major, _, minor = device.partition(":")
        figures = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        for name, unit in (("ioServiceBytesRecursive", "bytes"), ("ioServicedRecursive", "ios")):
            for operation in ("Read", "Write"):
                lists[name].append(
                    {
                        "major": int(major),
                        "minor": int(minor),
                        "op": operation,
                        "value": int(figures.get(operation[0].lower() + unit, 0)),
                    }
                )
    return {name: entries for name, entries in lists.items() if entries}


def _hugetlb(cgroup: Cgroup) -> _Figures:
    """By the size of a page, as in `2MB`."""
    sizes = sorted(
        name.split(".")[1]
        for name in cgroup.names()
        if name.startswith("hugetlb.") and name.endswith(".current") and name.count(".") == 2
    )
    return {
        size: {
            "usage": _number(cgroup, f"hugetlb.{size}.current"),
            "failcnt": cgroup.table(f"hugetlb.{size}.events").get("max", 0),
        }
        for size in sizes
    }


def _interfaces(network: str) -> list[_Figures]:
    with open(network, encoding="ascii") as file:
        lines = [line.partition(":") for line in file if ":" in line]
    found = []
    for name, _, columns in lines:
        values = columns.split()
        if name.strip() != "lo":
            counters = {title: int(values[column]) for title, column in _INTERFACE}
            found.append({"Name": name.strip()} | counters)
    return found


def _number(cgroup: Cgroup, name: str) -> int:
    text = (cgroup.read(name) or "").strip()
    if text == "max":
        return _UNLIMITED
    return int(text) if text.isdigit() else 0


def _numbers(ranges: str) -> list[int]:
    """`0-2,5` as [0, 1, 2, 5]."""
    found: list[int] = []
    for part in ranges.strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
