"""The sandbox's cgroup on the host: `linux.cgroupsPath` in each hierarchy, with shim, VMM and stand-in
in it, so that the engine's statistics and limits of the parent see the whole VM.

The container's own limits (`linux.resources`) are not applied here: the guest applies them to the
container's processes; on the host they would hit the VMM, which needs more than the container.

Directories are made by hand (the cgroupfs driver). A path in systemd's form, `slice:prefix:name`, is
translated to the place where systemd would put that scope.

On cgroup v1 and in hybrid mode each v1 hierarchy is used, on pure v2 the one of v2. What was made is
noted one directory a line, the deepest last, before it is made, so that `delete` can remove it
without us. Parents that we made and somebody else uses by now (conmon's cgroup beside ours) stay.
"""

import contextlib
import os
import time
from typing import Final, NamedTuple

from sealrun_runtime.store import CGROUPS, Directory

_REMOVE_SECONDS: Final = 2.0
_ATTEMPTS: Final = 5  # somebody may remove an empty parent between two of our steps
_ESCAPED: Final = {"\\040": " ", "\\011": "\t", "\\012": "\n", "\\134": "\\"}


class Hierarchy(NamedTuple):
    """A mounted cgroup hierarchy: where, and its v1 controllers (empty for v2)."""

    mount: str
    controllers: tuple[str, ...]


def hierarchies(mountinfo: str) -> list[Hierarchy]:
    """The hierarchies to use, from the content of /proc/self/mountinfo (proc(5))."""
    first, second = [], []
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = (*right.split(" "), "", "", "")[:3]
        mount, flags = left.split(" ")[4], left.split(" ")[5].split(",")
        for escape, character in _ESCAPED.items():
            mount = mount.replace(escape, character)
        if "ro" in flags:
            continue
        if kind == "cgroup":
            generic = {"rw", "ro", "xattr", "clone_children", "noprefix"}
            names = [name for name in options.split(",") if name not in generic]
            first.append(Hierarchy(mount, tuple(n for n in names if "release_agent" not in n)))
        elif kind == "cgroup2":
            second.append(Hierarchy(mount, ()))
    distinct: dict[tuple[str, ...], Hierarchy] = {}
    for one in first:
        distinct.setdefault(one.controllers, one)  # one that is mounted twice is used once
    return list(distinct.values()) or second[:1]


def directory_of(cgroups_path: str) -> str:
    """`linux.cgroupsPath` as an absolute path below a hierarchy's mount. Raises ValueError where it
    leads elsewhere."""
    if cgroups_path.count(":") == 2 and "/" not in cgroups_path:
        slice_name, prefix, name = cgroups_path.split(":")
        scope = f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
        cgroups_path = f"{_slice(slice_name or 'system.slice')}/{scope}"
    parts = [part for part in cgroups_path.split("/") if part]
    if not parts or any(part in (".", "..") or "\0" in part for part in parts):
        raise ValueError(f"cannot use the cgroup path {cgroups_path!r}")
    return "/" + "/".join(parts)


def _slice(name: str) -> str:
    """systemd.slice(5): `a-b.slice` lies in `a.slice`; `-.slice` is the root."""
    stem = name.removesuffix(".slice")
    if stem == "-":
        return ""
    parts = stem.split("-")
    if not all(parts):
        raise ValueError(f"cannot use the slice {name!r}")
    return "".join(f"/{'-'.join(parts[: count + 1])}.slice" for count in range(len(parts)))


class Cgroup:
    """The sandbox's directories, one in each hierarchy."""

    def __init__(
        self, directory: Directory, where: list[Hierarchy], path: str, own: int = 0
    ) -> None:
        """directory: the state directory that notes what is made. path: from `directory_of`; of its
        last `own` components we are in charge, whoever made them."""
        self._directory = directory
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

    def join(self, pid: int) -> None:
        """Move a process, with its threads. Raises OSError."""
        for _, leaf in self._leaves:
            _attach(leaf, pid)

    def join_self(self) -> None:
        """Move this process, remembering where it was. Raises OSError."""
        for hierarchy, leaf in self._leaves:
            self._home[leaf] = _current(hierarchy)
            _attach(leaf, os.getpid())

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
        elif not hierarchy.controllers:
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
