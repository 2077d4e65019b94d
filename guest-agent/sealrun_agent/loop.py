"""The agent's one event loop: descriptors, timers, signals, and calls posted by worker threads.

Everything that is not guarded by a lock of its own belongs to the thread that runs the loop.
Handlers must not block. `post` is the only method that other threads may call.
"""

import heapq
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Final

READABLE: Final = select.EPOLLIN
WRITABLE: Final = select.EPOLLOUT
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR  # always reported, asked for or not

Handler = Callable[[int], None]
"""Called with the epoll events of the descriptor that it watches."""


class Timer:
    """A call that is due at `due` (monotonic seconds) unless it is cancelled before."""

    def __init__(self, due: float, call: Callable[[], None]) -> None:
        self.due = due
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        """Never call; harmless where it was called already."""
        self.call = None

    def __lt__(self, other: "Timer") -> bool:
        return self.due < other.due


class Loop:
    """Watches descriptors until `stop` is called."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._posted: deque[Callable[[], None]] = deque()
        self._timers: list[Timer] = []
        self._sources: list[Callable[[], bool]] = []
        self._stopped = False
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self.watch(self._wake_read.fileno(), READABLE, self._woken)

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call `handler` while `fd` has one of `events`, or is broken. Once per descriptor."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Watch for other events; 0 leaves only BROKEN."""
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor, before it is closed. Harmless where it is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def poll_source(self, source: Callable[[], bool]) -> None:
        """Ask `source` for work before each wait; it returns whether it has more at once.

        For sources whose descriptor only tells of changes, as ZeroMQ's does."""
        self._sources.append(source)

    def on_signal(self, number: int, call: Callable[[], None]) -> None:
        """Make a signal call `call` in the loop. Main thread only."""
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        signal.signal(number, lambda _number, _frame: self._posted.append(call))

    def post(self, call: Callable[[], None]) -> None:
        """Run `call` in the loop's thread, after what was posted before. Any thread."""
        self._posted.append(call)
        with suppress(BlockingIOError):  # full of wake-ups: it will wake
            self._wake_write.send(b"\0")

    def later(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Run `call` once, not before `seconds` from now."""
        timer = Timer(time.monotonic() + seconds, call)
        heapq.heappush(self._timers, timer)
        return timer

    def stop(self) -> None:
        """Let `run` return after the handler that runs now."""
        self._stopped = True

    def run(self) -> None:
        """Serve until `stop`."""
        while not self._stopped:
            more = False
            for source in self._sources:
                more = source() or more
            if not self._stopped:
                self._serve(0.0 if more or self._posted else self._patience())

    def _serve(self, timeout: float) -> None:
        """One round. A handler may close a descriptor whose number another one then gets: an event
        counts only for the handler that was there when it was collected."""
        events = [(fd, mask, self._handlers.get(fd)) for fd, mask in self._epoll.poll(timeout)]
        for fd, mask, handler in events:
            if handler is not None and self._handlers.get(fd) is handler:
                handler(mask)
        for _ in range(len(self._posted)):
            self._posted.popleft()()
        now = time.monotonic()
        while self._timers and self._timers[0].due <= now:
            call = heapq.heappop(self._timers).call
            if call is not None:
                call()

    def _patience(self) -> float:
        while self._timers and self._timers[0].call is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return -1.0
        return max(0.0, self._timers[0].due - time.monotonic())

    def _woken(self, _events: int) -> None:
        with suppress(BlockingIOError):
            while len(self._wake_read.recv(4096)) == 4096:
                pass
