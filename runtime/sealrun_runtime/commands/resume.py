"""`sealrun resume ID`: let a paused container go on."""

from sealrun_runtime import store
from sealrun_runtime.arguments import Invocation, container_id, parse
from sealrun_runtime.errors import NOT_PAUSED
from sealrun_runtime.inquiry import ask

USAGE = "resume ID"


def run(invocation: Invocation, arguments: list[str]) -> int:
    """Raises WrongState where the container is not paused, as runc."""
    container = container_id("resume", parse(arguments, {}))
    ask(store.open_container(invocation.root, container), "resume", otherwise=NOT_PAUSED)
    return 0
