"""A thread whose failure is raised where it is waited for."""

import threading
from collections.abc import Callable


class Task:
    """Runs `work` in a thread of its own, from now on. Join it."""

    def __init__(self, work: Callable[[], None], name: str) -> None:
        self._work = work
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def wait(self) -> None:
        """Until it has ended, however."""
        self._thread.join()

    def join(self) -> None:
        """Wait for its end. Raises what `work` raised."""
        self.wait()
        if self._failure is not None:
            raise self._failure

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:
            self._failure = error
