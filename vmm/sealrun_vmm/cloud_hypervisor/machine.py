"""A VM in a Cloud Hypervisor process, from its boot to its end.

The process's exit status tells little: it is 0 after a power-off, but also after an error of a
virtual CPU. A guest that resets, a panic included, is booted anew in the same process; its container
is lost then, so that counts as the end, and the VMM is killed before the guest speaks again.
"""

import asyncio
import os
from typing import Final

from sealrun_vmm import guest, process
from sealrun_vmm.cloud_hypervisor import config
from sealrun_vmm.cloud_hypervisor.api import Api, ApiError
from sealrun_vmm.cloud_hypervisor.events import Event, Monitor
from sealrun_vmm.cloud_hypervisor.program import PROGRAM
from sealrun_vmm.driver import MachineExit
from sealrun_vmm.errors import ChangeFailed
from sealrun_vmm.spec import Nic

LOG: Final = "vmm.log"
STOP_SECONDS: Final = 2.0  # that an orderly end may take

_ERROR_MARK: Final = " ERROR:"


class CloudHypervisorMachine:
    """Implements `sealrun_vmm.driver.Machine`. Made by the driver; event loop only."""

    def __init__(
        self, running: process.VmmProcess, api: Api, events: int, directory: str, console: str
    ) -> None:
        """events: the reading end of the event monitor's pipe, not blocking; closed by the machine.
        console: the file in `directory` that gets the guest's serial console."""
        self.api = api
        self.end: MachineExit | None = None
        """Why the VM ends, once that is known, which may be before its process is gone."""
        self._process = running
        self._log = os.path.join(directory, LOG)
        self._console = os.path.join(directory, console)
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
        """Plug in a network device. Raises ChangeFailed."""
        try:
            await self.api.add_net(config.net_config(name, nic), nic.tap_fd)
        except ApiError as error:
            raise ChangeFailed(f"{PROGRAM} {error}") from error

    async def remove_nic(self, name: str) -> None:
        """Take a network device out. Raises ChangeFailed."""
        try:
            await self.api.remove_device(name)
        except ApiError as error:
            raise ChangeFailed(f"{PROGRAM} {error}") from error

    async def pause(self) -> None:
        """Stop the guest's virtual CPUs. Raises ApiError."""
        await self.api.pause()

    async def resume(self) -> None:
        """Let them run again. Raises ApiError."""
        await self.api.resume()

    def last_words(self) -> str:
        """The line of the VMM's log that best tells why it ended: the last one about an error, else
        the last."""
        lines = process.tail(self._log)
        errors = [line for line in lines if "error" in line.lower()]
        return (errors or lines or [""])[-1]

    def _happened(self, event: Event) -> None:
        match event.source, event.event:
            case "vm", "rebooting":
                self._kill(self._guest_failed("it reset itself"))
            case "guest", "panic":
                self._kill(self._guest_failed("its kernel panicked"))

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
