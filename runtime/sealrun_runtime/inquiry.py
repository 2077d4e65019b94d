"""A request about a container that has to be alive for it."""

from sealrun_runtime import client
from sealrun_runtime.errors import KIND_WRONG_STATE, Reported, WrongState
from sealrun_runtime.store import Directory


def ask(directory: Directory, verb: str, *fields: str, otherwise: str) -> str:
    """The document of the answer.

    otherwise: what to say where the container's state does not allow the request. Raises WrongState,
    Reported, HostError."""
    try:
        return client.ask(directory, verb, directory.container, *fields)
    except (ConnectionRefusedError, FileNotFoundError):
        raise WrongState(otherwise) from None
    except Reported as error:
        if error.kind == KIND_WRONG_STATE:
            raise WrongState(otherwise) from error
        raise
