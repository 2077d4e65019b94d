#!/usr/bin/python3 -ISE
"""The real shim with a VM that is a sleeping process, for tests in which the test plays the guest.

    shim_without_vm.py --directory DIR --listen-fd N

The guest's end of the channel is whoever connects to DIR/channel.sock. Killing the sleeping process
is the VM's death. It can become 4 CPUs and 1024 MiB; each size that it becomes is a line in DIR/sizes,
and where there is a file DIR/unyielding it does not. Nothing in the product selects this driver: it comes in as a Python argument.
"""

import os
import sys

_ROOT = os.path.realpath(__file__).removesuffix("/tests/simulators/shim_without_vm.py")
_VERSION = f"python{sys.version_info[0]}.{sys.version_info[1]}"
sys.path[:0] = [f"{_ROOT}/{room}" for room in ("runtime", "vmm", "guest-agent")]
sys.path += [f"{_ROOT}/build/venv/lib/{_VERSION}/site-packages", f"{_ROOT}/site-packages"]

from sealrun_runtime.handover import Handover  # noqa: E402
from sealrun_runtime.shim import disks, shared_tree  # noqa: E402
from sealrun_runtime.shim.machine import Plan  # noqa: E402
from sealrun_runtime.shim.main import main  # noqa: E402
from sealrun_vmm.driver import DriverName, MachineExit  # noqa: E402
from sealrun_vmm.errors import ChangeFailed, HostUnfit  # noqa: E402
from sealrun_vmm.growth import Size  # noqa: E402
from sealrun_vmm.process import Enlist, VmmProcess, spawn, unknown  # noqa: E402
from sealrun_vmm.spec import Accelerator, Disk, Nic, Tee, VmSpec  # noqa: E402

TOO_SMALL = 1234  # the MTU of a network device that cannot be plugged in


class SleepingMachine:
    """A VM without anything in it."""

    def __init__(self, process: VmmProcess, spec: VmSpec) -> None:
        self._process, self._spec = process, spec
        self._taps: dict[str, int] = {}

    @property
    def pid(self) -> int:
        return self._process.pid

    async def wait(self) -> MachineExit:
        code = await self._process.wait()
        return MachineExit(orderly=False, reason=f"killed by signal {-code}")

    async def add_nic(self, name: str, nic: Nic) -> None:
        """Note it, and keep its tap open as a VMM would."""
        if nic.mtu == TOO_SMALL:
            raise ChangeFailed(f"{name}: it is too small")
        self._taps[name] = os.dup(nic.tap_fd)
        _note(f"+{name} {nic.mac} {nic.mtu}")

    async def remove_nic(self, name: str) -> None:
        os.close(self._taps.pop(name))
        _note(f"-{name}")

    async def add_disk(self, disk: Disk) -> None:
        """Note it, as a VMM that finds it where it shall."""
        if os.path.exists("unyielding"):
            raise ChangeFailed("it does not want to")
        about = os.stat(self._spec.node(disk))
        access = "ro" if disk.readonly else "rw"
        _note(
            f"+{disk.serial} {os.major(about.st_rdev)}:{os.minor(about.st_rdev)} {access}", "disks"
        )

    async def remove_disk(self, serial: str) -> None:
        if os.path.exists("unyielding"):
            raise ChangeFailed("it does not want to")
        _note(f"-{serial}", "disks")

    async def resize(self, size: Size) -> None:
        if os.path.exists("unyielding"):
            raise ChangeFailed("it does not want to")
        _note(f"{size.cpus} {size.memory_mib}", "sizes")

    async def stop(self) -> None:
        await self._process.kill()


def _note(text: str, name: str = "nics") -> None:
    with open(name, "a") as file:
        file.write(f"{text}\n")


class SleepingDriver:
    """Launches it, unless the operator asked for more memory than a joke has."""

    def check(self, spec: VmSpec) -> None:
        if spec.memory_mib == 4096:
            raise HostUnfit("cannot find qemu", remedy="install it")

    async def launch(
        self, spec: VmSpec, directory: str, enlist: Enlist = unknown
    ) -> SleepingMachine:
        self.check(spec)
        for nic in spec.nics:
            _note(f"{nic.mac} {nic.mtu}")
        taps = [nic.tap_fd for nic in spec.nics]
        command = ("/bin/sleep", "600")
        process = spawn(
            command, directory, output="out", errors="vmm.log", descriptors=taps, enlist=enlist
        )
        return SleepingMachine(process, spec)


def plan(handover: Handover) -> Plan:
    """What the shim boots."""
    spec = VmSpec(
        name=handover.id,
        accelerator=Accelerator.TCG,
        cpus=handover.config.vm.cpus,
        memory_mib=handover.config.vm.memory,
        max_cpus=4,
        max_memory_mib=1024,
        kernel="/none",
        initrd="/none",
        cmdline="",
        # What the VMM was asked for; the test's guest says what it got.
        tee=Tee(handover.container.annotations.get("test.tee", "none")),
        shares=shared_tree.device(handover, Tee.NONE),
        disks=disks.of_sandbox(handover, Tee.NONE),
    )
    return Plan(DriverName.QEMU, SleepingDriver(), spec)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], plan))
