"""A sandbox's or a container's control group where systemd makes it: a scope in the slice that the
engine names, with the first process that comes. cgroup.py is the same with directories made by hand.

systemd takes a scope away as soon as nothing is in it, so this process stays in it to its end, and
nothing is undone here. `delete` waits until it has gone.

On version 2 the scope is one directory, whose insides are ours (Delegate=). On version 1 systemd makes
it in some hierarchies, and the others are ours to make, as with runc and crun.
"""

import os
from collections.abc import Sequence

from sealrun_runtime.host_limits import VmLimits
from sealrun_runtime.shim import cgroup as cgroups
from sealrun_runtime.shim.cgroup import Cgroup, Hierarchy
from sealrun_runtime.store import CGROUPS, SCOPE_MARK, Directory
from sealrun_runtime.systemd.bus import BusError
from sealrun_runtime.systemd.properties import Properties, describe, of_limits, of_scope
from sealrun_runtime.systemd.scopes import Manager, UnitExists
from sealrun_runtime.systemd.unit import Unit

_SYSTEMD_S = ((), ("name=systemd",))  # hierarchies where every unit has a directory


class Scope:
    """Raises OSError, as Cgroup does; systemd's errors are ones, too. All of it blocks, for milliseconds
    where systemd is well."""

    waits = True

    def __init__(
        self,
        directory: Directory,
        where: Sequence[Hierarchy],
        bus: str,
        unit: Unit,
        *,
        inside: str = "",
        shared: bool = False,
        properties: Properties = (),
        limits: VmLimits | None = None,
    ) -> None:
        """directory: the state directory that notes what is made. inside: a directory in the scope that
        is to be used instead of the scope itself. shared: the scope may be there already, and is not
        ended with us. properties: more of them. limits: of version 2."""
        self._directory, self._where = directory, where
        self._bus, self._unit = bus, unit
        self._inside, self._shared = inside, shared
        self._properties, self._limits = properties, limits
        self._leaf: Cgroup | None = None

    def make(self) -> None:
        """Nothing: systemd makes no scope without a process."""

    def join(self, pid: int) -> None:
        """Move a process; the first one starts the scope."""
        if self._leaf is None:
            try:
                self._start(pid)
            except (BusError, ValueError) as error:
                raise OSError(None, f"systemd: {error}", self._unit.scope) from error
            return
        try:
            self._leaf.join(pid)
        except PermissionError:  # it comes from where only the machine's systemd may take it away
            self._attach(pid)

    def join_self(self) -> None:
        """Move this process, which stays to its end."""
        self.join(os.getpid())

    def limit(self, limits: VmLimits) -> None:
        """Change the limits."""
        if self._leaf is None or not self._is_v2:
            return
        limits = self._leaf.bearable(limits)
        try:
            with Manager(self._bus) as manager:
                manager.set_properties(self._unit.scope, of_limits(limits))
        except (BusError, ValueError) as error:
            raise OSError(None, f"systemd: {error}", self._unit.scope) from error
        self._leaf.tell_unavailable(limits)

    def remove(self) -> list[str]:
        """See Cgroup.remove. What systemd made, systemd removes."""
        return []

    def _start(self, pid: int) -> None:
        with Manager(self._bus) as manager:
            path = manager.root() + self._unit.path
            if not self._shared:
                for hierarchy in self._where:
                    if hierarchy.controllers in _SYSTEMD_S:
                        self._directory.append(CGROUPS, f"{SCOPE_MARK}{hierarchy.mount}{path}")
            limits = of_limits(self._limits) if self._limits is not None and self._is_v2 else ()
            wanted = of_scope(self._unit, describe(self._directory.container), pid)
            try:
                manager.start_scope(
                    self._unit.scope,
                    (*wanted, *limits, *self._properties),
                    patient=not self._shared,
                )
            except UnitExists:
                if not self._shared:
                    self._directory.write(CGROUPS, b"")  # it is not ours to stop
                    raise
                manager.attach(self._unit.scope, "", pid)
        leaf = Cgroup(self._directory, self._where, path + self._tail)
        if not self._is_v2:
            leaf.make()
            leaf.join(pid)
        elif self._inside:
            directory = f"{self._where[0].mount}{path}{self._tail}"
            self._directory.append(CGROUPS, directory)
            os.makedirs(directory, exist_ok=True)
            leaf.join(pid)
        if self._limits is not None:
            leaf.tell_unavailable(self._limits)
        self._leaf = leaf

    def _attach(self, pid: int) -> None:
        try:
            with Manager(self._bus) as manager:
                manager.attach(self._unit.scope, self._tail, pid)
        except BusError as error:
            raise OSError(None, f"systemd: {error}", self._unit.scope) from error

    @property
    def _tail(self) -> str:
        return f"/{self._inside}" if self._inside else ""

    @property
    def _is_v2(self) -> bool:
        return cgroups.is_v2(self._where)
