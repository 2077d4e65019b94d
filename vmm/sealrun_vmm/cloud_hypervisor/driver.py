"""The driver: what this host and this VMM can boot, and the way from a VmSpec to a running guest."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from typing import Final

from sealrun_vmm import guest, kvm, process
from sealrun_vmm.cloud_hypervisor import confidential, config, landlock, program
from sealrun_vmm.cloud_hypervisor.api import Api, ApiError
from sealrun_vmm.cloud_hypervisor.machine import LOG, CloudHypervisorMachine
from sealrun_vmm.cloud_hypervisor.program import PROGRAM
from sealrun_vmm.errors import HostUnfit, LaunchFailed
from sealrun_vmm.spec import VmSpec

API_SOCKET: Final = "vmm.sock"
LAUNCH_SECONDS: Final = 60.0  # from the process's start to the guest's first instruction


class CloudHypervisorDriver:
    """Implements `sealrun_vmm.driver.Driver`."""

    def __init__(
        self,
        binary: str = "",
        *,
        kvm_obstacle: Callable[[], str | None] = kvm.obstacle,
        launch_seconds: float = LAUNCH_SECONDS,
    ) -> None:
        """binary: the VMM's path; empty: the system's own. kvm_obstacle: why KVM cannot be used."""
        self._binary = binary
        self._kvm_obstacle = kvm_obstacle
        self._launch_seconds = launch_seconds

    def check(self, spec: VmSpec) -> None:
        """Raise HostUnfit or SpecRefused where `spec` cannot be booted here."""
        binary = program.find(self._binary)
        config.vm_config(spec)
        if (cause := self._kvm_obstacle()) is not None:
            remedy = f"{kvm.JOIN}, or {program.USE_QEMU}" if kvm.denied() else program.USE_QEMU
            raise HostUnfit(f"cannot use KVM: {cause}", remedy=remedy)
        confidential.require(program.identify(binary), spec.tee)
        if spec.landlock and (cause := landlock.obstacle()) is not None:
            raise HostUnfit(
                f"cannot confine {PROGRAM} by Landlock: {cause}",
                remedy="boot Linux 6.2 or newer, or set vm.insecure_no_landlock to true in "
                "sealrun.toml",
            )
        guest.check(spec)

    async def launch(
        self, spec: VmSpec, directory: str, enlist: process.Enlist = process.unknown
    ) -> CloudHypervisorMachine:
        """Start the VMM in `directory` and boot the guest. enlist: what its process does first.

        Raises HostUnfit, SpecRefused, LaunchFailed; then nothing of it runs any more."""
        self.check(spec)
        machine = self._start(spec, directory, enlist)
        try:
            async with asyncio.timeout(self._launch_seconds):
                await _boot(machine.api, spec)
        except (ApiError, TimeoutError) as error:
            if machine.end is not None:
                cause = machine.end.reason
            elif isinstance(error, ApiError):
                cause = f"{PROGRAM} {error}"
            else:
                asked = machine.api.under_way
                cause = f"{PROGRAM} did not answer {asked} in {self._launch_seconds:g} s"
            await machine.stop()
            words = machine.last_words()
            detail = f"; its log ends with: {words}" if words else ""
            raise LaunchFailed(f"cannot boot the VM: {cause}{detail}") from error
        except BaseException:
            await machine.stop()
            raise
        return machine

    def _start(
        self, spec: VmSpec, directory: str, enlist: process.Enlist
    ) -> CloudHypervisorMachine:
        """The VMM's process, with our ends of its socket and its pipe. Raises LaunchFailed."""
        try:
            with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
                listener, endpoint = api_socket(directory)
                ours.enter_context(endpoint)
                theirs.enter_context(listener)
                events, their_events = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                ours.callback(os.close, events)
                theirs.callback(os.close, their_events)
                os.symlink(spec.channel, os.path.join(directory, config.GUEST_SOCKET))
                given = (listener.fileno(), their_events)
                command = config.command(program.find(self._binary), *given)
                running = process.spawn(
                    command,
                    directory,
                    output=spec.console,
                    errors=LOG,
                    descriptors=(*given, *spec.inherited),
                    enlist=enlist,
                )
                ours.pop_all()
        except OSError as error:
            raise LaunchFailed(f"cannot start {PROGRAM}: {error.strerror}") from error
        return CloudHypervisorMachine(running, Api(endpoint), events, directory, spec)


async def _boot(api: Api, spec: VmSpec) -> None:
    """Raises ApiError, HostUnfit."""
    confidential.require(await api.ping(), spec.tee)
    await api.create(config.vm_config(spec))
    for index, nic in enumerate(spec.nics):
        await api.add_net(config.net_config(f"nic{index}", nic), nic.tap_fd)
    await api.boot()


def api_socket(directory: str) -> tuple[socket.socket, socket.socket]:
    """The listening socket for the VMM, and a connection that waits in it. Raises OSError."""
    # A unix socket's path is short, and the directory's may be long.
    place = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path = f"/proc/self/fd/{place}/{API_SOCKET}"
        listener.bind(path)
        listener.listen(1)
        endpoint.connect(path)
        endpoint.setblocking(False)
    except OSError:
        listener.close()
        endpoint.close()
        raise
    finally:
        os.close(place)
    return listener, endpoint


def driver(binary: str = "") -> CloudHypervisorDriver:
    """What `sealrun_vmm.driver.load` calls."""
    return CloudHypervisorDriver(binary)
