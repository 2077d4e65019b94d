"""`sealrun list [--format table|json] [--quiet]`: the containers of a state root."""

import json
import os
import pwd
import sys
import time
from typing import NamedTuple

from sealrun_runtime import store
from sealrun_runtime.arguments import Invocation, parse
from sealrun_runtime.commands import state
from sealrun_runtime.errors import NotFound, UsageError

USAGE = "list [--format table|json] [--quiet]"

OPTIONS = {"format": "format=", "f": "format=", "quiet": "quiet", "q": "quiet"}
_COLUMNS = ("ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER")


class Entry(NamedTuple):
    """One container. created: RFC 3339, UTC."""

    document: dict[str, object]
    created: str
    owner: str


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Print ids, a table in runc's columns, or a JSON list."""
    parsed = parse(arguments, OPTIONS)
    form = parsed.value("format", "table")
    if form not in ("table", "json"):
        raise UsageError(f"invalid format {form}: it is table or json")
    if parsed.operands:
        raise UsageError(f"list: unexpected operand {parsed.operands[0]}")
    entries = _entries(invocation.root)
    if parsed.flag("quiet"):
        sys.stdout.writelines(f"{entry.document['id']}\n" for entry in entries)
    elif form == "json":
        documents = [
            {**one.document, "created": one.created, "owner": one.owner} for one in entries
        ]
        sys.stdout.write(json.dumps(documents) + "\n")
    else:
        rows = [_COLUMNS, *(_row(entry) for entry in entries)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            sys.stdout.write("   ".join(cells).rstrip() + "\n")
    return 0


def _entries(root: str) -> list[Entry]:
    found = []
    for container in store.containers(root):
        try:
            directory = store.open_container(root, container)
        except NotFound:  # deleted meanwhile
            continue
        try:
            document = state.current(directory)
            if document:
                status = os.stat(directory.descriptor)
                made = os.stat("oci.json", dir_fd=directory.descriptor).st_mtime
                found.append(Entry(json.loads(document), _stamp(made), _owner(status.st_uid)))
        except FileNotFoundError:  # under construction, or being deleted
            continue
        finally:
            directory.close()
    return found


def _row(entry: Entry) -> tuple[str, ...]:
    document = entry.document
    members = (str(document[name]) for name in ("id", "pid", "status", "bundle"))
    return (*members, entry.created, entry.owner)


def _stamp(moment: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def _owner(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"#{uid}"
