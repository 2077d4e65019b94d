"""`sealrun state ID`: print the container's OCI state (runtime-spec, "State")."""

import posix

from sealrun_runtime import client, store
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.errors import NotFound

USAGE = "state ID"


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Copy the document that the shim keeps; patch it where the shim died without a last word."""
    container = container_id("state", parse(arguments, {}))
    directory = store.open_container(invocation.root, container)
    document = current(directory)
    if not document:
        raise NotFound(container)
    if not document.endswith(b"\n"):
        document += b"\n"
    while document:
        document = document[posix.write(1, document) :]
    return 0


def current(directory: store.Directory) -> bytes:
    """The state document as it is true now; empty where there is none."""
    document = directory.read(store.STATE)
    if (
        store.is_live(document)
        and not client.is_alive(directory)
        and not directory.is_being_created()
    ):
        # The shim may have written the final state between our two looks.
        document = directory.read(store.STATE)
        if store.is_live(document):
            document = store.as_stopped(document)
    return document
