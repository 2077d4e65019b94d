"""Which cgroup a sandbox and its containers are in on this host (cgroup.py makes them).

The VMM and the shim are in the cgroup of a container that stands alone. Those of a pod have one of their
own: in that of the infra container, which engines therefore see using what the VM uses, or beside those
of the members where there is none. A member's cgroup holds its stand-in: what its program uses is used
by the VM. Of a pod that is restarted two VMs may be there for a while, so the name is the directory's.
"""

from posixpath import dirname

from sealrun_runtime.handover import Handover
from sealrun_runtime.pod import Pod
from sealrun_runtime.shim import cgroup as cgroups
from sealrun_runtime.shim.cgroup import Cgroup
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.store import Directory


def enter(handover: Handover, directory: Directory) -> Cgroup | None:
    """Make the sandbox's cgroup and move this process into it, where the VMM will be born. None where
    the engine wants none. directory: the sandbox's. Raises HostFailed."""
    cgroup = _make(handover.container.cgroups_path, directory, handover.pod)
    if cgroup is not None:
        try:
            cgroup.join_self()
        except OSError as error:
            cgroup.remove()
            raise _failed(error, handover.container.cgroups_path) from error
    return cgroup


def make(handover: Handover, directory: Directory) -> Cgroup | None:
    """Make the cgroup of one of a pod's containers. Raises HostFailed."""
    return _make(handover.container.cgroups_path, directory, None)


def _make(wanted: str, directory: Directory, pod: Pod | None) -> Cgroup | None:
    """pod: the one whose VM it is for, that was made for a container in the cgroup `wanted`."""
    if not wanted:
        return None
    cgroup = None
    try:
        with open("/proc/self/mountinfo") as file:
            where = cgroups.hierarchies(file.read())
        path, own = cgroups.directory_of(wanted), 0
        if pod is not None:
            name = f"sealrun-{directory.container.replace(':', '-')}"
            path, own = (f"{path}/{name}", 2) if pod.infra else (f"{dirname(path)}/{name}", 1)
        cgroup = Cgroup(directory, where, path, own)
        cgroup.make()
    except ValueError as error:
        raise HostFailed(str(error)) from error
    except OSError as error:
        if cgroup is not None:
            cgroup.remove()
        raise _failed(error, wanted) from error
    return cgroup


def _failed(error: OSError, wanted: str) -> HostFailed:
    return HostFailed(f"cannot make the cgroup {error.filename or wanted}: {error.strerror}")
