"""From what `create` left in the state directory to the end of the sandbox.

The VM is launched first, then the rest is imported: the guest needs seconds to boot, ZeroMQ a
twentieth of one to load. Whatever fails before `create` asks is kept until it does, and told then.
"""

import asyncio
import os
import resource
import signal
import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sealrun_vmm.errors import HostUnfit as VmmHostUnfit
from sealrun_vmm.errors import SpecRefused, VmmError
from sealrun_vmm.spec import NO_NODES, NO_SCRATCH

from sealrun_runtime import handover as handing
from sealrun_runtime import leftovers, scratch
from sealrun_runtime.handover import Handover
from sealrun_runtime.shim import disks, network, placement, tpm
from sealrun_runtime.shim import log as logging
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.shim.errors import HostFailed, HostUnfit, ShimError, VmmFailed
from sealrun_runtime.shim.group import Group
from sealrun_runtime.shim.log import log
from sealrun_runtime.shim.machine import Launched, Planner
from sealrun_runtime.shim.shared_tree import SharedTree
from sealrun_runtime.shim.wires import Namespace
from sealrun_runtime.store import Directory

if TYPE_CHECKING:
    from sealrun_runtime.shim.sandbox import Sandbox

# A guest gone bad can make ZeroMQ hold one endless message: then this process dies, and with it the
# VM, instead of the host's memory. The sum of all windows and queues is 300 MiB.
DATA_BYTES: Final = 512 << 20
VMM_ROLE: Final = "vmm"

_ENDING: Final = (signal.SIGTERM, signal.SIGINT)
_TOLD: Final = "the shim was told to end"


def run(path: str, listener: int, planner: Planner) -> int:
    """Run the sandbox of the state directory `path`, which is the working directory; exit status.

    listener: descriptor of the listening control socket."""
    descriptor = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    root, _, name = path.rpartition("/")
    directory = Directory(root, name, descriptor)
    handover, oci_config = handing.read(directory)
    logging.configure("debug" if handover.debug else handover.config.log.level)
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(_life(handover, oci_config, directory, listener, planner))
    finally:
        log.info("over")
    return 0


async def _life(
    handover: Handover, oci_config: bytes, directory: Directory, listener: int, planner: Planner
) -> None:
    cgroup: Group | None = None
    launched: Launched | None = None
    failure: ShimError | None = None
    pod = handover.pod
    told: list[int] = []
    for number in _ENDING:  # while there is no sandbox that could be called off
        asyncio.get_running_loop().add_signal_handler(number, told.append, number)

    async def launch(wanted: Handover) -> Launched:
        place = network.of_bundle(wanted, directory)
        try:
            return await _launch(wanted, directory, planner, place)
        except ShimError:
            if place is not None:
                place.close()
            raise

    try:
        cgroup = placement.enter(handover, directory)
        if pod is None or pod.complete:
            launched = await launch(handover)
    except ShimError as error:
        failure = error
    from sealrun_runtime.shim.sandbox import Sandbox

    sandbox = Sandbox(handover, cgroup, launch)
    _expect_trouble(sandbox)
    if pod is None:
        sandbox.admit(handover, oci_config, directory, cgroup, socket.socket(fileno=listener))
    else:
        sandbox.open(socket.socket(fileno=listener))
    if launched is not None:
        sandbox.boot(launched)
    if failure is not None:
        sandbox.fail(failure)
    if told:
        sandbox.call_off(_TOLD)
    await sandbox.run()
    if sandbox.empty:  # nobody will delete what belongs to nobody
        directory.clear()
        directory.remove()


def _expect_trouble(sandbox: "Sandbox") -> None:
    """Signals, and exceptions in callbacks, end the sandbox in order."""
    loop = asyncio.get_running_loop()
    for number in _ENDING:
        loop.add_signal_handler(number, sandbox.call_off, _TOLD)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)

    def broken(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        log.error("%s", context["message"], exc_info=error)
        text = f"{type(error).__name__}: {error}" if error else context["message"]
        sandbox.broken(f"the shim broke: {text}")

    loop.set_exception_handler(broken)


async def _launch(
    handover: Handover, directory: Directory, planner: Planner, place: Namespace | None
) -> Launched:
    """Raises ShimError."""
    attendants: list[Attendant] = []
    tree = None
    disk, nodes = NO_SCRATCH, NO_NODES
    try:
        name, driver, spec = planner(handover)
        if place is not None:
            spec = replace(spec, nics=place.nics)
        disk = scratch.make(handover.config.vm)
        nodes = disks.make_nodes(handover, spec)
        spec = replace(spec, scratch=disk, nodes=nodes)
        channel = _listen(spec.channel)
        for share in spec.shares:
            tree = SharedTree.serve(share.socket, directory)
            attendants.append(tree.server)
        if spec.tpm:
            attendants.append(await tpm.serve(handover.config.vm, spec, directory))
        machine = await driver.launch(
            spec, directory.path, lambda: leftovers.enlist(directory, VMM_ROLE)
        )
    except VmmError as error:
        await _dismiss(attendants)
        if nodes != NO_NODES:
            os.close(nodes)
        unfit = isinstance(error, VmmHostUnfit | SpecRefused)
        # What the VMM says of one that failed is less than what is known of it.
        told = [f"cannot boot the VM: {one.end()}" for one in attendants if one.failed]
        text = (told or [str(error)])[0]
        raise (HostUnfit if unfit else VmmFailed)(text, remedy=error.remedy) from error
    finally:
        if disk != NO_SCRATCH:
            os.close(disk)
    log.info("launched the VM, pid %d", machine.pid)
    # Only now: the VMM would inherit it.
    resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
    if place is not None:
        place.handed_over()
    return Launched(name.value, machine, spec, channel, tuple(attendants), tree, place)


async def _dismiss(attendants: list[Attendant]) -> None:
    for attendant in attendants:
        await attendant.process.kill()


def _listen(name: str) -> int:
    """A listening unix socket in the working directory; its descriptor."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(name)
            listener.listen(1)
        except OSError as error:
            raise HostFailed(f"cannot listen on {name}: {error.strerror}") from error
        return listener.detach()
