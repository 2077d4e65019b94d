"""What a container's limits let it use, which its VM has to have.

A limit is no reservation: what a container asks for beyond what a VM can be is a limit that is never
reached, as it is with a host of that size.
"""

from typing import Final

import msgspec

from sealrun_runtime.oci_config import Cpu, Memory, Resources

_PERIOD_US: Final = 100_000  # the kernel's own, where none is given
_MIB: Final = 1 << 20


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """memory: bytes; quota, period: microseconds of CPU time in so many. 0: no limit."""

    memory: int = 0
    quota: int = 0
    period: int = _PERIOD_US

    @property
    def memory_mib(self) -> int:
        """MiB, rounded up."""
        return -(-self.memory // _MIB)

    @property
    def cpus(self) -> int:
        """CPUs that its time fills, rounded up."""
        return -(-self.quota // self.period)

    def larger(self, other: "Demand") -> "Demand":
        """The more of each."""
        time = max(self, other, key=lambda one: one.quota / one.period)
        memory = max(self.memory, other.memory)
        return Demand(memory=memory, quota=time.quota, period=time.period)

    def changed(self, resources: Resources | None) -> "Demand":
        """With the limits of a `linux.resources`, and its own where those say nothing."""
        memory = resources.memory if resources and resources.memory else Memory()
        cpu = resources.cpu if resources and resources.cpu else Cpu()
        return Demand(
            memory=self.memory if memory.limit is None else max(0, memory.limit),
            quota=self.quota if cpu.quota is None else max(0, cpu.quota),
            period=cpu.period or self.period,
        )
