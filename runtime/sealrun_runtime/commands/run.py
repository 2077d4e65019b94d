"""`sealrun run [options] ID`: create, start, wait, delete; for people, without an engine."""

import sys

from sealrun_runtime import creation
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.commands import create, delete, kill, start
from sealrun_runtime.errors import Reported, SealrunError
from sealrun_runtime.interruption import exit_code, forwarding
from sealrun_runtime.terminal import proxied, pump

USAGE = "run [--detach] [--keep] [create's options] ID"

OPTIONS = {
    **create.OPTIONS,
    "detach": "detach",
    "d": "detach",
    "keep": "keep",
    "no-subreaper": "no-subreaper",  # nothing of a container's is our child that could lose us
}


def run(invocation: Invocation, arguments: list[str]) -> int:
    """The exit status of the container's program; 0 with --detach."""
    parsed = parse(arguments, OPTIONS)
    container = container_id("run", parsed)
    create.refuse_descriptors(parsed)
    create.open_standard_descriptors()
    detached, console_socket = parsed.flag("detach"), parsed.value("console-socket")
    prepared = creation.prepare(invocation, container, parsed.value("bundle", "."))
    terminal = prepared.handover.container.terminal
    create.check_terminal(terminal, console_socket, detached=detached)
    try:
        created = creation.create(invocation, prepared, parsed.value("pid-file"), console_socket)
        kept = False
        try:
            status = _run(invocation, created, detached=detached)
            kept = detached or parsed.flag("keep")
        finally:
            if not kept:
                delete.delete(invocation, created.directory, force=True)
    except Reported as error:
        error.status = error.program_status or error.status
        raise
    return status


def _run(invocation: Invocation, created: creation.Created, *, detached: bool) -> int:
    def forward(number: int) -> None:
        try:
            kill.send(created.directory, number)
        except SealrunError as error:  # it may have ended just now
            sys.stderr.write(f"sealrun: cannot forward signal {number}: {error.text}\n")

    with forwarding(forward):
        start.start(invocation, created.directory)
        if detached:
            return 0
        if created.terminal is not None:
            with proxied(created.terminal.master):
                pump(created.terminal.master)
        return exit_code(created.stand_in)
