"""The stand-in: the process on the host that engines take for the container, or for an exec.

Its pid goes into the pid file. Engines wait for it and take its exit status, enter its mount
namespace (`podman cp`), list its pid namespace (`podman top`), read its cgroup (`podman stats`) and
join its network, ipc and uts namespaces (pods). So it has all of these as config.json says, and is a
child of the call that made it, inherited by the engine when that exits. It holds one descriptor, its
link to the shim, and waits: `CODE\\n` makes it exit with CODE, end of file (the shim died) with 137,
`reap\\n` reap what it has inherited.

It is /bin/sh, executed in the host's file system and *then* pivoted from outside: `pivot_root` moves
the root of every process of a mount namespace. So nothing of the container's root, which may be
hostile, is ever executed or loaded on the host, and no static binary is needed. A forked Python
would keep 11 MB for each container; the shell has 0.2 MB of its own (docs/decisions.md).

Signals: a container's stand-in ignores them, as engines send them by `kill`. An exec has no verb for
them, so its stand-in passes each one on as `signal N`; and one that has a terminal, which its session
then controls, says `winch` when that changed its size. A shell's `read` can miss a signal that comes
just before it blocks; its `wait` cannot. So a stand-in that listens waits for a child which reads the
link for it, and dies with it.
"""

import fcntl
import os
import signal
import socket
import termios
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple, NoReturn

from sealrun_runtime import namespaces
from sealrun_runtime.bundle import ContainerSpec
from sealrun_runtime.errors import HostError, InvalidRequest, cause
from sealrun_runtime.sharing import Tree

LINK: Final = 3  # the link's descriptor in the stand-in
READY: Final = "ready"
READY_SECONDS: Final = 20.0
SHELL: Final = "/bin/sh"
NO_TERMINAL: Final = -1
FORWARDED: Final = frozenset(signal.valid_signals()) - {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,  # the shell's own
    signal.SIGPIPE,  # comes of writing to a shim that is gone
}
"""The signals that an exec's stand-in passes on."""

_SETPRIV: Final = "/usr/bin/setpriv"
# `reap`: it inherits what a killed exec leaves in its namespace of pids. A shell that reads reaps nobody;
# one that waits for a child of its own reaps everybody.
_READ: Final = (
    f"echo {READY} >&{LINK}; while read -r code <&{LINK} && [ $code = reap ]; do (:); done; "
    "exit ${code:-137}"
)
_DESCRIPTORS: Final = 2**31 - 1
_NAMESPACE_FLAGS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # the bundle may name a fifo
# Namespaces of their own that the stand-in has no use for are left to the guest.
_OWN: Final = ("ipc", "uts", "network")
_JOINED: Final = ("ipc", "uts", "network")


class StandIn(NamedTuple):
    """A stand-in that is ready. `link` is the shim's end: a connected stream socket."""

    pid: int
    link: socket.socket


def start(
    container: ContainerSpec,
    terminal: int,
    enlist: Callable[[], None],
    *,
    mounts: Sequence[Tree] = (),
    readonly: bool = False,
) -> StandIn:
    """Fork a container's stand-in. terminal: the slave of the pseudo-terminal that its session is
    to control, or NO_TERMINAL. enlist: what it does first. mounts: what it sees where the container
    does. readonly: nothing else can be changed by those who come to it for the container's files.

    Raises InvalidRequest for a namespace path, HostError."""
    own: set[str] = {one.type for one in container.namespaces if not one.path}
    reports = {} if terminal == NO_TERMINAL else {signal.SIGWINCH: "winch"}
    with _PathNamespaces(container) as entered:

        def prepare() -> None:
            if "pid" in entered:
                namespaces.setns(entered["pid"], namespaces.CLONE["pid"])
            elif "pid" in own:
                namespaces.unshare(namespaces.CLONE["pid"])

        def enter() -> None:
            for kind, descriptor in entered.items():
                if kind != "pid":
                    namespaces.setns(descriptor, namespaces.CLONE[kind])
            for kind in own.intersection(_OWN):
                namespaces.unshare(namespaces.CLONE[kind])
            if "uts" in own and container.hostname:
                namespaces.set_hostname(container.hostname)
            if "uts" in own and container.domainname:
                namespaces.set_domainname(container.domainname)

        root = _Root(
            container.rootfs,
            mounts,
            make_points=not container.rootfs_readonly,
            mount_proc="pid" in own,
            readonly=readonly,
        )
        return _start(_Plan(prepare, enlist, enter, reports, terminal, root))


def start_exec(
    first: int, rootfs: str, enlist: Callable[[], None], terminal: int = NO_TERMINAL
) -> StandIn:
    """Fork an exec's stand-in beside the container's: in the same pid, ipc, uts and network
    namespaces, and with the same root in a mount namespace of its own (the shell has to be executed
    from the host's). first: a pidfd of the container's stand-in. enlist: what it does first: it ends
    with the container's where that is the first of a namespace of pids, but not with --pid=host. Raises
    HostError."""
    reports = {number: f"signal {number}" for number in FORWARDED}
    if terminal != NO_TERMINAL:
        reports[signal.SIGWINCH] = "winch"

    def prepare() -> None:
        namespaces.setns(first, namespaces.CLONE["pid"])

    def enter() -> None:
        for kind in _JOINED:
            namespaces.setns(first, namespaces.CLONE[kind])

    root = _Root(rootfs, mount_proc=True)
    return _start(_Plan(prepare, enlist, enter, reports, terminal, root))


class _Root(NamedTuple):
    """What the stand-in is pivoted to. make_points: mount points that are missing may be made."""

    path: str
    mounts: Sequence[Tree] = ()
    make_points: bool = False
    mount_proc: bool = False
    readonly: bool = False


class _Plan(NamedTuple):
    """prepare: done by the caller, about the pid namespace of its children. enlist, enter: done by
    the stand-in, in this order. reports: the line that it sends for each signal that it does not ignore."""

    prepare: Callable[[], None]
    enlist: Callable[[], None]
    enter: Callable[[], None]
    reports: Mapping[signal.Signals, str]
    terminal: int
    root: _Root


def _start(plan: _Plan) -> StandIn:
    with ExitStack() as undo:
        link, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(link.close)
        try:
            with child_end:
                pid = _fork_beyond(plan.prepare, lambda: _become(plan, child_end), child_end)
                if pid:
                    undo.callback(_end, pid)
            _expect_ready(link)
            if plan.root.path != "/" and os.path.isdir(plan.root.path):
                _pivot(pid, plan.root)
        except OSError as error:
            raise HostError(f"cannot start the stand-in: {cause(error)}") from error
        undo.pop_all()
    return StandIn(pid, link)


def _end(pid: int) -> None:
    """Kill and reap a stand-in that came to nothing."""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _fork_beyond(
    prepare: Callable[[], None], work: Callable[[], None], report: socket.socket
) -> int:
    """Run `work` in a child of this process; its pid, 0 where it did not come to be.

    `prepare` is about the pid namespace of children, and done by a process in between, which then ends
    and leaves us its child. This process would have to come back from there, which who is root in a
    user namespace only cannot; and in the namespace of a container none can be forked any more once the
    container has ended."""
    reader, writer = os.pipe()

    def fork() -> None:
        prepare()
        os.write(writer, str(_fork(work, report)).encode())

    namespaces.adopt_orphans(adopt=True)
    try:
        os.waitpid(_fork(fork, report), 0)
    finally:
        namespaces.adopt_orphans(adopt=False)
        os.close(writer)
    with open(reader, "rb", buffering=0) as told:
        return int(told.read(64) or 0)


class _PathNamespaces:
    """The namespaces that config.json names by path, open for as long as the block lasts."""

    def __init__(self, container: ContainerSpec) -> None:
        self._wanted = [one for one in container.namespaces if one.path]
        self.descriptors: dict[str, int] = {}

    def __enter__(self) -> dict[str, int]:
        for one in self._wanted:
            if one.type in ("mount", "user", "cgroup", "time"):
                self._close()
                raise InvalidRequest(f"joining a {one.type} namespace by path is not supported")
            try:
                self.descriptors[one.type] = os.open(one.path, _NAMESPACE_FLAGS)
            except OSError as error:
                self._close()
                text = f"cannot open {one.type} namespace {one.path}: {cause(error)}"
                raise InvalidRequest(text) from error
        return self.descriptors

    def __exit__(self, *_: object) -> None:
        self._close()

    def _close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors.clear()


def _fork(work: Callable[[], None], report: socket.socket) -> int:
    """Run `work` in a child, which ends with it; a failure is written to `report` as one line."""
    pid = os.fork()
    if pid == 0:
        _run_and_exit(work, report)
    return pid


def _run_and_exit(work: Callable[[], None], report: socket.socket) -> NoReturn:
    status = 1
    try:
        work()
        status = 0
    except OSError as error:
        text = f"{error.filename}: {cause(error)}" if error.filename else cause(error)
        report.send(text.encode())
    finally:
        os._exit(status)


def _become(plan: _Plan, link: socket.socket) -> None:
    """Turn the forked child into the stand-in; does not return."""
    plan.enlist()
    os.setsid()
    if plan.terminal != NO_TERMINAL:
        fcntl.ioctl(plan.terminal, termios.TIOCSCTTY, 0)
    os.umask(0o077)
    plan.enter()
    namespaces.unshare(namespaces.CLONE["mount"])
    # Slave, not private: what the engine unmounts on the host must not live on in here.
    namespaces.mount("none", "/", "", namespaces.MS_REC | namespaces.MS_SLAVE)
    os.chdir("/")
    # Ignored signals stay ignored through exec, and a shell cannot trap them. As PID 1 of a namespace
    # it would be immune anyway, but not with --pid=host.
    heard = set(plan.reports) | ({signal.SIGCHLD} if plan.reports else set())
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL if number in heard else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.dup2(link.fileno(), LINK)
    os.set_inheritable(LINK, True)  # dup2 does not where it is the same descriptor already
    os.closerange(0, LINK)
    os.closerange(LINK + 1, _DESCRIPTORS)
    script = _listening(plan.reports) if plan.reports else _READ
    os.execve(SHELL, ["sealrun-stand-in", "-c", script], {})  # noqa: S606


def _listening(reports: Mapping[signal.Signals, str]) -> str:
    """The script that reports signals. `wait` ends at a signal, and its trap runs before the next
    command; a second `wait` for a child that has ended tells its status again."""
    traps = "".join(
        f"trap 'heard=1; echo {line} >&{LINK}' {int(number)}; "
        for number, line in sorted(reports.items())
    )
    deaf = " ".join(str(int(number)) for number in sorted(reports))
    return (
        f"{traps}"
        f"{{ trap '' {deaf}; exec {_SETPRIV} --pdeathsig KILL {SHELL} -c '{_READ}'; }} & "
        "heard=1; while [ $heard ]; do heard=; wait $!; done; wait $!; exit $?"
    )


def _expect_ready(link: socket.socket) -> None:
    """Wait until the shell runs: only then everything that it loads is loaded."""
    link.settimeout(READY_SECONDS)
    try:
        answer = link.recv(4096).decode("utf-8", "replace").strip()
    except TimeoutError as error:
        raise HostError("cannot start the stand-in: it does not answer") from error
    if answer != READY:
        raise HostError(f"cannot start the stand-in: {answer or f'{SHELL} ended at once'}")
    link.settimeout(None)


def _pivot(pid: int, root: _Root) -> None:
    """Pivot the stand-in's mount namespace, by a child that enters it for that.

    What is mounted as proc shows the pid namespace of whoever mounts it: that is a child of the
    child, which reaps it whatever becomes of us. Unreaped it would keep the stand-in, the first
    process of that namespace, from ending."""
    process = os.pidfd_open(pid)

    def work() -> None:
        namespaces.setns(process, namespaces.CLONE["mount"])
        namespaces.pivot_to(root.path)
        for mount in root.mounts:
            _mount_tree(mount, make_point=root.make_points)
        if root.mount_proc:
            namespaces.setns(process, namespaces.CLONE["pid"])
            os.waitpid(_fork(_mount_proc, report), 0)
        if root.readonly:
            namespaces.restrict_mount("/", namespaces.MOUNT_ATTR_RDONLY)

    report, child_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with report, child_end:
        try:
            _, status = os.waitpid(_fork(work, child_end), 0)
        finally:
            os.close(process)
        if status != 0:
            child_end.close()
            text = report.recv(4096).decode("utf-8", "replace")
            raise HostError(f"cannot pivot the stand-in to {root.path}: {text or 'unknown error'}")


def _mount_tree(tree: Tree, *, make_point: bool) -> None:
    """`podman cp` looks for the container's files there. Where the mount point is missing and cannot
    be made, the container has the same trouble, or makes it where nobody outside looks."""
    os.umask(0o022)
    with suppress(OSError):
        if not make_point:
            pass
        elif tree.directory:
            os.makedirs(tree.destination, exist_ok=True)
        elif not os.path.exists(tree.destination):
            os.makedirs(os.path.dirname(tree.destination), exist_ok=True)
            os.close(os.open(tree.destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755))
        namespaces.attach_tree(tree.descriptor, tree.destination)


def _mount_proc() -> None:
    """`podman top` reads the processes there. An image may lack the directory, and a read-only root
    the means to make it: then `top` has nothing to show, which is no reason to refuse the container.
    What the path leads to is the image's choice, but it stays below the new root."""
    flags = namespaces.MS_NOSUID | namespaces.MS_NODEV | namespaces.MS_NOEXEC
    with suppress(OSError):
        os.mkdir("/proc", 0o555)
    with suppress(OSError):
        namespaces.mount("proc", "/proc", "proc", flags)
