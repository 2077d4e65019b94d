"""What is a virtio-fs device in a VM, where the guest is a process in namespaces: the real virtiofsd is
connected to and confines itself, and the tree that it would serve is bound into the guest.

The file system's protocol is left out, nothing else: which mounts there are, and what may be done
with them, is what the shim made of virtiofsd's mount namespace.
"""

import ctypes
import os
import socket
import threading
import time
from pathlib import Path

SECONDS = 20.0
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT = 428, 429
_AT_FDCWD, _AT_RECURSIVE, _OPEN_TREE_CLONE, _EMPTY_PATH = -100, 0x8000, 1, 4
_libc = ctypes.CDLL(None, use_errno=True)


class Device:
    """A connection to virtiofsd, and its mount namespace, which `namespace` is a descriptor of."""

    def __init__(self, path: str) -> None:
        """path: of the socket, in the sandbox's state directory, the working directory. Raises
        OSError."""
        self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._connection.connect(path)
        deadline = time.monotonic() + SECONDS
        while (pid := _confined()) == 0:
            if time.monotonic() > deadline:
                raise TimeoutError("virtiofsd does not confine itself")
            time.sleep(0.005)
        self.namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)

    def unplug(self) -> None:
        """The VM is gone."""
        self._connection.close()
        os.close(self.namespace)


def _confined() -> int:
    tree = os.stat("share")
    for line in Path("processes").read_text().splitlines():
        role, pid, _ = line.split()
        if role != "virtiofsd":
            continue
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            root = os.stat(f"/proc/{child}/root")
            if (root.st_dev, root.st_ino) == (tree.st_dev, tree.st_ino):
                return int(child)
    return 0


def mount(namespace: int, target: str) -> None:
    """Mount what there is in that mount namespace, as it is now, at `target` in our own. Raises
    OSError."""
    trees: list[int] = []

    def fetch() -> None:
        _libc.unshare(_CLONE_FS)  # else the whole process would enter it
        if _libc.setns(namespace, _CLONE_NEWNS) == 0:
            flags = _OPEN_TREE_CLONE | _AT_RECURSIVE | os.O_CLOEXEC
            trees.append(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, b"/", flags))

    thread = threading.Thread(target=fetch)
    thread.start()
    thread.join()
    tree = trees[0] if trees else -1
    if _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, target.encode(), _EMPTY_PATH) != 0:
        raise OSError(ctypes.get_errno(), "the VM has no such device")
    os.close(tree)
