"""The wires between an engine's network namespace and the VM.

Each interface that is taken over has one: a tap whose file the VMM has, and the redirection between the
two (network/tap.py). The tap goes with the VMM; the redirection is undone here, or by `delete` where
this process was killed (leftovers.py).
"""

import contextlib
import os
from collections.abc import Iterator
from typing import Final, NamedTuple

from msgspec.structs import replace
from sealrun_protocol.network import INTERFACES, Network
from sealrun_vmm.spec import Nic

from sealrun_runtime import namespaces
from sealrun_runtime.network import leftover, namespace, tap
from sealrun_runtime.network.door import Door
from sealrun_runtime.network.doors import Doors
from sealrun_runtime.network.netlink import Changes, Netlink
from sealrun_runtime.network.survey import Survey, survey
from sealrun_runtime.shim.errors import HostFailed, HostUnfit
from sealrun_runtime.shim.log import log
from sealrun_runtime.store import NETWORK, Directory

_MADE_UP: Final = (
    b"\x02\x73\x72\x00"  # locally administered; the first four bytes of made-up addresses
)


class Wire(NamedTuple):
    """What joins an interface to a device of the VM. name: of the device, for the VMM.
    device: its MAC address. descriptor: of the tap. door: for the namespace's own programs."""

    name: str
    device: bytes
    interface: int
    descriptor: int
    door: Door | None


class Change(NamedTuple):
    """What the namespace has that the VM lacks, and the other way round."""

    plugged: list[tuple[str, Nic]]
    unplugged: list[str]


class Namespace:
    """One network namespace and the wires that lead out of it. Nothing here waits."""

    def __init__(
        self,
        descriptor: int,
        path: str = "",
        directory: Directory | None = None,
        *,
        inside: bool = False,
    ) -> None:
        """descriptor: of an open /proc/PID/ns/net file, which is taken over. path: where it outlives
        the sandbox, whose state directory then names what is redirected. inside: the engine forwards
        ports from there. Raises HostFailed."""
        self._descriptor, self._path, self._directory = descriptor, path, directory
        self._wires: dict[int, Wire] = {}
        self._devices: set[bytes] = set()
        self._refused: set[int] = set()
        self._count = 0
        self._told: tuple[str, ...] = ()
        self.network = Network()
        try:
            self._netlink, self.changes = namespace.inside(
                descriptor, lambda: (Netlink(), Changes())
            )
        except OSError as error:
            os.close(descriptor)
            raise _failed("enter the network namespace", error) from error
        # An engine that is not the host's root does in any case.
        inside = inside or namespaces.is_rootless()
        self._doors = Doors(self._netlink, descriptor) if inside else None

    def close(self) -> None:
        """Give the interfaces back. The VMM is gone, or goes without its network."""
        for wire in self._wires.values():
            self._cut(wire)
        self._wires.clear()
        if self._doors is not None:
            self._doors.close()
        with contextlib.suppress(OSError):  # the state directory may be gone already
            self._record()
        self.changes.close()
        self._netlink.close()
        os.close(self._descriptor)

    def handed_over(self) -> None:
        """The VMM has the taps: without it they are to go."""
        for interface, wire in self._wires.items():
            if wire.descriptor >= 0:
                os.close(wire.descriptor)
                self._wires[interface] = wire._replace(descriptor=-1)

    @property
    def nics(self) -> tuple[Nic, ...]:
        """The devices of all wires, in order, where the VMM has not got them yet."""
        mtus = {one.device: one.mtu for one in self.network.interfaces}
        return tuple(
            _nic(wire, mtus[wire.device]) for wire in self._wires.values() if wire.descriptor >= 0
        )

    @property
    def interfaces(self) -> tuple[int, ...]:
        """The indexes of those that are redirected."""
        return tuple(self._wires)

    def look(self) -> Change:
        """See what there is now, wire what is new, cut what is gone. `network` is then the
        description. Raises HostUnfit, HostFailed."""
        try:
            found = survey(self._netlink)
        except OSError as error:
            raise _failed("look into the network namespace", error) from error
        self._tell(found.notes)
        indexes = {
            index: name for name, index in found.indexes.items() if index not in self._refused
        }
        if found.in_use and not self._wires:
            raise HostUnfit(
                "the network namespace is another sandbox's already",
                remedy="two VMs cannot be one host on the network: put the containers into one pod",
            )
        if len(indexes) > INTERFACES:
            raise HostUnfit(f"the network namespace has more than {INTERFACES} interfaces")
        gone = [self._wires.pop(index) for index in list(self._wires) if index not in indexes]
        for wire in gone:
            self._cut(wire)
        new = list(self._wire(found, indexes))
        devices = {indexes[wire.interface]: wire.device for wire in self._wires.values()}
        self.network = self._through_doors(_over(devices, found.network))
        return Change(new, [wire.name for wire in gone])

    def refuse(self, name: str) -> None:
        """The VM cannot have the device `name`: its interface is left to the namespace from now on."""
        for interface, wire in list(self._wires.items()):
            if wire.name == name:
                self._cut(self._wires.pop(interface))
                self._refused.add(interface)
                kept = {one.name: one.device for one in self.network.interfaces}
                self.network = _over(
                    {n: d for n, d in kept.items() if d != wire.device}, self.network
                )

    def _wire(self, found: Survey, indexes: dict[int, str]) -> Iterator[tuple[str, Nic]]:
        for one in found.network.interfaces:
            interface = found.indexes[one.name]
            if interface in self._wires or interface not in indexes:
                continue
            made = self._join(interface, one.name, one.mtu)
            name = f"nic{self._count}"
            self._count += 1
            door = self._door(interface, made)
            wire = Wire(name, self._device(one.mac), interface, made.descriptor, door)
            self._wires[interface] = wire
            log.info("interface %s of the network namespace is the VM's %s", one.name, name)
            yield name, _nic(wire, one.mtu)

    def _join(self, interface: int, name: str, mtu: int) -> tap.Tap:
        try:
            made = namespace.inside(self._descriptor, lambda: tap.open_tap(self._netlink, mtu))
        except OSError as error:
            raise HostUnfit(
                f"cannot make a tap device: {error.strerror}",
                remedy="load the kernel module tun; the container's engine needs CAP_NET_ADMIN",
            ) from error
        try:
            self._record(interface)
            tap.join(self._netlink, interface, made.interface)
        except tap.InUse as error:
            os.close(made.descriptor)
            raise HostUnfit(
                f"interface {name} has traffic control of its own",
                remedy=f"take its ingress qdisc away (tc qdisc del dev {name} ingress) or use another network",
            ) from error
        except OSError as error:
            os.close(made.descriptor)
            raise _failed(f"redirect the packets of interface {name}", error) from error
        return made

    def _door(self, interface: int, made: tap.Tap) -> Door | None:
        if self._doors is None:
            return None
        try:
            return self._doors.open(made.interface)
        except OSError as error:
            os.close(made.descriptor)
            tap.release(self._netlink, interface)
            raise _failed("let the namespace's programs reach the VM", error) from error

    def _through_doors(self, network: Network) -> Network:
        """The same, with the VM's way back to the namespace's programs."""
        if self._doors is None:
            return network
        doors = {wire.device: wire.door for wire in self._wires.values()}
        ways = [
            (door, one) for one in network.interfaces if (door := doors.get(one.device)) is not None
        ]
        try:
            return self._doors.lead(ways, network)
        except OSError as error:
            raise _failed("let the namespace's programs reach the VM", error) from error

    def _record(self, *more: int) -> None:
        """Of the redirections that there are, and of one that is to be, for whoever comes after a
        sudden end. Raises OSError."""
        if self._directory is not None:
            lines = (
                leftover.line(interface, self._descriptor, self._path)
                for interface in (*self._wires, *more)
            )
            self._directory.write(NETWORK, "\n".join(lines).encode())

    def _device(self, mac: bytes) -> bytes:
        """A MAC address that no device of the VM has had: the interface's own, where it can be."""
        if mac not in self._devices:
            self._devices.add(mac)
            return mac
        made_up = _MADE_UP + self._count.to_bytes(2, "big")
        self._devices.add(made_up)
        return made_up

    def _cut(self, wire: Wire) -> None:
        if wire.descriptor >= 0:
            os.close(wire.descriptor)
        try:
            tap.release(self._netlink, wire.interface)
        except OSError as error:
            log.error("cannot give interface %d back: %s", wire.interface, error.strerror)

    def _tell(self, notes: tuple[str, ...]) -> None:
        if notes != self._told:
            self._told = notes
            for note in notes:
                log.info("%s", note)


def _over(devices: dict[str, bytes], network: Network) -> Network:
    """What of `network` goes over the interfaces in `devices`, which get these."""
    return Network(
        interfaces=tuple(
            replace(one, device=devices[one.name])
            for one in network.interfaces
            if one.name in devices
        ),
        routes=tuple(one for one in network.routes if one.interface in devices),
        neighbours=tuple(one for one in network.neighbours if one.interface in devices),
    )


def _nic(wire: Wire, mtu: int) -> Nic:
    return Nic(tap_fd=wire.descriptor, mac=wire.device.hex(":"), mtu=mtu)


def _failed(what: str, error: OSError) -> HostFailed:
    return HostFailed(f"cannot {what}: {error.strerror or error}")
