"""A VM in a Cloud Hypervisor process, from its boot to its end.

The process's exit status tells little: it is 0 after a power-off, but also after an error of a
virtual CPU. A guest that resets, a panic included, is booted anew in the same process; its container
is lost then, so that counts as the end, and the VMM is killed before the guest speaks again.
"""

import asyncio
import os
from collections.abc import Awaitable
from itertools import pairwise
from typing import Final, TypeVar

from sealrun_vmm import growth, guest, process
from sealrun_vmm.cloud_hypervisor import config
from sealrun_vmm.cloud_hypervisor.api import Api, ApiError, Refused
from sealrun_vmm.cloud_hypervisor.events import Event, Monitor
from sealrun_vmm.cloud_hypervisor.program import PROGRAM
from sealrun_vmm.driver import MachineExit
from sealrun_vmm.errors import ChangeFailed, SpecRefused
from sealrun_vmm.growth import Size
from sealrun_vmm.spec import Disk, Nic, Tee, VmSpec

LOG: Final = "vmm.log"
STOP_SECONDS: Final = 2.0  # that an orderly end may take
ANSWER_SECONDS: Final = 10.0  # for a call while the guest runs

_ERROR_MARK: Final = " ERROR:"
_PANIC_MARK: Final = " panicked at "
_MIB: Final = 1 << 20
_Result = TypeVar("_Result")


class CloudHypervisorMachine:
    """Implements `sealrun_vmm.driver.Machine`. Made by the driver; event loop only."""

    def __init__(
        self, running: process.VmmProcess, api: Api, events: int, directory: str, spec: VmSpec
    ) -> None:
        """events: the reading end of the event monitor's pipe, not blocking; closed by the machine."""
        self.api = api
        self.end: MachineExit | None = None
        """Why the VM ends, once that is known, which may be before its process is gone."""
        self._process = running
        self._log = os.path.join(directory, LOG)
        self._console = os.path.join(directory, spec.console)
        self._spec, self._cpus, self._added = spec, spec.cpus, 0
        self._killing: asyncio.Task[None] | None = None
        self._monitor = Monitor(events, self._happened, self._garbled)

    @property
    def pid(self) -> int:
        """The VMM's process id."""
        return self._process.pid

    async def wait(self) -> MachineExit:
        """How the VM ended, once it is gone."""
        status = await self._process.wait()
        self._monitor.drain()
        self._monitor.close()
        self.api.close()
        if self.end is None:
            self.end = self._explain(status)
        return self.end

    async def resize(self, size: Size) -> None:
        """See Machine."""
        added = growth.added_mib(self._spec, size)
        if size.cpus > self._cpus:
            await self._ask(self.api.resize(cpus=size.cpus))
            self._cpus = size.cpus
        if added != self._added:
            memory = (self._spec.memory_mib + added) * _MIB
            await self._ask(self.api.resize(memory=memory))
            self._added = added
        if added:
            await growth.wait_for(self._taken, added)

    async def _taken(self) -> int:
        """MiB of what was added that the guest uses."""
        return await self._ask(self.api.memory()) // _MIB - self._spec.memory_mib

    async def _ask(self, call: Awaitable[_Result]) -> _Result:
        """The answer to a call, in bounded time, or the end of a VMM that gives none. Raises
        ChangeFailed."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await call
        except Refused as error:
            raise ChangeFailed(f"{PROGRAM} {error}") from error
        except (ApiError, TimeoutError) as error:
            told = f"did not answer {self.api.under_way} in {ANSWER_SECONDS:g} s"
            text = f"{PROGRAM} {error if isinstance(error, ApiError) else told}"
            self._kill(MachineExit(orderly=False, reason=text))
            raise ChangeFailed(text) from error

    async def stop(self) -> None:
        """End the VM now: in order, or by SIGKILL where that takes more than STOP_SECONDS."""
        if self.end is None:
            self.end = MachineExit(orderly=True, reason="the VM was stopped")
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self.api.shut_down()
                await self._process.wait()
        except (TimeoutError, ApiError):
            pass  # it hangs, or is going or gone
        finally:
            await self._process.kill()
        await self.wait()

    async def add_nic(self, name: str, nic: Nic) -> None:
        """See Machine."""
        if self._spec.tee is Tee.SNP:
            raise SpecRefused(f"a VM with {self._spec.tee} gets no device after its start")
        await self._ask(self.api.add_net(config.net_config(name, nic), nic.tap_fd))

    async def remove_nic(self, name: str) -> None:
        """See Machine."""
        await self._ask(self.api.remove_device(name))

    async def add_disk(self, disk: Disk) -> None:
        """See Machine."""
        if disk.pmem_bytes:
            await self._ask(self.api.add_pmem(config.pmem_config(self._spec, disk)))
        else:
            await self._ask(self.api.add_disk(config.disk_config(self._spec, disk)))

    async def remove_disk(self, serial: str) -> None:
        """See Machine."""
        await self._ask(self.api.remove_device(serial))

    async def pmem_address(self, serial: str) -> int:
        """See Machine."""
        return await self._ask(self.api.address(serial))

    def last_words(self) -> str:
        """The line of the VMM's log that best tells why it ended: of its first panic, else the last one about
        an error, else the last."""
        lines = process.tail(self._log)
        for line, cause in pairwise(lines):  # what was wrong stands below where it was found
            if _PANIC_MARK in line:
                return f"{line} {cause}"
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or [""])[-1]

    def _happened(self, event: Event) -> None:
        # A kernel that panics resets, by its command line.
        if (event.source, event.event) == ("vm", "rebooting"):
            self._kill(self._guest_failed("it reset itself"))

    def _garbled(self) -> None:
        self._kill(
            MachineExit(orderly=False, reason=f"{PROGRAM} reports events that cannot be read")
        )

    def _kill(self, end: MachineExit) -> None:
        if self.end is None:
            self.end = end
            self._killing = asyncio.ensure_future(self._process.kill())

    def _guest_failed(self, how: str) -> MachineExit:
        words = guest.failure(self._console) or how
        return MachineExit(orderly=False, reason=f"the guest failed: {words}")

    def _explain(self, status: int) -> MachineExit:
        """The end of a process that nobody here asked for."""
        if status != 0:
            manner = f"status {status}" if status > 0 else f"signal {-status}"
            return _failed(f"{PROGRAM} ended with {manner}", self.last_words())
        if (failure := guest.failure(self._console)) is not None:
            return _failed("the guest failed", failure)
        words = self.last_words()
        if _ERROR_MARK in words:
            return _failed(f"{PROGRAM} gave up", words)
        return MachineExit(orderly=True, reason="the guest powered off")


def _failed(what: str, words: str) -> MachineExit:
    return MachineExit(orderly=False, reason=f"{what}: {words}" if words else what)
