"""Which cgroup a sandbox and its containers are in on this host (cgroup.py makes them).

The VMM and the shim are in the cgroup of the container that stands alone, or of a pod's infra container.
A pod without one gets a cgroup of its own beside those of its members. A member's holds its stand-in:
what its program uses is used by the VM.
"""

import posixpath

from sealrun_runtime.handover import Handover
from sealrun_runtime.shim import cgroup as cgroups
from sealrun_runtime.shim.cgroup import Cgroup
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.store import Directory


def enter(handover: Handover, directory: Directory) -> Cgroup | None:
    """Make the sandbox's cgroup and move this process into it, where the VMM will be born. None where
    the engine wants none. Raises HostFailed."""
    wanted = handover.container.cgroups_path
    pod = handover.pod
    if wanted and pod is not None and not pod.infra:
        wanted = _beside(wanted, f"sealrun-{pod.sandbox}")
    cgroup = _make(wanted, directory)
    if cgroup is not None:
        try:
            cgroup.join_self()
        except OSError as error:
            cgroup.remove()
            raise _failed(error, wanted) from error
    return cgroup


def make(handover: Handover, directory: Directory) -> Cgroup | None:
    """Make the cgroup of one of a pod's containers. Raises HostFailed."""
    return _make(handover.container.cgroups_path, directory)


def _make(wanted: str, directory: Directory) -> Cgroup | None:
    if not wanted:
        return None
    cgroup = None
    try:
        with open("/proc/self/mountinfo") as file:
            where = cgroups.hierarchies(file.read())
        cgroup = Cgroup(directory, where, cgroups.directory_of(wanted))
        cgroup.make()
    except ValueError as error:
        raise HostFailed(str(error)) from error
    except OSError as error:
        if cgroup is not None:
            cgroup.remove()
        raise _failed(error, wanted) from error
    return cgroup


def _beside(path: str, name: str) -> str:
    if path.count(":") == 2:
        return f"{path.partition(':')[0]}::{name}"
    return f"{posixpath.dirname(path.rstrip('/'))}/{name}"


def _failed(error: OSError, wanted: str) -> HostFailed:
    return HostFailed(f"cannot make the cgroup {error.filename or wanted}: {error.strerror}")
