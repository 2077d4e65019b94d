"""`sealrun kill [--all] ID [SIGNAL]`: send a signal to the container's program."""

import _signal  # type: ignore[import-not-found]
from _signal import SIGKILL

from sealrun_runtime import client, store
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.errors import (
    KIND_WRONG_STATE,
    NOT_RUNNING,
    Reported,
    Silent,
    UsageError,
    WrongState,
)

USAGE = "kill [--all] ID [SIGNAL]"

OPTIONS = {"all": "all", "a": "all"}


def run(invocation: Invocation, arguments: list[str]) -> int:
    """One message. Signals that an engine sends on its own account (28 on a resized terminal, 18)
    are the shim's and the guest's to treat; here every signal is alike."""
    parsed = parse(arguments, OPTIONS)
    container = container_id("kill", parsed, extra=1)
    # As runc: one that is empty is none.
    signal = signal_number((*parsed.operands[1:], "")[0] or "TERM")
    directory = store.open_container(invocation.root, container)
    try:
        send(directory, signal, all_processes=parsed.flag("all"))
    except WrongState:
        # As runc: with --all there is nothing left to kill, which is what was wanted.
        if not parsed.flag("all"):
            raise
    return 0


def send(directory: store.Directory, signal: int, *, all_processes: bool = False) -> None:
    """SIGKILL ends the container whatever state its shim is in.

    Raises WrongState where the container has stopped or is not yet created, Reported, HostError."""
    scope = "1" if all_processes else "0"
    first = client.word_seconds(directory) if signal == SIGKILL else 0.0
    try:
        client.ask(directory, "kill", directory.container, str(signal), scope, first=first)
    except Silent:
        if signal != SIGKILL:
            raise
        from sealrun_runtime import leftovers

        leftovers.kill_shim(directory)
    except (ConnectionRefusedError, FileNotFoundError):
        raise WrongState(NOT_RUNNING) from None
    except Reported as error:
        if error.kind == KIND_WRONG_STATE:
            raise WrongState(NOT_RUNNING) from error
        raise


def signal_number(text: str) -> int:
    """`9`, `KILL`, `SIGKILL`, `kill`. Raises UsageError."""
    if text.isascii() and text.isdigit():
        number = int(text)
    else:
        name = text.upper()
        if not name.startswith("SIG"):
            name = f"SIG{name}"
        found = None if name.startswith("SIG_") else getattr(_signal, name, None)
        number = int(found) if isinstance(found, int) else -1
    if not 0 <= number < _signal.NSIG:
        raise UsageError(f"unknown signal {text}")
    return number
