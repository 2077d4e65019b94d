"""The option parser (argparse alone costs more than a whole `state`).

It takes what runc's takes: `--name value`, `--name=value`, `-n value`, one dash for long names too,
options before and after the operands, `--` to end them. Everything is given as a table::

    {"bundle": "bundle=", "b": "bundle=", "force": "force"}

from spelling to the option's name; a trailing `=` says that it takes a value.
"""

import posix

from sealrun_runtime.errors import UsageError

# How the log is opened; of a pipe that nobody reads, or that is full, O_NONBLOCK makes an error.
LOG_FLAGS = posix.O_WRONLY | posix.O_CREAT | posix.O_APPEND | posix.O_CLOEXEC | posix.O_NONBLOCK
_TRUE = ("true", "1", "t")
_FALSE = ("false", "0", "f")


class Invocation:
    """The options in front of the verb, as every command gets them.

    root: the state root. log, log_format: the engine's log. debug: tell more. cgroup_manager: who makes
    control groups on the host. The options that only fit a runtime whose containers live on the host are
    accepted and have no effect."""

    def __init__(self, root: str, log: str, log_format: str, *, debug: bool) -> None:
        self.root = root
        self.log = log
        self.log_format = log_format
        self.debug = debug
        self.cgroup_manager = "cgroupfs"


class Parsed:
    """Options by name (a flag that was given is `"true"`), and the operands in order."""

    def __init__(self) -> None:
        self.options: dict[str, str] = {}
        self.operands: list[str] = []
        self._given: list[tuple[str, str]] = []

    def flag(self, name: str) -> bool:
        """Whether the flag was given."""
        return self.options.get(name) == "true"

    def value(self, name: str, default: str = "") -> str:
        """The option's value, the last one where it was repeated."""
        return self.options.get(name, default)

    def values(self, name: str) -> list[str]:
        """All values of an option that may be repeated."""
        return [value for given, value in self._given if given == name]

    def add(self, name: str, value: str) -> None:
        """An option was given."""
        self.options[name] = value
        self._given.append((name, value))


def parse(arguments: list[str], table: dict[str, str], *, operands: bool = True) -> Parsed:
    """Sort `arguments` by `table`.

    operands: False stops at the first operand, as for options in front of a verb or of a command line
    to execute; the rest, that operand first, are the operands.
    Raises UsageError, which names the option.
    """
    parsed = Parsed()
    position = 0
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if argument == "--":
            parsed.operands += arguments[position:]
            break
        if len(argument) < 2 or argument[0] != "-":
            if not operands:
                parsed.operands = arguments[position - 1 :]
                break
            parsed.operands.append(argument)
            continue
        spelling, equals, value = argument.lstrip("-").partition("=")
        known = table.get(spelling)
        if known is None or argument.startswith("---"):
            raise UsageError(f"unknown option {argument.partition('=')[0]}")
        if not known.endswith("="):
            parsed.add(known, _flag(argument, value) if equals else "true")
            continue
        if not equals:
            if position == len(arguments):
                raise UsageError(f"option {argument} needs a value")
            value = arguments[position]
            position += 1
        parsed.add(known[:-1], value)
    return parsed


def _flag(argument: str, value: str) -> str:
    if value.lower() in _TRUE:
        return "true"
    if value.lower() in _FALSE:
        return "false"
    raise UsageError(f"option {argument} takes true or false")


def container_id(verb: str, parsed: Parsed, *, extra: int = 0) -> str:
    """The first operand, of which there are at most `extra` more. Raises UsageError."""
    if not parsed.operands:
        raise UsageError(f"{verb} needs a container id")
    if len(parsed.operands) > 1 + extra:
        raise UsageError(f"{verb}: unexpected operand {parsed.operands[1 + extra]}")
    return parsed.operands[0]
