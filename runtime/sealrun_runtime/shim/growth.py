"""The VM's size, which follows its containers' limits: what is configured, and on top of it all that
their memory limits allow; as many CPUs as their quotas fill.

A VM with a TEE is as large as it is configured: that is measured. Any other one grows while it runs.
"""

import asyncio

from sealrun_protocol.messages import ResizeSandbox
from sealrun_vmm import growth
from sealrun_vmm.driver import Machine
from sealrun_vmm.errors import ChangeFailed
from sealrun_vmm.growth import Size
from sealrun_vmm.spec import VmSpec

from sealrun_runtime.demand import Demand
from sealrun_runtime.settings import VmSettings
from sealrun_runtime.shim.agent import INQUIRY_SECONDS, Agent
from sealrun_runtime.shim.errors import HostUnfit
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.machine import size_for


class Growth:
    """One VM's. Event loop only."""

    def __init__(
        self,
        machine: Machine,
        spec: VmSpec,
        settings: VmSettings,
        agent: Agent,
        demands: dict[str, Demand],
    ) -> None:
        """demands: of the containers that `spec` was made for, by id."""
        self._machine, self._spec, self._settings, self._agent = machine, spec, settings, agent
        self._demands = dict(demands)
        self._size = Size(spec.cpus, spec.memory_mib)
        self._turn = asyncio.Lock()

    def check(self, container: str, demand: Demand) -> None:
        """Raise HostUnfit where a container is to be allowed more than its VM can ever be."""
        most, now = growth.largest(self._spec), self._demands.get(container, Demand())
        for what, wanted, had, most_of_it in (
            ("MiB of memory", demand.memory_mib, now.memory_mib, most.memory_mib),
            ("CPUs", demand.cpus, now.cpus, most.cpus),
        ):
            if wanted > max(had, most_of_it):
                raise HostUnfit(
                    f"cannot give the container {wanted} {what}: its VM can have {most_of_it}",
                    remedy="create it with more (vm.cpus and vm.memory, or vm.max_cpus and "
                    "vm.max_memory where there is no TEE)",
                )

    async def hold(self, container: str, demand: Demand | None) -> None:
        """Make the VM as large as its containers want it, of which one wants `demand` now, or is
        there no more. Raises VmmError, ShimError."""
        # What was begun is ended, or the VMM would be found in the middle of an answer.
        work = asyncio.ensure_future(self._hold(container, demand))
        work.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(work)

    async def _hold(self, container: str, demand: Demand | None) -> None:
        async with self._turn:
            demands = {name: one for name, one in self._demands.items() if name != container}
            if demand is not None:
                demands[container] = demand
            wanted = size_for(self._settings, demands.values(), growth.largest(self._spec))
            size = Size(
                max(wanted.cpus, self._size.cpus), max(wanted.memory_mib, self._spec.memory_mib)
            )
            if size != self._size:
                await self._resize(size)
            self._demands = demands

    async def _resize(self, size: Size) -> None:
        log.info("the VM becomes %d CPUs and %d MiB", *size)
        grows = size.memory_mib > self._size.memory_mib or size.cpus > self._size.cpus
        try:
            await self._machine.resize(size)
        except ChangeFailed as error:
            if grows:
                raise
            log.info("the VM stays as large as it was: %s", error)
            return
        if grows:
            await self._agent.request(
                lambda number: ResizeSandbox(id=number, cpus=size.cpus), INQUIRY_SECONDS
            )
        self._size = size
