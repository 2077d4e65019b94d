"""What the host shares with a sandbox: one virtiofsd, and the tree of mounts that it serves.

virtiofsd serves the directory `share` of the state directory, which holds mount points and nothing
else. It confines itself when the VMM connects: mount, pid and network namespaces, with the directory
as the root of all that is mounted there, a filter for system calls, the capabilities of a file
server. From then on this module enters its mount namespace, by a thread that ends there, and

- makes the root read-only, before anything of a container's runs in the guest: all that a guest can
  write is what was shared writable;
- mounts at each mount point what `create` opened for it (sharing.py), at any time: a container that
  joins a sandbox later needs no further device and no further process.

Nothing is mounted in the host's own namespace, so nothing can be left there: the mounts end with the
server. It cannot make device nodes (CAP_MKNOD is taken away), since those would be the host's.
"""

import asyncio
import contextlib
import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

from sealrun_protocol import share as names_of
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.process import VmmProcess, spawn
from sealrun_vmm.spec import Share, Tee

from sealrun_runtime import leftovers, machine, namespaces, sharing
from sealrun_runtime.handover import Handover
from sealrun_runtime.shim.attendant import Attendant
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.shim.log import log
from sealrun_runtime.store import Directory

DIRECTORY: Final = "share"
SOCKET: Final = "share.sock"
ROLE: Final = "virtiofsd"
CONFINED_ROLE: Final = "virtiofsd-confined"  # its child, which does the work
LOG: Final = "virtiofsd.log"
PROGRAM: Final = "/usr/lib/qemu/virtiofsd"
CONFINED_SECONDS: Final = 20.0  # from the VMM's launch, on a loaded machine

_OUTPUT: Final = "virtiofsd.out"
_OPTIONS: Final = (
    "cache=auto",
    "xattr",
    "announce_submounts",
    "sandbox=namespace",
    "modcaps=-mknod",
    "log_level=warn",
)
_RESTRICTED: Final = (
    namespaces.MOUNT_ATTR_RDONLY
    | namespaces.MOUNT_ATTR_NOSUID
    | namespaces.MOUNT_ATTR_NODEV
    | namespaces.MOUNT_ATTR_NOEXEC
    | namespaces.MOUNT_ATTR_NOSYMFOLLOW
)
_POLL_SECONDS: Final = 0.005


def device(handover: Handover, tee: Tee) -> tuple[Share, ...]:
    """The device that the VM of a sandbox needs: none where nothing is shared. Raises SpecRefused
    where the host would have to share and must not."""
    plan = sharing.planned(handover)
    if not plan.names:
        # What the containers of a pod will share that come later is not known yet.
        awaited = handover.pod is not None and tee not in machine.ENCRYPTED and _may_come(handover)
        return (Share(socket=SOCKET, tag=names_of.TAG),) if awaited else ()
    if tee in machine.ENCRYPTED:
        raise SpecRefused(
            f"cannot share {_what(plan)} with a VM with {tee}: a file server of the host has no "
            "access to its memory",
            remedy="use an image from a registry, and no volumes",
        )
    if tee is not Tee.NONE and not handover.init_data:
        raise SpecRefused(
            f"cannot share {_what(plan)} with a VM with {tee}: no init-data allows it",
            remedy="allow it in [host] of an init-data",
        )
    return (Share(socket=SOCKET, tag=names_of.TAG),)


def _may_come(handover: Handover) -> bool:
    if not os.access(PROGRAM, os.X_OK):
        return False
    if not handover.init_data:
        return True
    from sealrun_protocol import init_data

    host = init_data.parse(handover.init_data).host
    return host.insecure_shared_root or bool(host.insecure_shared_directories)


def _what(plan: sharing.Plan) -> str:
    return "the bundle's root" if plan.root else "the host's directories"


class SharedTree:
    """A server and its tree. Event loop only, which watches the server."""

    def __init__(self, process: VmmProcess, directory: Directory) -> None:
        self.server = Attendant(
            process, "the server of the host's directories", f"{directory.path}/{LOG}"
        )
        self._directory = directory
        self._confined = -1  # a pidfd of the process in the namespaces, once the tree is ready

    @classmethod
    def serve(cls, socket_name: str, directory: Directory) -> "SharedTree":
        """Start the server in the state directory, which is the working directory; the VMM finds it
        listening. Raises HostUnfit, LaunchFailed."""
        if not os.access(PROGRAM, os.X_OK):
            raise HostUnfit(
                f"cannot share directories with the guest: there is no {PROGRAM}",
                remedy="install Debian's package qemu-system-common",
            )
        source = f"{directory.path}/{DIRECTORY}".replace("\\", "\\\\").replace(",", "\\,")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            try:
                os.mkdir(DIRECTORY, 0o700)
                listener.bind(socket_name)
                listener.listen(1)
            except OSError as error:
                raise HostUnfit(f"cannot listen on {socket_name}: {error.strerror}") from error
            number = listener.fileno()
            command = [PROGRAM, f"--fd={number}", "-o", f"source={source}", "--thread-pool-size=0"]
            for option in _OPTIONS:
                command += ["-o", option]
            process = spawn(
                command,
                directory.path,
                output=_OUTPUT,
                errors=LOG,
                descriptors=(number,),
                enlist=lambda: leftovers.enlist(directory, ROLE),
            )
        return cls(process, directory)

    async def attach(self, container: str, names: Sequence[str], trees: Sequence[int]) -> None:
        """Let the guest see open sources (sharing.py) by these names. Raises HostFailed."""
        try:
            if len(names) != len(trees):
                raise HostFailed(
                    "the sources of the container's mounts are not those of its bundle"
                )
            if names:
                await self._ready()
                self._mount(container, names, trees)
                log.info("the guest sees of the host: %s", ", ".join(names))
        except OSError as error:
            raise HostFailed(
                f"cannot share directories with the guest: {error.strerror}"
            ) from error

    def detach(self, container: str, names: Sequence[str]) -> None:
        """The container is gone, and what it shared is not to be in use any longer."""
        if not names:
            return
        points = [f"{container}/{name}" for name in names]

        def unmount() -> None:
            for point in points:
                namespaces.detach(f"/{point}")

        try:
            self._inside(unmount)
            for point in points:
                place = f"{DIRECTORY}/{point}"
                (os.rmdir if os.path.isdir(place) else os.unlink)(place)
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{DIRECTORY}/{container}")
        except OSError as error:
            log.error("cannot take back what container %s shared: %s", container, error)

    def end(self) -> None:
        """Kill the confined process; the one that started it then ends, too. Idempotent."""
        if self._confined >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._confined, signal.SIGKILL)
            os.close(self._confined)
            self._confined = -1

    async def _ready(self) -> None:
        """Wait for the server to confine itself, once, and make its root read-only. Raises OSError,
        HostFailed."""
        if self._confined >= 0:
            return
        deadline = time.monotonic() + CONFINED_SECONDS
        while (pid := self._confined_pid()) == 0:
            if time.monotonic() > deadline:
                raise HostFailed("virtiofsd does not confine itself")
            await asyncio.sleep(_POLL_SECONDS)
        self._confined = os.pidfd_open(pid)
        leftovers.enlist_other(self._directory, CONFINED_ROLE, pid)
        self._inside(lambda: namespaces.restrict_mount("/", _RESTRICTED))

    def _confined_pid(self) -> int:
        """The server's child whose root is the tree; 0 while there is none."""
        ours = os.stat(DIRECTORY)
        pid = self.server.process.pid
        try:
            with open(f"/proc/{pid}/task/{pid}/children") as file:
                children = file.read().split()
        except OSError:
            return 0
        for child in children:
            try:
                root = os.stat(f"/proc/{child}/root")
            except OSError:
                continue
            if (root.st_dev, root.st_ino) == (ours.st_dev, ours.st_ino):
                return int(child)
        return 0

    def _mount(self, container: str, names: Sequence[str], trees: Sequence[int]) -> None:
        """Raises OSError."""
        os.mkdir(f"{DIRECTORY}/{container}", 0o700)
        for name, tree in zip(names, trees, strict=True):
            point = f"{DIRECTORY}/{container}/{name}"
            if stat.S_ISDIR(os.fstat(tree).st_mode):
                os.mkdir(point, 0o700)
            else:
                os.close(os.open(point, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

        def attach() -> None:
            for name, tree in zip(names, trees, strict=True):
                namespaces.attach_tree(tree, f"/{container}/{name}")

        self._inside(attach)

    def _inside(self, work: Callable[[], None]) -> None:
        """Run `work`, which must not import or block, in the server's mount namespace. Raises
        OSError."""
        failure: list[OSError] = []

        def enter() -> None:
            try:
                namespaces.unshare(
                    namespaces.CLONE_FS
                )  # root and directory are this thread's alone
                namespaces.setns(self._confined, namespaces.CLONE["mount"])
                work()
            except OSError as error:
                failure.append(error)

        thread = threading.Thread(target=enter, name="shared-tree")
        thread.start()
        thread.join()
        if failure:
            raise failure[0]
