"""What the host holds a container's VM to: the container's limits, and what the VM itself costs on top.

The guest holds the container to its limits exactly. The host's are there because a guest may be
anybody's: they bound VMM, shim and whatever serves the guest, whatever goes on in it. CPUs and memory
nodes are numbers of the host's, so these hold here and nowhere else. Weights are among neighbours, which
are the host's, too.
"""

from typing import Final

import msgspec

from sealrun_runtime.oci_config import Cpu, Memory, Pids, Resources

MEMORY_OVERHEAD: Final = 512 << 20  # bytes: VMM, shim, virtiofsd, and what they have read
CPU_OVERHEAD: Final = 1.0  # CPUs
TASKS_OVERHEAD: Final = 256  # threads of VMM, shim, virtiofsd; a stand-in
UNLIMITED: Final = -1
_PERIOD_US: Final = 100_000
_SHARES: Final = (2, 262_144)
_WEIGHTS: Final = (1, 10_000)


class HostLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The container's own. None: nothing was said, so nothing is set. memory: bytes; quota, period:
    microseconds; of these and of pids UNLIMITED takes a limit away. shares: as of version 1. cpus, mems:
    lists of numbers, empty where nothing was said."""

    memory: int | None = None
    quota: int | None = None
    period: int | None = None
    shares: int | None = None
    pids: int | None = None
    cpus: str = ""
    mems: str = ""

    def changed(self, resources: Resources | None) -> "HostLimits":
        """With those of a `linux.resources`, and its own where that says nothing."""
        memory = resources.memory if resources and resources.memory else Memory()
        cpu = resources.cpu if resources and resources.cpu else Cpu()
        pids = resources.pids if resources and resources.pids else Pids()
        return HostLimits(
            memory=_given(memory.limit, self.memory),
            quota=_given(cpu.quota, self.quota),
            period=cpu.period or self.period,
            shares=cpu.shares or self.shares,
            pids=_given(pids.limit, self.pids),
            cpus=cpu.cpus.strip() or self.cpus,
            mems=cpu.mems.strip() or self.mems,
        )

    def roomier(self, other: "HostLimits") -> "HostLimits":
        """These with as much memory as either: what holds while a VM changes its size."""
        memory = (
            max(self.memory or 0, other.memory or 0)
            if None not in (self.memory, other.memory)
            and UNLIMITED not in (self.memory, other.memory)
            else UNLIMITED
        )
        return msgspec.structs.replace(
            self, memory=None if self.memory is other.memory is None else memory
        )


class VmLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What the VM's control group gets. As above; cpus in CPUs, weight as of version 2."""

    memory: int | None = None
    cpus: float | None = None
    period: int = _PERIOD_US
    weight: int | None = None
    tasks: int | None = None
    cpuset: str = ""
    nodes: str = ""


def of_vm(limits: HostLimits, vm_memory: int) -> VmLimits:
    """vm_memory: bytes that the VM has before any limit makes it larger."""
    quota, period = limits.quota, limits.period or _PERIOD_US
    return VmLimits(
        memory=_more(limits.memory, vm_memory + MEMORY_OVERHEAD),
        cpus=quota if quota in (None, UNLIMITED) else quota / period + CPU_OVERHEAD,
        period=period,
        weight=None if limits.shares is None else _weight(limits.shares),
        tasks=_more(limits.pids, TASKS_OVERHEAD),
        cpuset=limits.cpus,
        nodes=limits.mems,
    )


def _given(limit: int | None, before: int | None) -> int | None:
    """0 and less are no limit, as for runc."""
    return before if limit is None else limit if limit > 0 else UNLIMITED


def _more(limit: int | None, overhead: int) -> int | None:
    return limit if limit in (None, UNLIMITED) else limit + overhead


def _weight(shares: int) -> int:
    """As runc 1.1 and crun 1.8 convert them, in a straight line."""
    shares = min(max(shares, _SHARES[0]), _SHARES[1])
    return 1 + (shares - _SHARES[0]) * (_WEIGHTS[1] - _WEIGHTS[0]) // (_SHARES[1] - _SHARES[0])


def members(numbers: str) -> list[int]:
    """Of a list like `0-2,4`, sorted. Raises ValueError."""
    found: set[int] = set()
    for part in numbers.replace(" ", "").split(","):
        first, dash, last = part.partition("-")
        low = int(first)
        high = int(last) if dash else low
        if not 0 <= low <= high < _CPUS:
            raise ValueError(f"no list of numbers: {numbers[:80]!r}")
        found.update(range(low, high + 1))
    return sorted(found)


_CPUS: Final = 8192  # more no kernel can have
