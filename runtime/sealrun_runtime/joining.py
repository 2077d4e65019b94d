"""How a container comes into its pod. (How it leaves: commands/delete.py.)

ROOT/pod:SANDBOX:TOKEN/ is made, with its shim, by the pod's first container: the infra container where
the engine has one, else the first member. Every container, the first too, then hands its own state
directory and control socket over to that shim (`join`), and is asked about there like any other.

Two calls may come at once, so the pod is looked for and made under a lock of the state root. A pod that
takes no members any more (its infra container has ended, or is just being restarted) is passed over:
a new one of the same name stands beside it until its last member has gone.
"""

import array
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from sealrun_runtime import client, leftovers, shim_process, store
from sealrun_runtime import handover as handing
from sealrun_runtime.errors import (
    KIND_CLOSED,
    HostError,
    InvalidRequest,
    NotFound,
    Reported,
)
from sealrun_runtime.handover import Handover
from sealrun_runtime.pod import Pod
from sealrun_runtime.store import Directory

_ATTEMPTS: Final = 8  # a pod may end between our look and our request


def join(directory: Directory, listener: int, handover: Handover) -> Directory:
    """Bring a container into its pod, which is made where there is none. The pod's directory.

    listener: descriptor of the container's control socket. Raises HostError, InvalidRequest,
    Reported."""
    assert handover.pod is not None
    passed: set[str] = set()
    for _ in range(_ATTEMPTS):
        with _locked(directory.root):
            place = _find(directory.root, handover.pod, passed) or _make(directory, handover)
        directory.write(store.POD, place.container.encode())
        try:
            _ask(place, directory, listener)
        except (ConnectionRefusedError, FileNotFoundError):
            passed.add(place.container)
        except Reported as error:
            if error.kind != KIND_CLOSED:
                raise
            passed.add(place.container)
        else:
            return place
        place.close()
    raise HostError(
        f"cannot join the pod {handover.pod.sandbox}: it ends again and again",
        remedy="remove the pod and make it anew",
    )


def _find(root: str, pod: Pod, passed: set[str]) -> Directory | None:
    """A living pod that may take members."""
    for name in store.pods(root, pod.sandbox):
        try:
            place = store.open_pod(root, name)
        except NotFound:
            continue
        if not client.is_alive(place):
            leftovers.remove(place, patience=0.0)
        elif not pod.infra and name not in passed:
            return place
        place.close()
    if not pod.infra:
        _expect_no_stranger(root, pod.sandbox)
    return None


def _expect_no_stranger(root: str, sandbox: str) -> None:
    """A container that stands for the pod and is none of one has a VM of its own."""
    try:
        stranger = store.open_container(root, sandbox)
    except NotFound:
        return
    try:
        if not stranger.read(store.POD) and client.is_alive(stranger):
            raise InvalidRequest(
                f"cannot join the pod of container {sandbox}: that one stands alone, in a VM of its own"
            )
    finally:
        stranger.close()


def _make(directory: Directory, handover: Handover) -> Directory:
    """A new pod and its shim, which listens already. It is noted before it is made: whoever deletes the
    container then knows where to look."""
    assert handover.pod is not None
    name = store.pod_name(handover.pod.sandbox, os.urandom(4).hex())
    directory.write(store.POD, name.encode())
    place = store.make_pod(directory.root, name)
    try:
        place.write(handing.FILE, handing.encode(handover))
        with shim_process.listen(place) as listener:
            shim_process.spawn(place, listener)
    except BaseException:
        leftovers.remove(place, patience=0.0)
        raise
    return place


def _ask(place: Directory, directory: Directory, listener: int) -> None:
    connection = client.Connection(place)
    try:
        rights = array.array("i", (directory.descriptor, listener)).tobytes()
        connection.send("join", directory.container, descriptors=rights)
        while connection.receive() is not None:
            pass
    except HostError as error:
        raise shim_process.explained(error, place) from error
    finally:
        connection.close()


@contextmanager
def _locked(root: str) -> Iterator[None]:
    """One at a time; the kernel lets go of the lock where a holder dies."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            os.close(descriptor)
