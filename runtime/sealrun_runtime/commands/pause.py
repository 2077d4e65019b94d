"""`sealrun pause ID`: freeze all processes of a container."""

from sealrun_runtime import store
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.errors import NOT_RUNNING
from sealrun_runtime.inquiry import ask

USAGE = "pause ID"


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Raises WrongState where the container is neither created nor running, as runc."""
    container = container_id("pause", parse(arguments, {}))
    ask(store.open_container(invocation.root, container), "pause", otherwise=NOT_RUNNING)
    return 0
