"""The command line: which module does a verb, what stands in front of a verb, and the one place
where an error becomes a line of text and an exit status.

`state`, `start`, `kill` and `delete` run thousands of times a day: what they import is bounded by
tests/house/test_hot_path.py. Everything else is imported by the verb that needs it.
"""

import errno
import posix
import sys

from sealrun_runtime.arguments import LOG_FLAGS, Invocation, Parsed, parse
from sealrun_runtime.errors import HostError, SealrunError, UsageError, cause, describe
from sealrun_runtime.store import default_root

FAILED = 1
INTERRUPTED = 130

VERBS = {
    "create": "create",
    "start": "start",
    "state": "state",
    "kill": "kill",
    "delete": "delete",
    "run": "run",
    "exec": "exec",
    "ps": "ps",
    "pause": "pause",
    "resume": "resume",
    "update": "update",
    "events": "events",
    "list": "list",
    "attest": "attest",
    "spec": "spec",
    "features": "features",
    "check": "check",
    "measure": "measure",
    "config": "config",
    "init-data": "init_data",
    "image": "image",
    "cache": "cache",
    "keyprovider": "keyprovider",
    "help": "help",
}
UNSUPPORTED = ("checkpoint", "restore")
NO_CHECKPOINTS = "is not supported: what is in a sealed VM cannot be taken out of it"
_GLOBAL_OPTIONS = {
    "root": "root=",
    "log": "log=",
    "log-format": "log-format=",
    "debug": "debug",
    "systemd-cgroup": "systemd-cgroup",
    "cgroup-manager": "cgroup-manager=",
    "rootless": "ignored=",
    "criu": "ignored=",
    "version": "version",
    "v": "version",
    "help": "help",
    "h": "help",
}


def run_and_exit(arguments: list[str]) -> None:
    """Do what the command line says and end the process.

    Without the interpreter's tidying up, which costs as much as a whole `state`.
    """
    status = main(arguments)
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        if sys.stderr is not None:
            sys.stderr.flush()
    except OSError:  # nobody reads
        status = status or FAILED
    posix._exit(status)


def main(arguments: list[str]) -> int:
    """The exit status of a command line, after it was done."""
    invocation = Invocation("", "", "text", debug=False)
    try:
        return _dispatch(arguments, invocation)
    except SealrunError as error:
        _tell(invocation, describe(error))
        return error.status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED
    except Exception as error:
        if invocation.debug:
            import traceback

            traceback.print_exc()
        _tell(invocation, f"internal error: {type(error).__name__}: {error}")
        return FAILED


def _dispatch(arguments: list[str], invocation: Invocation) -> int:
    parsed = _parse_global(arguments)
    invocation.debug = parsed.flag("debug")
    log_format = parsed.value("log-format", "text")
    if log_format not in ("text", "json"):
        raise UsageError(f"invalid log format {log_format}: it is text or json")
    invocation.log_format = log_format
    manager = "systemd" if parsed.flag("systemd-cgroup") else "cgroupfs"
    invocation.cgroup_manager = parsed.value("cgroup-manager") or manager
    verb, rest = (parsed.operands[0], parsed.operands[1:]) if parsed.operands else ("", [])
    if parsed.flag("version"):
        verb, rest = "help", ["--version"]
    elif parsed.flag("help") or not verb:
        verb, rest = "help", []
    elif verb not in UNSUPPORTED and _asks_for_help(rest[:1] if verb == "exec" else rest):
        verb, rest = "help", [verb]
    if verb != "help" and (path := parsed.value("log")):
        _expect_log(path)
        invocation.log = path
    if verb in UNSUPPORTED:
        raise UsageError(f"{verb} {NO_CHECKPOINTS}")
    if verb not in VERBS:
        raise UsageError(f"unknown command {verb}", remedy="see sealrun --help")
    root = parsed.value("root")
    if verb != "help":
        invocation.root = root.rstrip("/") or "/" if root else default_root()
    command = __import__(f"sealrun_runtime.commands.{VERBS[verb]}", fromlist=["run"])
    try:
        status: int = command.run(invocation, rest)
    except UsageError as error:
        if verb != "help":
            error.remedy = error.remedy or f"see sealrun {verb} --help"
        raise
    return status


def _parse_global(arguments: list[str]) -> Parsed:
    try:
        return parse(arguments, _GLOBAL_OPTIONS, operands=False)
    except UsageError as error:
        error.remedy = "see sealrun --help"
        raise


def _expect_log(path: str) -> None:
    """As runc, which opens it before all else, an engine that would read nothing there is told. On a
    full disk containers can be killed and deleted nevertheless. Raises HostError."""
    try:
        posix.close(posix.open(path, LOG_FLAGS, 0o644))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return
        text = f"cannot open the log {path}: {cause(error)}"
        raise HostError(text, remedy="--log takes a file that can be written") from error


def _asks_for_help(arguments: list[str]) -> bool:
    return "--help" in arguments or "-h" in arguments


def _tell(invocation: Invocation, text: str) -> None:
    """Say it once to the person and once to the engine."""
    from sealrun_runtime.errors import one_line
    from sealrun_runtime.log import Log

    text = one_line(text)
    Log(invocation.log, invocation.log_format, debug=invocation.debug).error(text)
    if sys.stderr is not None:
        try:  # noqa: SIM105 - contextlib costs 4 ms
            sys.stderr.write(f"sealrun: {text}\n")
        except OSError:  # nobody reads
            pass
