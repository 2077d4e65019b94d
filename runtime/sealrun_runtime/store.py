"""The state root: ROOT/ID/ for each container, ROOT/pod:SANDBOX:TOKEN/ for each pod, readable by their
owner only. One that somebody else owns or may write to is not trusted. A container that stands alone is a sandbox of its own, and has all of these files:

    state.json    the finished OCI state, replaced atomically: `create` writes the first ("creating"),
                  the shim all others. Members in this order: ociVersion, id, status, pid, bundle,
                  annotations. So the hot verbs copy and patch bytes and need no JSON.
    shim.sock     the control socket; listening from before the shim runs until the shim dies
    shim.json     what the shim starts from; oci.json: the bundle's config.json  (handover.py)
    processes     lines `role pid starttime` of what must not outlive the container
    exec:PID:STARTTIME
                  the same of an executed program's stand-in; empty, and gone when that has ended
    poststart.json, poststop.json
                  the hooks that `start` and `delete` run, where there are any  (hooks.py)
    cgroups       lines of absolute cgroup directories that the shim made, the deepest last; those with
                  SCOPE_MARK in front are scopes, which systemd made and removes
    network       lines about redirected interfaces, while there are any  (network/leftover.py)
    channel.sock, console.log, vmm.log, shim.log
    pod           in a container of a pod: the name of the pod's directory, which has what belongs to
                  the VM and the shim; the container's has state.json, shim.sock and what is its own

This module is on the hot path: `posix` instead of `os` (which costs 1 ms).
"""

import errno
import posix

from sealrun_runtime.errors import HostError, InvalidRequest, NotFound, cause

STATE = "state.json"
SOCKET = "shim.sock"
PROCESSES = "processes"
CGROUPS = "cgroups"
SCOPE_MARK = "systemd:"
NETWORK = "network"
POSTSTART = "poststart.json"
POSTSTOP = "poststop.json"
SHIM_LOG = "shim.log"
POD = "pod"
POD_PREFIX = "pod:"  # of a directory's name; no id of a container has a colon

ID_LENGTH = 1024
_ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_+-.")
_READ_BYTES = 1 << 20


def default_root() -> str:
    """/run/sealrun for root, else below XDG_RUNTIME_DIR; so too for who is root in a user namespace
    only, as in all of rootless Podman's calls. Raises HostError where that is not set."""
    root = posix.geteuid() == 0
    if root and not in_user_namespace():
        return "/run/sealrun"
    directory = posix.environ.get(b"XDG_RUNTIME_DIR", b"")
    if not directory and root:
        return "/run/sealrun"
    if not directory:
        raise HostError(
            "cannot find the state root: XDG_RUNTIME_DIR is not set", remedy="use --root"
        )
    return directory.decode("utf-8", "surrogateescape") + "/sealrun"


def in_user_namespace() -> bool:
    """Whether this process is in another user namespace than the machine's first one."""
    file = posix.open("/proc/self/uid_map", posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(file, 4096).split() != [b"0", b"0", b"4294967295"]
    finally:
        posix.close(file)


def check_id(container: str) -> str:
    """`container`, which is fit to be a directory's name. Raises InvalidRequest."""
    valid = (
        0 < len(container) <= ID_LENGTH
        and container not in (".", "..")
        and _ID_CHARACTERS.issuperset(container)
    )
    if not valid:
        raise InvalidRequest(
            f"invalid container id {container[:80]!r}",
            remedy=f"it has 1 to {ID_LENGTH} letters, digits and the characters _ + - .",
        )
    return container


class Directory:
    """The open state directory of one container, or of a pod. Everything goes through its descriptor,
    so that a directory of the same name that another call makes meanwhile is never touched."""

    def __init__(self, root: str, container: str, descriptor: int) -> None:
        self.root = root
        self.container = container
        self.path = f"{root}/{container}"
        self.descriptor = descriptor

    def read(self, name: str) -> bytes:
        """The content of a small file; empty where there is none."""
        try:
            file = posix.open(name, posix.O_RDONLY | posix.O_CLOEXEC, dir_fd=self.descriptor)
        except FileNotFoundError:
            return b""
        try:
            content = b""
            while part := posix.read(file, _READ_BYTES):
                content += part
            return content
        finally:
            posix.close(file)

    def write(self, name: str, content: bytes) -> None:
        """Replace a file atomically."""
        temporary = f"{name}.new"
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_TRUNC | posix.O_CLOEXEC
        file = posix.open(temporary, flags, 0o600, dir_fd=self.descriptor)
        try:
            view = memoryview(content)
            while view:
                view = view[posix.write(file, view) :]
        finally:
            posix.close(file)
        posix.rename(temporary, name, src_dir_fd=self.descriptor, dst_dir_fd=self.descriptor)

    def append(self, name: str, line: str) -> None:
        """Add a line to a file."""
        flags = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC
        file = posix.open(name, flags, 0o600, dir_fd=self.descriptor)
        try:
            posix.write(file, line.encode() + b"\n")
        finally:
            posix.close(file)

    def clear(self) -> bool:
        """Remove all that is in the directory. What is gone already does not matter: of several calls
        exactly one is told that the hooks of POSTSTOP are its own to run."""
        _empty(self.descriptor, (POSTSTOP, STATE))
        mine = self._unlink(POSTSTOP)
        self._unlink(STATE)  # behind the hooks, which are told of it
        return mine

    def hold(self) -> None:
        """Say, for as long as this process or one that was given the descriptor lives, that somebody is
        at work here: `create`, which writes the first state and may die before there is another."""
        import fcntl

        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def is_being_created(self) -> bool:
        """Whether a `create` that has not made its container yet is alive."""
        if status_of(self.read(STATE)) not in ("", "creating"):
            return False
        import fcntl

        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self.descriptor, fcntl.LOCK_UN)
        return False

    def remove(self) -> None:
        """Remove the directory itself, where it still is the one of its name. Raises OSError: it is
        not empty."""
        try:
            ours, named = posix.fstat(self.descriptor), posix.stat(self.path)
            if (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino):
                posix.rmdir(self.path)
        except FileNotFoundError:
            pass

    def _unlink(self, name: str) -> bool:
        try:
            posix.unlink(name, dir_fd=self.descriptor)
        except FileNotFoundError:
            return False
        return True

    def close(self) -> None:
        """Let go of the descriptor; whatever would still use it fails."""
        descriptor, self.descriptor = self.descriptor, -1
        posix.close(descriptor)


def open_container(root: str, container: str) -> Directory:
    """The state directory of an existing container. Raises NotFound, InvalidRequest, HostError."""
    return _open(root, check_id(container))


def open_pod(root: str, name: str) -> Directory:
    """An existing pod's directory. Raises NotFound, InvalidRequest, HostError."""
    if not name.startswith(POD_PREFIX) or "/" in name:
        raise InvalidRequest(f"not a pod's directory: {name[:80]!r}")
    return _open(root, name)


def _open(root: str, container: str) -> Directory:
    path = f"{root}/{container}"
    flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_CLOEXEC | posix.O_NOFOLLOW
    try:
        descriptor = posix.open(path, flags)
    except FileNotFoundError:
        raise NotFound(container) from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:  # no file system has such a name
            raise NotFound(container) from None
        raise HostError(f"cannot open {path}: {cause(error)}") from error
    try:
        _check_ours(path, posix.fstat(descriptor))
    except HostError:
        posix.close(descriptor)
        raise
    return Directory(root, container, descriptor)


def _check_ours(path: str, about: posix.stat_result) -> None:
    """What lies in a directory says which processes to kill and whom to believe, so it has to be one in
    which nobody else can have put anything. Raises HostError."""
    if about.st_uid != posix.geteuid():
        why, remedy = f"it belongs to user {about.st_uid}", "run as that user, or remove it"
    elif about.st_mode & 0o022:
        why = f"others may write there (mode {about.st_mode & 0o7777:04o})"
        remedy = "remove it, or look at what it holds and take the right from them"
    else:
        return
    raise HostError(f"cannot trust {path}: {why}", remedy=f"{remedy}; --root names another place")


def make_container(root: str, container: str) -> Directory:
    """A new state directory. Raises InvalidRequest where the id is taken or unfit, HostError."""
    return _make(root, check_id(container))


def pod_name(sandbox: str, token: str) -> str:
    """Of a directory for a new pod. Raises InvalidRequest."""
    return f"{POD_PREFIX}{check_id(sandbox)}:{token}"


def make_pod(root: str, name: str) -> Directory:
    """A new directory for a pod. Raises InvalidRequest, HostError."""
    return _make(root, name)


def _make(root: str, container: str) -> Directory:
    path = f"{root}/{container}"
    try:
        _make_root(root)
        _check_ours(root, posix.stat(root))
        posix.mkdir(path, 0o700)
    except FileExistsError:
        raise InvalidRequest(f"container with id exists: {container}") from None
    except OSError as error:
        raise HostError(f"cannot make {path}: {cause(error)}") from error
    return _open(root, container)


def containers(root: str) -> list[str]:
    """The ids of all containers, sorted."""
    return [name for name in _names(root) if not name.startswith(POD_PREFIX)]


def pods(root: str, sandbox: str) -> list[str]:
    """The names of a pod's directories; it may have several, of which at most one takes members."""
    return [name for name in _names(root) if name.startswith(f"{POD_PREFIX}{sandbox}:")]


def _names(root: str) -> list[str]:
    try:
        return sorted(posix.listdir(root))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HostError(f"cannot read {root}: {cause(error)}") from error


def _make_root(root: str) -> None:
    """Make the root and what is missing above it."""
    try:
        posix.mkdir(root, 0o711)
    except FileExistsError:
        pass
    except FileNotFoundError:
        parent = root.rstrip("/").rpartition("/")[0]
        if not parent:
            raise
        _make_root(parent)
        try:  # noqa: SIM105 - contextlib costs 4 ms
            posix.mkdir(root, 0o711)
        except FileExistsError:  # another one came meanwhile
            pass


def _empty(directory: int, keep: tuple[str, ...] = ()) -> None:
    """Others may be at it too: what one of them has removed does not matter."""
    for name in posix.listdir(directory):
        if name in keep:
            continue
        try:  # noqa: SIM105 - contextlib costs 4 ms
            _remove(directory, name)
        except FileNotFoundError:
            pass


def _remove(directory: int, name: str) -> None:
    try:
        posix.unlink(name, dir_fd=directory)
    except (IsADirectoryError, PermissionError):
        flags = posix.O_RDONLY | posix.O_DIRECTORY | posix.O_NOFOLLOW | posix.O_CLOEXEC
        below = posix.open(name, flags, dir_fd=directory)
        try:
            _empty(below)
        finally:
            posix.close(below)
        posix.rmdir(name, dir_fd=directory)


def status_of(state: bytes) -> str:
    """The status in a state document; empty where it holds none."""
    start, end = _member(state, b"status")
    return state[start:end].strip(b'"').decode()


def is_live(state: bytes) -> bool:
    """Whether a state document is one that only a living shim, or `create`, keeps true."""
    return status_of(state) in ("creating", "created", "running", "paused")


def as_stopped(state: bytes) -> bytes:
    """The state document of a container whose shim, or whose creation, died without saying so."""
    start, end = _member(state, b"status")
    state = state[:start] + b'"stopped"' + state[end:]
    start, end = _member(state, b"pid")
    return state[:start] + b"0" + state[end:]


def _member(state: bytes, name: bytes) -> tuple[int, int]:
    """Where the value of `status` or `pid` stands. Before them stand only members whose values cannot
    hold a quote, so that the first of this name that is followed by a colon is the member."""
    end = 0
    while (at := state.find(b'"' + name + b'"', end)) >= 0:
        end = at + len(name) + 2
        start = _skip_blanks(state, end)
        if state[start : start + 1] != b":":  # the id may be called `status`
            continue
        start = end = _skip_blanks(state, start + 1)
        while end < len(state) and state[end] not in b",}\n ":
            end += 1
        return start, end
    return len(state), len(state)


def _skip_blanks(text: bytes, position: int) -> int:
    while text[position : position + 1] == b" ":
        position += 1
    return position
