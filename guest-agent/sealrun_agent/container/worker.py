"""A thread that does one container's slow work, one piece after the other."""

import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from sealrun_agent.errors import AgentError

Result = TypeVar("Result")


class Attempt(Protocol):
    """The agent's boundary: calls, and turns whatever goes wrong into an AgentError."""

    def __call__(self, work: Callable[[], Result], /) -> Result | AgentError:
        """What `work` returned, or what went wrong."""


class Worker:
    """Results are handed over by `post`, which runs a call in the loop's thread."""

    def __init__(
        self, name: str, post: Callable[[Callable[[], None]], None], attempt: Attempt
    ) -> None:
        self._post, self._attempt = post, attempt
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def submit(
        self, work: Callable[[], Result], then: Callable[[Result | AgentError], None]
    ) -> None:
        """Do `work` in the thread after what was submitted before; then `then` in the loop."""

        def job() -> None:
            result = self._attempt(work)
            self._post(lambda: then(result))

        self._work.put(job)

    def stop(self) -> None:
        """End the thread after what was submitted."""
        self._work.put(None)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            job()
