"""`sealrun exec [options] ID COMMAND …`: run one more program in a running container."""

import json
from typing import Any

from sealrun_runtime import bundle, execution, spec_rules, store
from sealrun_runtime.arguments import Invocation, Parsed, parse
from sealrun_runtime.commands import create
from sealrun_runtime.errors import InvalidRequest, Reported, SealrunError, UsageError
from sealrun_runtime.handover import OCI_CONFIG_FILE
from sealrun_runtime.log import Log

USAGE = (
    "exec [--detach] [--tty] [--process FILE] [--cwd DIR] [--env NAME=VALUE]… [--user UID[:GID]]"
    " [--additional-gids GID]… [--cap CAPABILITY]… [--no-new-privs] [--console-socket SOCKET]"
    " [--pid-file FILE] ID COMMAND [ARGUMENT…]"
)

OPTIONS = {
    "detach": "detach",
    "d": "detach",
    "tty": "tty",
    "t": "tty",
    "process": "process=",
    "p": "process=",
    "cwd": "cwd=",
    "env": "env=",
    "e": "env=",
    "user": "user=",
    "u": "user=",
    "additional-gids": "additional-gids=",
    "g": "additional-gids=",
    "cap": "cap=",
    "c": "cap=",
    "no-new-privs": "no-new-privs",
    "console-socket": "console-socket=",
    "pid-file": "pid-file=",
    "preserve-fds": "preserve-fds=",
    "process-label": "process-label=",
    "apparmor": "apparmor=",
    "cgroup": "cgroup=",
    "ignore-paused": "ignore-paused",
}
FAILED = 255  # as runc: not to be taken for the program's own


def run(invocation: Invocation, arguments: list[str]) -> int:
    """The exit status of the program; 0 with --detach, 127 and 126 for one that cannot be run."""
    try:
        return _run(invocation, parse(arguments, OPTIONS, operands=False))
    except SealrunError as error:
        error.status = error.program_status if isinstance(error, Reported) else 0
        error.status = error.status or FAILED
        raise


def _run(invocation: Invocation, parsed: Parsed) -> int:
    if not parsed.operands:
        raise UsageError("exec needs a container id")
    container, *command = parsed.operands
    create.refuse_descriptors(parsed)
    if parsed.value("cgroup"):
        raise InvalidRequest("--cgroup is not supported: the container's cgroups are the guest's")
    create.open_standard_descriptors()
    directory = store.open_container(invocation.root, container)
    execution.expect_live(directory)
    content = _process(parsed, command, directory)
    process = bundle.parse_process(content)
    log = Log(invocation.log, invocation.log_format, debug=invocation.debug)
    for line in spec_rules.apply(content, spec_rules.PROCESS):
        log.info(line)
    detached, console_socket = parsed.flag("detach"), parsed.value("console-socket")
    create.check_terminal(process.terminal, console_socket, detached=detached)
    request = execution.Request(process, content.decode(), parsed.value("pid-file"), console_socket)
    return execution.execute(directory, request, detached=detached)


def _process(parsed: Parsed, command: list[str], directory: store.Directory) -> bytes:
    """The OCI `process`: the one of --process as it is, or that of the container's first program
    with what the options change."""
    if parsed.value("process"):
        return bundle.read_file(parsed.value("process"))
    if not command:
        raise UsageError("exec needs a command")
    process: dict[str, Any] = json.loads(directory.read(OCI_CONFIG_FILE))["process"]
    process["args"] = command
    process["terminal"] = parsed.flag("tty")
    process.pop("consoleSize", None)
    if parsed.value("cwd"):
        process["cwd"] = parsed.value("cwd")
    if parsed.values("env"):
        process["env"] = (process.get("env") or []) + parsed.values("env")
    for option, member in (("apparmor", "apparmorProfile"), ("process-label", "selinuxLabel")):
        if parsed.value(option):
            process[member] = parsed.value(option)
    if "no-new-privs" in parsed.options:
        process["noNewPrivileges"] = parsed.flag("no-new-privs")
    _set_user(process, parsed)
    _add_capabilities(process, parsed.values("cap"))
    return json.dumps(process).encode()


def _set_user(process: dict[str, Any], parsed: Parsed) -> None:
    user = process.get("user") or {}
    if parsed.value("user"):
        uid, colon, gid = parsed.value("user").partition(":")
        user = {**user, "uid": _number(uid, "user")}
        user["gid"] = _number(gid, "user") if colon else user.get("gid", 0)
    more = [
        _number(gid, "additional-gids")
        for value in parsed.values("additional-gids")
        for gid in value.split(",")
    ]
    if more:
        user["additionalGids"] = (user.get("additionalGids") or []) + more
    process["user"] = {"uid": 0, "gid": 0, **user}


def _add_capabilities(process: dict[str, Any], names: list[str]) -> None:
    """As runc and crun: a program that is no root gets nothing of it but the bound."""
    if not names:
        return
    sets = process.get("capabilities") or {}
    for kind in ("bounding", "effective", "permitted"):
        sets[kind] = list(dict.fromkeys((sets.get(kind) or []) + names))
    process["capabilities"] = sets


def _number(text: str, option: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"option --{option} takes numbers, not {text[:80]!r}")
    return int(text)
