"""`sealrun delete [--force] ID`: remove a stopped container; with --force, any.

Idempotent: an id that is not known is deleted already (status 0, no output), since engines delete
after failed creates and twice after each other (docs/decisions.md). `--force` never needs a shim:
what the state directory records is enough.
"""

from sealrun_runtime import client, leftovers, store
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.errors import (
    KIND_WRONG_STATE,
    HostError,
    NotFound,
    Reported,
    WrongState,
)

USAGE = "delete [--force] ID"

OPTIONS = {"force": "force", "f": "force"}
PATIENCE = 5.0  # seconds for a shim that said ok to be gone


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Ask the shim, where there is one, to end everything; then remove what is left."""
    parsed = parse(arguments, OPTIONS)
    container = container_id("delete", parsed)
    try:
        directory = store.open_container(invocation.root, container)
    except NotFound:
        return 0
    delete(invocation, directory, force=parsed.flag("force"))
    return 0


def delete(
    invocation: Invocation,
    directory: store.Directory,
    *,
    force: bool,
    seconds: float = client.ANSWER_SECONDS,
) -> None:
    """seconds: how long a shim may take to end everything by itself; one that stands still and does not
    even say that it has begun is killed before, where `force` is given. Raises WrongState where the
    container runs and `force` is not given, Reported, HostError."""
    patience, lost = 0.0, False
    try:
        request = ("delete", directory.container, "1" if force else "0")
        first = client.word_seconds(directory) if force else 0.0
        client.ask(directory, *request, seconds=seconds, first=first)
        patience = PATIENCE
    except (ConnectionRefusedError, FileNotFoundError) as error:
        # No shim lives: any more, or yet, where `create` has only begun.
        if not force and directory.is_being_created():
            raise _not_stopped(directory) from error
    except Reported as error:
        if error.kind == KIND_WRONG_STATE and not force:
            raise _not_stopped(directory) from error
        if not force:
            raise
    except HostError:
        if not force:
            raise
        lost = True
    remove(invocation, directory, patience=patience, lost=lost)


def remove(
    invocation: Invocation, directory: store.Directory, *, patience: float, lost: bool = False
) -> None:
    """Leave nothing of the container, then run its poststop hooks (runtime-spec, "Lifecycle", step
    13: a hook that fails is a warning). lost: its pod's shim does not answer. Raises HostError."""
    hooks = directory.read(store.POSTSTOP)
    document = directory.read(store.STATE) if hooks else b""
    pod = directory.read(store.POD).decode()
    if pod:  # first: it is known by what is removed next
        _clean_pod(directory.root, pod, lost=lost)
    if leftovers.remove(directory, patience=patience):
        from sealrun_runtime.hooks import run_poststop

        run_poststop(invocation, hooks, store.as_stopped(document))


def _clean_pod(root: str, name: str, *, lost: bool) -> None:
    """Remove what is left of a pod whose shim has ended; nothing while that one lives, unless it is
    lost: then the pod ends, with all of its containers."""
    try:
        place = store.open_pod(root, name)
    except NotFound:
        return
    if lost or not client.is_alive(place):
        leftovers.remove(place, patience=0.0 if lost else PATIENCE)
    place.close()


def _status(directory: store.Directory) -> str:
    return store.status_of(directory.read(store.STATE))


def _not_stopped(directory: store.Directory) -> WrongState:
    text = f"cannot delete container {directory.container} that is not stopped"
    return WrongState(f"{text}: {_status(directory)}", remedy="use --force")
