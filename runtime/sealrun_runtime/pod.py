"""Whether a container belongs to a pod, and what it is there: what engines say in annotations.

    CRI-O        io.kubernetes.cri-o.ContainerType  sandbox | container
                 io.kubernetes.cri-o.SandboxID      the pod's; for the sandbox container its own id
    containerd   io.kubernetes.cri.container-type   sandbox | container
                 io.kubernetes.cri.sandbox-id
    Podman       members carry CRI-O's SandboxID, the id of the pod's infra container; that one carries
                 nothing and is known by its place among cgroups, or by its program

The infra container of a pod runs nothing here (docs/decisions.md) where it is the engine's own: CRI's
sandbox container, and Podman's with catatonit. One that runs a program of the user's choice is run.
"""

import re
from typing import Final

import msgspec

from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import InvalidRequest

TYPE: Final = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri.container-type")
SANDBOX: Final = ("io.kubernetes.cri-o.SandboxID", "io.kubernetes.cri.sandbox-id")
ANNOTATIONS: Final = frozenset((*TYPE, *SANDBOX))

_MANAGER: Final = "io.container.manager"
_PAUSE: Final = ("/catatonit", "-P")
_IN_A_POD: Final = re.compile(
    r".*/[0-9a-f]{64}/libpod-[0-9a-f]{64}|.*libpod_pod_[0-9a-f]{64}\.slice:libpod:[0-9a-f]{64}"
)
_SHARED: Final = ("pid", "ipc", "uts")


class Pod(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A container's part in a pod.

    sandbox: the same for all of its containers.
    infra: it stands for the pod, which takes no members any more once it has ended.
    idle: it runs nothing in the guest.
    complete: its annotations are the pod's, so that a VM can be made by them; else those of the first
        member are.
    """

    sandbox: str
    infra: bool = False
    idle: bool = False
    complete: bool = True


def find(container: ContainerSpec, container_id: str) -> Pod | None:
    """None for a container that stands alone. Raises InvalidRequest."""
    kind = _annotation(container, TYPE)
    sandbox = _annotation(container, SANDBOX)
    if kind not in ("", "sandbox", "container"):
        raise InvalidRequest(f"annotation {TYPE[0]} is neither sandbox nor container: {kind[:80]}")
    if kind == "sandbox":
        return Pod(sandbox=sandbox or container_id, infra=True, idle=True)
    if sandbox:
        return Pod(sandbox=sandbox)
    idle = container.args == _PAUSE and container.annotations.get(_MANAGER) == "libpod"
    if idle or _IN_A_POD.fullmatch(container.cgroups_path):
        return Pod(sandbox=container_id, infra=True, idle=idle, complete=not idle)
    _expect_own_namespaces(container)
    return None


def is_kubernetes(container: ContainerSpec) -> bool:
    """Whether an engine made it through CRI."""
    return any(name in container.annotations for name in TYPE)


def _annotation(container: ContainerSpec, names: tuple[str, ...]) -> str:
    return next(
        (container.annotations[name] for name in names if name in container.annotations), ""
    )


def joins(container: ContainerSpec, pod: Pod | None) -> tuple[str, ...]:
    """Kinds of namespaces that it shares with the others of its pod, in the guest. An infra container that
    is run is found there, too, but for its pids: it could not be the first process of all of them."""
    if pod is None:
        return ()
    given = {one.type for one in container.namespaces if one.path}
    if pod.infra:
        given = {one.type for one in container.namespaces if one.type != "pid"}
    return tuple(kind for kind in _SHARED if kind in given)


def _expect_own_namespaces(container: ContainerSpec) -> None:
    """Another container's namespaces are in another VM. Raises InvalidRequest."""
    for one in container.namespaces:
        if one.path and one.type in _SHARED:
            raise InvalidRequest(
                f"cannot share the {one.type} namespace {one.path}: it is another container's, and "
                "that one is in another VM",
                remedy="put both into one pod",
            )
