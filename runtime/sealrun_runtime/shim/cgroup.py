"""The sandbox's cgroup on the host: `linux.cgroupsPath` in each hierarchy, with shim, VMM and stand-in
in it, so that the engine's statistics and limits of the parent see the whole VM.

The guest applies the container's limits (`linux.resources`) to its processes. On cgroup v2 the host holds
the VM to them and to what it costs itself (host_limits.py).

Directories are made by hand (the cgroupfs driver); scope.py has systemd make them.

On cgroup v1 and in hybrid mode each v1 hierarchy is used, on pure v2 the one of v2. What was made is
noted one directory a line, the deepest last, before it is made, so that `delete` can remove it
without us. Parents that we made and somebody else uses by now (conmon's cgroup beside ours) stay.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from sealrun_runtime.host_limits import UNLIMITED, VmLimits
from sealrun_runtime.mount_table import Mounted
from sealrun_runtime.shim.log import log
from sealrun_runtime.store import CGROUPS, Directory

_REMOVE_SECONDS: Final = 2.0
_ATTEMPTS: Final = 5  # somebody may remove an empty parent between two of our steps


class Hierarchy(NamedTuple):
    """A mounted cgroup hierarchy: where, and its v1 controllers (empty for v2)."""

    mount: str
    controllers: tuple[str, ...]


def hierarchies(mounts: Iterable[Mounted]) -> list[Hierarchy]:
    """Those of the mounts that are to be used."""
    first, second = [], []
    for mount in mounts:
        if "ro" in mount.flags.split(","):
            continue
        if mount.kind == "cgroup":
            generic = {"rw", "ro", "xattr", "clone_children", "noprefix"}
            names = [name for name in mount.options.split(",") if name not in generic]
            controllers = tuple(n for n in names if "release_agent" not in n)
            first.append(Hierarchy(mount.place, controllers))
        elif mount.kind == "cgroup2":
            second.append(Hierarchy(mount.place, ()))
    distinct: dict[tuple[str, ...], Hierarchy] = {}
    for one in first:
        distinct.setdefault(one.controllers, one)  # one that is mounted twice is used once
    return list(distinct.values()) or second[:1]


def directory_of(cgroups_path: str) -> str:
    """`linux.cgroupsPath` as an absolute path below a hierarchy's mount. Raises ValueError where it
    leads elsewhere."""
    parts = [part for part in cgroups_path.split("/") if part]
    if not parts or any(part in (".", "..") or "\0" in part for part in parts):
        raise ValueError(f"cannot use the cgroup path {cgroups_path!r}")
    return "/" + "/".join(parts)


def is_v2(where: Sequence[Hierarchy]) -> bool:
    """Whether there is nothing but version 2."""
    return bool(where) and not any(one.controllers for one in where)


def files(limits: VmLimits) -> list[tuple[str, str]]:
    """What is written to which file of version 2 (Documentation/admin-guide/cgroup-v2.rst)."""
    found: list[tuple[str, str]] = []
    if limits.memory is not None:
        found.append(("memory.max", _or_max(limits.memory)))
    if limits.cpus is not None:
        quota = _or_max(round(limits.cpus * limits.period) if limits.cpus > 0 else UNLIMITED)
        found.append(("cpu.max", f"{quota} {limits.period}"))
    if limits.weight is not None:
        found.append(("cpu.weight", str(limits.weight)))
    if limits.tasks is not None:
        found.append(("pids.max", _or_max(limits.tasks)))
    if limits.cpuset:
        found.append(("cpuset.cpus", limits.cpuset))
    if limits.nodes:
        found.append(("cpuset.mems", limits.nodes))
    return found


def _or_max(limit: int) -> str:
    return "max" if limit == UNLIMITED else str(limit)


class Cgroup:
    """The sandbox's directories, one in each hierarchy."""

    waits = False

    def __init__(
        self,
        directory: Directory,
        where: Sequence[Hierarchy],
        path: str,
        own: int = 0,
        limits: VmLimits | None = None,
    ) -> None:
        """directory: the state directory that notes what is made. path: from `directory_of`; of its
        last `own` components we are in charge, whoever made them. limits: of version 2."""
        self._directory, self._limits = directory, limits
        self._leaves = [(one, one.mount + path) for one in where]
        self._made: list[str] = []
        self._ours: set[str] = set()
        for _, leaf in self._leaves:
            self._ours.update([leaf, os.path.dirname(leaf)][:own])
        self._home: dict[str, str] = {}

    def make(self) -> None:
        """Make the directories. Raises OSError; what was made until then is removed by `remove`."""
        for hierarchy, leaf in self._leaves:
            self._make(hierarchy, leaf)
        if self._limits is not None:
            self.limit(self._limits)
            self.tell_unavailable(self._limits)

    def join(self, pid: int) -> None:
        """Move a process, with its threads. Raises OSError."""
        for _, leaf in self._leaves:
            _attach(leaf, pid)

    def join_self(self) -> None:
        """Move this process, remembering where it was. Raises OSError."""
        for hierarchy, leaf in self._leaves:
            self._home[leaf] = _current(hierarchy)
            _attach(leaf, os.getpid())

    def limit(self, limits: VmLimits) -> None:
        """Set limits, where the hierarchy is version 2. Raises OSError."""
        for hierarchy, leaf in self._leaves:
            for name, content in files(self.bearable(limits)) if not hierarchy.controllers else ():
                if os.path.exists(f"{leaf}/{name}"):  # see tell_unavailable
                    _write(f"{leaf}/{name}", content)

    def bearable(self, limits: VmLimits) -> VmLimits:
        """Without a limit of memory below what is in use: the kernel would kill the VMM. A VM that is to
        become smaller gives its memory back bit by bit, or not at all."""
        for hierarchy, leaf in self._leaves:
            if hierarchy.controllers or limits.memory in (None, UNLIMITED):
                continue
            with contextlib.suppress(OSError, ValueError):
                if int(_read(f"{leaf}/memory.current")) > (limits.memory or 0):
                    log.info("the host's limit of memory stays: the VM holds more than the new one")
                    return msgspec.structs.replace(limits, memory=None)
        return limits

    def tell_unavailable(self, limits: VmLimits) -> None:
        """Say which limits the host cannot have, since the controller was not handed down to it."""
        for hierarchy, leaf in self._leaves:
            for name, _ in files(limits) if not hierarchy.controllers else ():
                if not os.path.exists(f"{leaf}/{name}"):
                    log.warning(
                        "the host does not limit %s of the VM: no such controller here", name
                    )

    def remove(self) -> list[str]:
        """Leave, and remove what was made. Returns what is still there: busy, or used by others."""
        for hierarchy, leaf in self._leaves:
            if leaf in self._home:
                home = self._home[leaf]
                with contextlib.suppress(OSError):
                    _attach(home if os.path.isdir(home) else hierarchy.mount, os.getpid())
        leaves = {leaf for _, leaf in self._leaves}
        deadline = time.monotonic() + _REMOVE_SECONDS
        return [
            path
            for path in reversed(self._made)
            if not _remove(path, deadline if path in leaves else 0)
        ]

    def _make(self, hierarchy: Hierarchy, leaf: str) -> None:
        for attempt in range(_ATTEMPTS):
            try:
                for path in _lineage(hierarchy.mount, leaf):
                    self._make_one(hierarchy, path)
            except FileNotFoundError:
                if attempt + 1 == _ATTEMPTS:
                    raise
            else:
                return

    def _make_one(self, hierarchy: Hierarchy, path: str) -> None:
        missing = not os.path.isdir(path)
        if (missing or path in self._ours) and path not in self._made:
            self._directory.append(CGROUPS, path)
            self._made.append(path)
        if missing:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o755)
        if "cpuset" in hierarchy.controllers:
            _inherit_cpuset(path)
        elif not hierarchy.controllers and os.path.dirname(path) not in self._ours:
            # Not in a container's own: its processes are beside the VM's group, which therefore is
            # accounted for with them.
            _enable_controllers(os.path.dirname(path))


def _lineage(mount: str, leaf: str) -> list[str]:
    """All directories below the mount down to the leaf."""
    parts = leaf.removeprefix(mount).strip("/").split("/")
    return [mount + "/" + "/".join(parts[: count + 1]) for count in range(len(parts))]


def _inherit_cpuset(path: str) -> None:
    """A v1 cpuset starts empty and takes no process until it has CPUs and memory nodes."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not _read(f"{path}/{name}").strip():
            _write(f"{path}/{name}", _read(f"{os.path.dirname(path)}/{name}"))


def _enable_controllers(parent: str) -> None:
    """v2: what the parent has, its children account for, too. The kernel refuses it where the parent
    has processes of its own; then its children go without."""
    with contextlib.suppress(OSError):
        for name in _read(f"{parent}/cgroup.controllers").split():
            with contextlib.suppress(OSError):
                _write(f"{parent}/cgroup.subtree_control", f"+{name}")


def _current(hierarchy: Hierarchy) -> str:
    """Where this process is, from /proc/self/cgroup (cgroups(7)): lines `id:controllers:path`."""
    for line in _read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if tuple(filter(None, controllers.split(","))) == hierarchy.controllers:
            return hierarchy.mount + path
    return hierarchy.mount


def _attach(path: str, pid: int) -> None:
    _write(f"{path}/cgroup.procs", str(pid))


def _remove(path: str, deadline: float) -> bool:
    """Whether a cgroup is gone. It is busy until the kernel has done with what died in it."""
    while True:
        try:
            os.rmdir(path)
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.01)
        else:
            return True


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _write(path: str, content: str) -> None:
    with open(path, "w") as file:
        file.write(content)
