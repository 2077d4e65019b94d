"""`sealrun create [options] ID`: boot the sandbox, get the image, stop short of the program."""

import os

from sealrun_runtime.arguments import Invocation, Parsed, container_id, parse
from sealrun_runtime.errors import InvalidRequest, UsageError

USAGE = (
    "create [--bundle DIR] [--pid-file FILE] [--console-socket SOCKET] [--no-pivot]"
    " [--no-new-keyring] [--preserve-fds N] ID"
)

OPTIONS = {
    "bundle": "bundle=",
    "b": "bundle=",
    "pid-file": "pid-file=",
    "console-socket": "console-socket=",
    "no-pivot": "no-pivot",
    "no-new-keyring": "no-new-keyring",
    "preserve-fds": "preserve-fds=",
}


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Exit status 0 when the container is in the state "created"."""
    parsed = parse(arguments, OPTIONS)
    container = container_id("create", parsed)
    refuse_descriptors(parsed)
    open_standard_descriptors()
    from sealrun_runtime import creation

    prepared = creation.prepare(invocation, container, parsed.value("bundle", "."))
    console_socket = parsed.value("console-socket")
    check_terminal(prepared.handover.container.terminal, console_socket, detached=True)
    creation.create(invocation, prepared, parsed.value("pid-file"), console_socket)
    return 0


def check_terminal(terminal: bool, console_socket: str, *, detached: bool) -> None:
    """Who gets the terminal's master has to be clear. Raises InvalidRequest, in runc's words."""
    if terminal and detached and not console_socket:
        raise InvalidRequest(
            "cannot allocate tty if sealrun will detach without setting console socket"
        )
    if console_socket and not (terminal and detached):
        raise InvalidRequest("cannot use console socket if sealrun will not detach or allocate tty")


def refuse_descriptors(parsed: Parsed) -> None:
    """Refuse what would be ignored at the caller's cost. Of create's other options --no-new-keyring
    has no object, and --no-pivot none in the guest."""
    descriptors = parsed.value("preserve-fds", "0")
    if not descriptors.isdigit():
        raise UsageError(f"option --preserve-fds takes a number, not {descriptors}")
    if int(descriptors) > 0:
        raise InvalidRequest("file descriptors cannot be passed into the guest")


def open_standard_descriptors() -> None:
    """Give a caller without stdin, stdout or stderr /dev/null there, before anything else we open
    takes their numbers."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
