"""The sandbox's network: an engine's network namespace, whose interfaces the VM takes over.

A namespace that config.json names by path is looked at before the VM starts, so the VM is born with
its network devices. One that config.json asks to be made is the stand-in's; engines that fill it do so
between create and start (Buildah, `ctr run --cni`, Podman with user namespaces), and any engine may
connect a running container to one more network. So the namespace is looked at again at each start and
whenever it changes, and what is new is plugged into the running VM.
"""

import asyncio
import os
from typing import Final

from sealrun_protocol.messages import ConfigureNetwork
from sealrun_protocol.network import Network as Description
from sealrun_vmm.driver import Machine
from sealrun_vmm.errors import VmmError

from sealrun_runtime import pod
from sealrun_runtime.handover import Handover
from sealrun_runtime.network import namespace
from sealrun_runtime.shim.agent import Agent
from sealrun_runtime.shim.errors import HostFailed, HostUnfit, ShimError, VmmFailed
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.wires import Namespace
from sealrun_runtime.store import Directory

NETWORK_SECONDS: Final = 60.0  # until a description counts as not answered
HOST_REMEDY: Final = "give the container a network of its own"
PROCESS_REMEDY: Final = (
    "put both into one pod, all of it under sealrun (podman run --pod instead of --network container:), or "
    "give this one a network of its own"
)
SETTLE_SECONDS: Final = 0.1  # that changes are gathered before they are acted upon


def of_bundle(handover: Handover, directory: Directory) -> Namespace | None:
    """The namespace that config.json names by path, with wires to all its interfaces; None where it
    names none. Raises HostUnfit, HostFailed."""
    path = _path(handover)
    if not path:
        return None
    if path.startswith("/proc/"):
        # Its owner has a network stack there, whose packets a VM would take away.
        text = f"a VM cannot share the network of another container or process ({path})"
        raise HostUnfit(text, remedy=PROCESS_REMEDY)
    place = _open(path, directory, inside=pod.is_kubernetes(handover.container))
    try:
        place.look()
    except ShimError:
        place.close()
        raise
    return place


def has_own_network(handover: Handover) -> bool:
    """Whether config.json asks for a network namespace to be made."""
    return _path(handover) == ""


def is_network_of(handover: Handover, other: Handover, pid: int) -> bool:
    """Whether a container's network namespace is that of another one, whose stand-in is `pid` (0 where
    it has none yet, or none any more)."""
    wanted = _path(handover)
    theirs = f"/proc/{pid}/ns/net" if os.path.exists(f"/proc/{pid}/ns/net") else _path(other)
    if not wanted or not theirs:
        return False
    try:
        return os.path.samefile(wanted, theirs)
    except OSError:
        return False


def _path(handover: Handover) -> str | None:
    """Of the network namespace in config.json: empty for a new one, None for none at all."""
    spaces = handover.container.namespaces
    return next((one.path for one in spaces if one.type == "network"), None)


def _open(path: str, directory: Directory | None = None, *, inside: bool = False) -> Namespace:
    """inside: whether the engine forwards ports from there, though it is not rootless."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        text = f"cannot open the network namespace {path}: {error.strerror}"
        raise HostFailed(text) from error
    if namespace.is_own(descriptor):
        os.close(descriptor)
        raise HostUnfit("a VM cannot have the host's own network", remedy=HOST_REMEDY)
    return Namespace(descriptor, path, directory, inside=inside)


class Network:
    """Keeps the VM's network like the namespace's. Event loop only."""

    def __init__(self, agent: Agent, machine: Machine, place: Namespace | None) -> None:
        """place: the namespace whose wires the VM was launched with."""
        self._agent, self._machine, self._place = agent, machine, place
        self._told = Description()
        self._turn = asyncio.Lock()
        self._due: asyncio.TimerHandle | None = None
        self._work: asyncio.Task[None] | None = None

    def adopt(self, pid: int) -> None:
        """Take the namespace of this process, which the container's stand-in made for itself. Raises
        HostFailed, HostUnfit."""
        if self._place is None:
            self._place = _open(f"/proc/{pid}/ns/net")

    async def refresh(self) -> None:
        """Make the VM's network what the namespace's is now. Raises ShimError."""
        async with self._turn:
            if self._place is not None:
                await self._carry(self._place)

    async def follow(self) -> None:
        """The same, and again whenever the namespace changes. Raises ShimError."""
        await self.refresh()
        if self._place is not None:
            loop = asyncio.get_running_loop()
            loop.add_reader(self._place.changes.fileno(), self._changed)

    def close(self) -> None:
        """Give the interfaces back to the namespace; the VM is gone."""
        if self._due is not None:
            self._due.cancel()
        if self._work is not None:
            self._work.cancel()
        if self._place is not None:
            asyncio.get_running_loop().remove_reader(self._place.changes.fileno())
            self._place.close()
            self._place = None

    async def _carry(self, place: Namespace) -> None:
        change = place.look()
        for name, nic in change.plugged:
            try:
                await self._machine.add_nic(name, nic)
            except VmmError as error:
                place.refuse(name)
                text = f"cannot give the VM one more network device: {error}"
                raise VmmFailed(text, remedy=error.remedy) from error
        place.handed_over()
        if place.network != self._told:
            description = place.network
            await self._agent.request(
                lambda number: ConfigureNetwork(id=number, network=description), NETWORK_SECONDS
            )
            self._told = description
        for name in change.unplugged:
            try:
                await self._machine.remove_nic(name)
            except VmmError as error:  # it is down in the guest, and does no harm
                log.info("the VM keeps its network device %s: %s", name, error)

    def _changed(self) -> None:
        assert self._place is not None
        self._place.changes.drain()
        if self._due is None:
            self._due = asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._act)

    def _act(self) -> None:
        self._due = None
        self._work = asyncio.ensure_future(self._try_to_refresh())

    async def _try_to_refresh(self) -> None:
        """Nobody asked, so nobody can be told: the container goes on with the network that it has."""
        try:
            await self.refresh()
        except ShimError as error:
            log.error("cannot follow a change of the network: %s", error.text)
