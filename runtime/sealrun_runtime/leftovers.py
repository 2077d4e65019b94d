"""What must not outlive a container: its processes, its cgroups, its state directory.

Works from what the state directory records and needs no living shim, no PATH and no HOME; calling
it again, or after somebody else did, does no harm. A process is known by its id *and* its start
time, and is held by a pidfd from the check on: a reused id is never killed.

On the hot path (delete): C modules only.
"""

import posix
import time
from _signal import SIGKILL, pidfd_send_signal  # type: ignore[import-not-found]
from errno import EINVAL, ENOTEMPTY
from select import POLLIN, poll

from sealrun_runtime.errors import HostError, NotFound, cause
from sealrun_runtime.store import (
    CGROUPS,
    NETWORK,
    POD,
    PROCESSES,
    SCOPE_MARK,
    Directory,
    open_pod,
)

SHIM_ROLE = "shim"
STAND_IN_ROLE = "stand-in"
EXEC_ROLE = "exec"
HOOK_ROLE = "hook"
KILL_SECONDS = 10.0
CGROUP_SECONDS = 5.0
SCOPE_SECONDS = 3.0
_LOOK_SECONDS = 0.05  # between two looks at processes that ought to have ended
# Of /proc/PID/stat, proc(5).
_PID = 1
_STATE = 3
_STARTTIME = 22


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none."""
    try:
        return int(_stat(str(pid))[_STARTTIME])
    except OSError:
        return 0


def enlist(directory: Directory, role: str) -> None:
    """Add this process to those that must not outlive the container. By itself and as its first deed,
    so that it is never there without being known, whatever happens to its parent meanwhile.

    Raises OSError, which has to end it: the directory may be gone."""
    stat = _stat("self")  # with the host's pid, in whatever namespace the process is
    directory.append(PROCESSES, f"{role} {int(stat[_PID])} {int(stat[_STARTTIME])}")


def enlist_exec(directory: Directory) -> None:
    """The same for a process that is one of thousands in the container's life: it has a file of its own,
    whose name says all, and which goes with it (`strike`). Raises OSError."""
    stat = _stat("self")
    name = f"{EXEC_ROLE}:{int(stat[_PID])}:{int(stat[_STARTTIME])}"
    flags = posix.O_WRONLY | posix.O_CREAT | posix.O_CLOEXEC
    posix.close(posix.open(name, flags, 0o600, dir_fd=directory.descriptor))


def strike(directory: Directory, pid: int) -> None:
    """Take a process that has ended off the list, where it is one of those."""
    for name in posix.listdir(directory.descriptor):
        if name.startswith(f"{EXEC_ROLE}:{pid}:"):
            try:  # noqa: SIM105 - contextlib costs 4 ms
                posix.unlink(name, dir_fd=directory.descriptor)
            except FileNotFoundError:
                pass


def enlist_other(directory: Directory, role: str, pid: int) -> None:
    """Add a child of an enlisted process that is none of our programs; it may die a moment later than
    its parent. Raises OSError."""
    directory.append(PROCESSES, f"{role} {pid} {start_time(pid)}")


def _stat(process: str) -> list[bytes]:
    """/proc/`process`/stat by the numbers of its fields, without the second: that is the program's
    name, which may hold anything, a parenthesis too. Raises OSError."""
    text = _read(f"/proc/{process}/stat")
    return [b"", text.split(b" ", 1)[0], b"", *text[text.rindex(b")") + 2 :].split()]


def _read(path: str) -> bytes:
    file = posix.open(path, posix.O_RDONLY | posix.O_CLOEXEC)
    try:
        return posix.read(file, 4096)
    finally:
        posix.close(file)


def find(directory: Directory, role: str) -> int:
    """A pidfd of the living process that was recorded in this role. Raises NotFound."""
    wanted = -1
    for process, recorded in _living(directory):
        if recorded == role and wanted < 0:
            wanted = process
        else:
            posix.close(process)
    if wanted < 0:
        raise NotFound(directory.container)
    return wanted


def stopped_shim(directory: Directory) -> int:
    """The pid of the container's shim where a signal has stopped it (proc(5): T; a tracer's stop is t),
    else 0."""
    try:
        process = _find_shim(directory)
    except NotFound:
        return 0
    try:
        pid = _pid_of(process)
        return pid if _stat(str(pid))[_STATE] == b"T" else 0
    except OSError:  # it ends
        return 0
    finally:
        posix.close(process)


def kill_shim(directory: Directory) -> None:
    """End the container's shim, and so its VM and all that are in there. Raises HostError."""
    try:
        process = _find_shim(directory)
    except NotFound:
        return
    try:
        _kill([process], directory.container)
    finally:
        posix.close(process)


def _find_shim(directory: Directory) -> int:
    pod = directory.read(POD).decode()
    if not pod:
        return find(directory, SHIM_ROLE)
    place = open_pod(directory.root, pod)
    try:
        return find(place, SHIM_ROLE)
    finally:
        place.close()


def remove(directory: Directory, *, patience: float) -> bool:
    """Leave nothing of the container; whether it has poststop hooks that are this call's to run.

    patience: seconds that its shim gets to end by itself, and to take the others with it, before
    whatever is left is killed.
    Raises HostError where something cannot be removed; the state directory then stays, so that the
    call can be repeated.
    """
    deadline = time.monotonic() + KILL_SECONDS
    hooks = False
    while True:
        _kill_all(directory, patience)
        if record := directory.read(NETWORK).decode():
            _release_network(record)
        for path in reversed(directory.read(CGROUPS).decode().splitlines()):
            if path.startswith(SCOPE_MARK):
                _await_scope(path.removeprefix(SCOPE_MARK), directory.container)
            else:
                _remove_cgroup(path)
        try:
            hooks = directory.clear() or hooks
            directory.remove()
            return hooks
        except OSError as error:
            # A `create` that was killed may have left a process that only now enlists itself.
            if error.errno != ENOTEMPTY or time.monotonic() >= deadline:
                text = f"cannot remove {directory.path}: {cause(error)}"
                raise HostError(text) from error


def _kill_all(directory: Directory, patience: float) -> None:
    """End all recorded processes and wait until they have ended. Raises HostError."""
    alive = _living(directory)
    processes = [process for process, _ in alive]
    try:
        if patience > 0:
            _wait([process for process, role in alive if role == SHIM_ROLE], patience)
        _kill(processes, directory.container)
    finally:
        for process in processes:
            posix.close(process)


def _kill(processes: list[int], container: str) -> None:
    """Raises HostError where one does not end."""
    for process in processes:
        try:  # noqa: SIM105 - contextlib costs 4 ms
            pidfd_send_signal(process, SIGKILL)
        except ProcessLookupError:
            pass
    if not _wait(processes, KILL_SECONDS):
        raise HostError(f"cannot kill all processes of container {container}")


def _living(directory: Directory) -> list[tuple[int, str]]:
    """A pidfd and the role of each recorded process that still is the one that was recorded."""
    found = []
    recorded = [line.split() for line in directory.read(PROCESSES).decode().splitlines()]
    names = posix.listdir(directory.descriptor)
    recorded += [name.split(":") for name in names if name.startswith(f"{EXEC_ROLE}:")]
    for fields in recorded:
        if len(fields) != 3:  # cut short by a crash while it was written
            continue
        pid, started = int(fields[1]), int(fields[2])
        try:
            process = posix.pidfd_open(pid)
        except (ProcessLookupError, ValueError):
            continue
        except OSError as error:
            # Linux before 6.9, of one that is gone and whose session or group still has members.
            if error.errno != EINVAL:
                raise
            continue
        if started and start_time(pid) == started:
            found.append((process, fields[0]))
        else:
            posix.close(process)
    return found


def _wait(processes: list[int], seconds: float) -> bool:
    """Whether all processes ended within `seconds`. A zombie has ended: its parent is an engine. So has
    the first one of a pid namespace that is held up by zombies of others (see _has_ended)."""
    deadline = time.monotonic() + seconds
    poller = poll()
    pending = set(processes)
    for process in processes:
        poller.register(process, POLLIN)
    while pending:
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return False
        ended = [process for process, _ in poller.poll(min(remaining, _LOOK_SECONDS) * 1000)]
        for process in ended or filter(_has_ended, [*pending]):
            poller.unregister(process)
            pending.discard(process)
    return True


def _release_network(record: str) -> None:
    """The shim was killed, else there would be no record."""
    from sealrun_runtime.network import leftover

    try:
        leftover.release(record)
    except OSError as error:
        raise HostError(f"cannot give the network's interfaces back: {cause(error)}") from error


def _has_ended(process: int) -> bool:
    """Whether there is no more of a process than its number: its memory, files, namespaces and, last but
    for those, its working directory were given back. The first one of a pid namespace keeps the number until
    all others were reaped, which is up to the parents that adopted them."""
    try:
        posix.readlink(f"/proc/{_pid_of(process)}/cwd")
    except (FileNotFoundError, ProcessLookupError):  # the latter of one that is reaped meanwhile
        return True
    except PermissionError:  # of such a one, too: the next look tells
        return False
    return False


def _pid_of(process: int) -> int:
    """Of a pidfd; -1 where it was reaped."""
    info = _read(f"/proc/self/fdinfo/{process}")
    return int(info.partition(b"\nPid:")[2].split(b"\n", 1)[0])


def _remove_cgroup(path: str) -> None:
    """A cgroup is busy until the kernel has done with the last process that died in it. One that
    others have cgroups in (Podman's common parent) stays: the last one out removes it."""
    deadline = time.monotonic() + CGROUP_SECONDS
    while True:
        try:
            posix.rmdir(path)
        except FileNotFoundError:
            pass
        except OSError as error:
            if _has_children(path):
                return
            if time.monotonic() < deadline:
                time.sleep(0.02)
                continue
            raise HostError(f"cannot remove cgroup {path}: {cause(error)}") from error
        return


def _await_scope(path: str, container: str) -> None:
    """systemd removes a scope when nothing is in it any more, and then the name is free. One that stays
    holds processes that nobody knows."""
    deadline = time.monotonic() + SCOPE_SECONDS
    while _is_there(path):
        if time.monotonic() >= deadline:
            from sealrun_runtime.systemd import leftover

            leftover.stop(path.rpartition("/")[2], container)
            return
        time.sleep(0.01)


def _is_there(path: str) -> bool:
    try:
        posix.stat(path)
    except FileNotFoundError:
        return False
    return True


def _has_children(path: str) -> bool:
    directory_links = 2  # its own name and its `.`; each directory in it adds one
    try:
        return posix.stat(path).st_nlink > directory_links
    except FileNotFoundError:
        return False
