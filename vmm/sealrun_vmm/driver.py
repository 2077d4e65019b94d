"""What every VMM driver offers, and the lazy look-up of a driver by name.

Drivers do not know each other, and nobody imports a driver's folder but `load`.
"""

from dataclasses import dataclass
from enum import StrEnum
from importlib import import_module
from typing import Protocol

from sealrun_vmm.growth import Size
from sealrun_vmm.process import Enlist, unknown
from sealrun_vmm.spec import Disk, Nic, VmSpec


class DriverName(StrEnum):
    """The VMMs, as `vmm.driver` in sealrun.toml names them; each is a folder of this package."""

    QEMU = "qemu"
    CLOUD_HYPERVISOR = "cloud-hypervisor"


@dataclass(frozen=True, slots=True)
class MachineExit:
    """How a VM ended. `orderly`: the guest powered off, or it was stopped on request."""

    orderly: bool
    reason: str


class Machine(Protocol):
    """A VM that was launched. Its VMM process dies with the process that launched it.

    A VMM that does not answer a change, or not in its language, is lost: it is killed, which ends the
    VM with the reason."""

    @property
    def pid(self) -> int:
        """The VMM's process id."""

    async def wait(self) -> MachineExit:
        """Return when the VM is gone, whatever ended it. May be awaited any number of times."""

    async def add_nic(self, name: str, nic: Nic) -> None:
        """Plug one more network device into the running VM. name: as `nicN`, where N counts all that
        the VM ever had. Raises SpecRefused where there is no place for it, VmmError."""

    async def remove_nic(self, name: str) -> None:
        """Take a network device out. Raises SpecRefused for one that the VM was born with, where the
        VMM cannot, VmmError."""

    async def add_disk(self, disk: Disk) -> None:
        """Plug a block device of the host, whose node lies among the VmSpec's `nodes`, into the running VM.
        Raises SpecRefused where there is no place for it, VmmError."""

    async def remove_disk(self, serial: str) -> None:
        """Take a disk out, one that the VM was born with too. Raises VmmError, also where the VMM cannot
        (QEMU, persistent memory): it stays then."""

    async def pmem_address(self, serial: str) -> int:
        """Where in the guest's physical memory a disk begins that is persistent memory: by that the guest
        finds it, since such a device has no serial. Raises VmmError."""

    async def resize(self, size: Size) -> None:
        """Make the VM as large as `size`, within what its VmSpec allows; one at a time. Where it
        grows, returns when the guest has taken the memory; CPUs are only offered to it.

        Raises SpecRefused, ChangeFailed."""

    async def stop(self) -> None:
        """End the VM now; returns when the VMM process is gone and reaped. Idempotent."""


class Driver(Protocol):
    """One VMM."""

    def check(self, spec: VmSpec) -> None:
        """Raise HostUnfit or SpecRefused where this host or VMM cannot boot `spec`."""

    async def launch(self, spec: VmSpec, directory: str, enlist: Enlist = unknown) -> Machine:
        """Start the VMM with `directory` (the sandbox's state directory) as its working directory.
        enlist: what its process does first.

        Returns as soon as the process runs; that the guest is up is said by its Hello.
        Raises HostUnfit, SpecRefused, LaunchFailed."""


def load(name: DriverName, binary: str = "") -> Driver:
    """The driver called `name`, for the VMM at the path `binary` (empty: the system's own).

    Its module is imported only now."""
    module = import_module(f"sealrun_vmm.{name.value.replace('-', '_')}.driver")
    driver: Driver = module.driver(binary)
    return driver
