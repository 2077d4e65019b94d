"""The processes of a container, for `ps` (messages.ListProcesses). Blocking: for workers.

What is read of a process can be gone in the next moment; such a process is left out.
"""

from typing import Any, Final

import msgspec
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.container.cgroup import Cgroup
from sealrun_agent.errors import RunError

_PROCESSES: Final = 4096
_COMMAND_BYTES: Final = 1024  # the document fits into one message


def list_processes(cgroup: Cgroup, *, show_commands: bool) -> bytes:
    """JSON: a list of {pid, ppid, uid, command, container_pid}. pid, ppid: in the guest, 0 where the
    parent is outside of the container. container_pid: in the container's own pid namespace.

    command: arguments joined with spaces, or [name] for a process without any; empty unless
    `show_commands`. Raises RunError where there are too many."""
    found = []
    for pid in cgroup.pids():
        try:
            found.append(_describe(pid, show_commands=show_commands))
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(found) > _PROCESSES:
            raise RunError(
                ErrorCode.RUNTIME_FAILED, f"the container has more than {_PROCESSES} processes"
            )
    members = {process["pid"] for process in found}
    for process in found:
        if process["ppid"] not in members:
            process["ppid"] = 0
    return msgspec.json.encode(sorted(found, key=lambda process: process["pid"]))


def _describe(pid: int, *, show_commands: bool) -> dict[str, Any]:
    with open(f"/proc/{pid}/status", "rb") as file:
        status = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
    command = ""
    if show_commands:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            arguments = file.read(_COMMAND_BYTES).rstrip(b"\0").replace(b"\0", b" ")
        command = (arguments or b"[%s]" % status[b"Name"].strip()).decode("utf-8", "replace")
    return {
        "pid": pid,
        "ppid": int(status[b"PPid"]),
        "uid": int(status[b"Uid"].split()[1]),
        "command": command,
        "container_pid": int(status[b"NSpid"].split()[-1]),
    }
