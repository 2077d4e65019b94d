"""A root file system that the host shares: virtiofsd on the bundle's directory.

Only where no image can be pulled or the operator wants it so, and never where somebody is to be
protected from this host: the host reads and changes what the container runs.

virtiofsd confines itself (mount, pid and net namespaces, pivot_root into the directory, seccomp, no
capabilities but those of a file server), ends with its connection to the VMM, and with this process.
The options are those that QEMU's virtiofsd and its successor in Rust have in common.
"""

import os
import socket
from typing import Final

from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.process import spawn
from sealrun_vmm.spec import Share, Tee

from sealrun_runtime import leftovers
from sealrun_runtime.handover import Handover
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.store import Directory

TAG: Final = "root"
SOCKET: Final = "root.sock"
ROLE: Final = "virtiofsd"
LOG: Final = "virtiofsd.log"
_OUTPUT: Final = "virtiofsd.out"
PROGRAMS: Final = ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd")


def shares(handover: Handover, tee: Tee) -> tuple[Share, ...]:
    """What the VM of a sandbox shares with the host: nothing, where its image is pulled. Raises
    SpecRefused where it would have to and must not."""
    if handover.image:
        return ()
    if tee is not Tee.NONE:
        raise SpecRefused(f"a VM with {tee} cannot run from a directory of the host")
    if handover.init_data and not _allowed(handover.init_data):
        raise SpecRefused("the init-data does not allow a root that the host shares")
    return (Share(socket=SOCKET, tag=TAG),)


def serve(handover: Handover, share: Share, directory: Directory) -> Attendant:
    """Start the server; the VMM finds it listening. Raises HostUnfit, LaunchFailed."""
    program = next((path for path in PROGRAMS if os.access(path, os.X_OK)), "")
    if not program:
        raise HostUnfit(
            f"cannot share the bundle's root: there is no {' or '.join(PROGRAMS)}",
            remedy="install virtiofsd",
        )
    source = handover.container.rootfs.replace("\\", "\\\\").replace(",", "\\,")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(share.socket)
            listener.listen(1)
        except OSError as error:
            raise HostUnfit(f"cannot listen on {share.socket}: {error.strerror}") from error
        number = listener.fileno()
        command = [program, f"--fd={number}", "-o", f"source={source}", "--thread-pool-size=0"]
        for option in ("cache=auto", "xattr", "sandbox=namespace"):
            command += ["-o", option]
        process = spawn(
            command,
            directory.path,
            output=_OUTPUT,
            errors=LOG,
            descriptors=(number,),
            enlist=lambda: leftovers.enlist(directory, ROLE),
        )
    return Attendant(process, "the server of the root file system", f"{directory.path}/{LOG}")


def _allowed(text: bytes) -> bool:
    # tomllib is worth its megabyte only here.
    from sealrun_protocol import init_data

    try:
        return init_data.parse(text).host.insecure_shared_root
    except init_data.InitDataInvalid:
        return False
