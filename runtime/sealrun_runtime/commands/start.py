"""`sealrun start ID`: let the created container's program run.

A poststart hook that fails ends the container: runtime-spec 1.3, "Lifecycle", step 9, and runc. Before
1.3 the specification asked for a warning, which crun gives.
"""

from sealrun_runtime import client, store
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.errors import (
    ALREADY_RUNNING,
    ALREADY_STOPPED,
    KIND_WRONG_STATE,
    Reported,
    WrongState,
)

USAGE = "start ID"

ANSWER_SECONDS = 150.0  # the guest's crun starts the program, under emulation on a loaded machine


def run(invocation: Invocation, arguments: list[str]) -> int:
    """One round trip to the shim."""
    container = container_id("start", parse(arguments, {}))
    start(invocation, store.open_container(invocation.root, container))
    return 0


def start(invocation: Invocation, directory: store.Directory) -> None:
    """Raises WrongState where the container is not `created`, Reported, HookFailed."""
    _start(directory)
    content = directory.read(store.POSTSTART)
    if content:
        _run_poststart(invocation, directory, content)


def _start(directory: store.Directory) -> None:
    try:
        client.ask(directory, "start", directory.container, seconds=ANSWER_SECONDS)
    except (ConnectionRefusedError, FileNotFoundError):
        raise WrongState(ALREADY_STOPPED) from None
    except Reported as error:
        if error.kind != KIND_WRONG_STATE:
            raise
        status = store.status_of(directory.read(store.STATE))
        if status == "running":
            raise WrongState(ALREADY_RUNNING) from error
        if status == "stopped":
            raise WrongState(ALREADY_STOPPED) from error
        raise


def _run_poststart(invocation: Invocation, directory: store.Directory, content: bytes) -> None:
    from functools import partial

    from sealrun_runtime import hooks, leftovers
    from sealrun_runtime.commands import delete

    state = directory.read(store.STATE)
    try:
        for hook in hooks.decode(content):
            enlist = partial(leftovers.enlist, directory, leftovers.HOOK_ROLE)
            hooks.run(hook, "poststart", state, enlist=enlist)
    except hooks.HookFailed:
        delete.delete(invocation, directory, force=True)
        raise
