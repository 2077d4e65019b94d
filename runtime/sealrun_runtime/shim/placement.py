"""Which control group a sandbox and its containers are in on this host (cgroup.py and scope.py make them).

The VMM and the shim are in the group of a container that stands alone. Those of a pod have one of their
own: in that of the infra container, which engines therefore see using what the VM uses, or beside those
of the members where there is none. A member's group holds its stand-in: what its program uses is used
by the VM. Of a pod that is restarted two VMs may be there for a while, so the name is the directory's.
"""

import errno
from posixpath import dirname

from sealrun_runtime import mount_table, store
from sealrun_runtime.cgroup_driver import default_slice
from sealrun_runtime.handover import Handover
from sealrun_runtime.host_limits import HostLimits, VmLimits, of_vm
from sealrun_runtime.pod import Pod
from sealrun_runtime.shim import cgroup as cgroups
from sealrun_runtime.shim.cgroup import Cgroup, Hierarchy
from sealrun_runtime.shim.errors import HostFailed
from sealrun_runtime.shim.group import Group
from sealrun_runtime.shim.log import log
from sealrun_runtime.store import Directory

_MIB = 1 << 20
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


def enter(handover: Handover, directory: Directory) -> Group | None:
    """Make the sandbox's group and move this process into it, where the VMM will be born. None where
    the engine wants none, or a user has no right to it. directory: the sandbox's. Raises HostFailed."""
    alone = handover.pod is None
    limits = vm_limits(handover, handover.container.host_limits) if alone else None
    group = _make(handover, directory, handover.pod, limits)
    if group is not None:
        try:
            group.join_self()
        except OSError as error:
            group.remove()
            if _may_go_without(handover, error):
                return None
            raise _failed(error, handover.container.cgroups_path) from error
    return group


def make(handover: Handover, directory: Directory) -> Group | None:
    """Make the group of one of a pod's containers. Raises HostFailed."""
    return _make(handover, directory, None, None)


def vm_limits(handover: Handover, limits: HostLimits) -> VmLimits:
    """Of the VM of a container that stands alone and has these limits."""
    return of_vm(limits, handover.config.vm.memory * _MIB)


def _make(
    handover: Handover, directory: Directory, pod: Pod | None, limits: VmLimits | None
) -> Group | None:
    """pod: the one whose VM it is for, that was made for a container in the group that it names."""
    wanted = handover.container.cgroups_path
    if not wanted:
        return None
    group: Group | None = None
    try:
        where = cgroups.hierarchies(mount_table.read())
        name = f"sealrun-{directory.container.replace(':', '-')}" if pod is not None else ""
        if handover.bus:
            group = _scope(handover, directory, where, name, limits)
        else:
            path, own = cgroups.directory_of(wanted), 0
            if pod is not None:
                path, own = (f"{path}/{name}", 2) if pod.infra else (f"{dirname(path)}/{name}", 1)
            group = Cgroup(directory, where, path, own, limits)
        group.make()
    except ValueError as error:
        raise HostFailed(str(error)) from error
    except OSError as error:
        if group is not None:
            group.remove()
        if _may_go_without(handover, error):
            return None
        raise _failed(error, wanted) from error
    return group


def _scope(
    handover: Handover,
    directory: Directory,
    where: list[Hierarchy],
    name: str,
    limits: VmLimits | None,
) -> Group:
    """name: of a pod's VM. Raises ValueError."""
    from sealrun_runtime.shim.scope import Scope  # the bus: 25 ms that others do without
    from sealrun_runtime.systemd import properties, unit

    scope = unit.parse(handover.container.cgroups_path, default_slice())
    infra = handover.pod is not None and handover.pod.infra
    inside = name if infra else ""
    return Scope(
        directory,
        where,
        handover.bus,
        scope.beside(name) if name and not infra else scope,
        inside=inside,
        shared=infra,
        properties=properties.of_annotations(handover.container.annotations),
        limits=limits,
    )


def _may_go_without(handover: Handover, error: OSError) -> bool:
    """As with runc and crun: a user's engine names a path that nobody handed down to them. The guest's
    limits hold."""
    if handover.bus or error.errno not in _DENIED or not store.in_user_namespace():
        return False
    log.warning("no control group on the host: cannot make %s: %s", error.filename, error.strerror)
    return True


def _failed(error: OSError, wanted: str) -> HostFailed:
    return HostFailed(f"cannot make the cgroup {error.filename or wanted}: {error.strerror}")
