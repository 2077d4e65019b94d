"""How a VM that runs changes its size: by whole steps, between what it was booted with and what its
VmSpec lets it become.

Memory is that of a virtio-mem device, which the guest takes into use by itself; a CPU that is added the
guest's agent has to bring online. CPUs are never taken away: one that has nothing to do costs nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from sealrun_vmm.errors import ChangeFailed, SpecRefused
from sealrun_vmm.spec import VmSpec

STEP_MIB: Final = 128  # the kernel's block of memory on x86-64, the least that it adds

PATIENCE_SECONDS: Final = 10.0  # that a guest may take nothing

_POLL_SECONDS: Final = 0.1


class Size(NamedTuple):
    """Virtual CPUs, and MiB of memory, of a whole VM."""

    cpus: int
    memory_mib: int


def room_mib(spec: VmSpec) -> int:
    """MiB that can be added to the VM, whole steps; 0 where it cannot grow."""
    return max(0, spec.max_memory_mib - spec.memory_mib) // STEP_MIB * STEP_MIB


def largest(spec: VmSpec) -> Size:
    """What the VM can become."""
    return Size(max(spec.cpus, spec.max_cpus), spec.memory_mib + room_mib(spec))


def added_mib(spec: VmSpec, size: Size) -> int:
    """The steps that make the VM `size`, or a little larger. Raises SpecRefused where it cannot be."""
    steps = -(-max(0, size.memory_mib - spec.memory_mib) // STEP_MIB)
    most = largest(spec)
    if size.cpus > most.cpus or steps * STEP_MIB > room_mib(spec):
        raise SpecRefused(
            f"cannot make the VM as large as {size.cpus} CPUs and {size.memory_mib} MiB: "
            f"it was launched for {most.cpus} and {most.memory_mib} MiB at most",
            remedy="raise vm.max_cpus and vm.max_memory in sealrun.toml",
        )
    return steps * STEP_MIB


async def wait_for(taken: Callable[[], Awaitable[int]], wanted: int) -> None:
    """Return when the guest has taken `wanted` MiB of what was added; `taken` says how many it has.

    Raises ChangeFailed, and what `taken` raises."""
    loop = asyncio.get_running_loop()
    before, since = -1, loop.time()
    while (now := await taken()) < wanted:
        if now != before:
            before, since = now, loop.time()
        elif loop.time() - since > PATIENCE_SECONDS:
            raise ChangeFailed(
                f"its guest took {now} MiB of the {wanted} that were added, "
                f"and no more for {PATIENCE_SECONDS:g} s"
            )
        await asyncio.sleep(_POLL_SECONDS)
