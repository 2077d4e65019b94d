"""`sealrun ps [--format table|json] ID [ps options]`: the processes of a container.

json: a list of host process ids, as containerd reads it. A container's processes have none, so these
are its stand-ins: one for the container, one for each exec. table: the processes in the guest. What
runc hands on to ps(1) has no program here that would understand it, and is ignored.
"""

import json
import sys
from typing import Any

from sealrun_runtime import store
from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.errors import NOT_RUNNING, UsageError, one_line
from sealrun_runtime.inquiry import ask

USAGE = "ps [--format table|json] ID"

OPTIONS = {"format": "format=", "f": "format="}
_COLUMNS = {"UID": "uid", "PID": "pid", "PPID": "ppid", "CMD": "command"}


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Raises WrongState where the container does not run."""
    parsed = parse(arguments, OPTIONS, operands=False)
    if not parsed.operands:
        raise UsageError("ps needs a container id")
    form = parsed.value("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"invalid format {form}: it is table or json")
    directory = store.open_container(invocation.root, parsed.operands[0])
    document: dict[str, Any] = json.loads(ask(directory, "ps", otherwise=NOT_RUNNING))
    if form == "json":
        sys.stdout.write(json.dumps(document["pids"]) + "\n")
        return 0
    rows = [
        tuple(one_line(str(process[member])) for member in _COLUMNS.values())
        for process in document["processes"]
    ]
    for uid, pid, parent, command in (tuple(_COLUMNS), *rows):
        sys.stdout.write(f"{uid:<10} {pid:>7} {parent:>7} {command}\n")
    return 0
