"""The event loop: descriptors, timers, posted calls, polled sources."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from sealrun_agent import loop as loops
from sealrun_agent.loop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    for end in (loop._wake_read, loop._wake_write, loop._epoll):
        end.close()


def test_timers_fire_in_order_and_cancelled_ones_do_not(loop: Loop) -> None:
    fired: list[str] = []
    begin = time.monotonic()
    loop.later(0.03, loop.stop)
    loop.later(0.02, lambda: fired.append("second"))
    loop.later(0.01, lambda: fired.append("first"))
    loop.later(0.0, lambda: fired.append("never")).cancel()
    loop.run()
    assert fired == ["first", "second"]
    assert time.monotonic() - begin >= 0.03


def test_posted_calls_wake_the_loop_and_keep_their_order(loop: Loop) -> None:
    seen: list[int] = []

    def worker() -> None:
        for number in range(1000):
            loop.post(lambda number=number: seen.append(number))  # type: ignore[misc]
        loop.post(loop.stop)

    loop.later(10.0, loop.stop)
    thread = threading.Thread(target=worker)
    thread.start()
    begin = time.monotonic()
    loop.run()
    thread.join()
    assert seen == list(range(1000))
    assert time.monotonic() - begin < 5.0


def test_a_descriptor_is_watched_until_it_is_not(loop: Loop) -> None:
    ours, theirs = socket.socketpair()
    received: list[bytes] = []

    def readable(_events: int) -> None:
        received.append(ours.recv(10))
        if not received[-1]:
            loop.unwatch(ours.fileno())
            loop.unwatch(ours.fileno())
            loop.stop()

    loop.watch(ours.fileno(), loops.READABLE, readable)
    theirs.send(b"hello")
    theirs.close()
    loop.run()
    assert received == [b"hello", b""]
    ours.close()


def test_an_event_of_a_closed_descriptor_does_not_reach_the_next_owner(loop: Loop) -> None:
    first, first_end = os.pipe()
    second, second_end = os.pipe()
    called: list[str] = []

    def close_both(name: str) -> None:
        called.append(name)
        for fd in (first, second):
            loop.unwatch(fd)
            os.close(fd)
        new = [os.pipe() for _ in range(2)]  # the numbers come again
        for read, _ in new:
            loop.watch(read, loops.READABLE, lambda _events: called.append("stale"))
        loop.later(0.01, loop.stop)

    loop.watch(first, loops.READABLE, lambda _events: close_both("first"))
    loop.watch(second, loops.READABLE, lambda _events: close_both("second"))
    os.write(first_end, b"x")
    os.write(second_end, b"x")
    loop.run()
    assert len(called) == 1


def test_a_polled_source_is_asked_before_each_wait_and_again_while_it_has_more(loop: Loop) -> None:
    left = [3]

    def source() -> bool:
        left[0] -= 1
        if left[0] == 0:
            loop.later(0.0, loop.stop)
        return left[0] > 0

    loop.poll_source(source)
    loop.run()
    assert left[0] <= 0


def test_a_signal_is_a_call_in_the_loop(loop: Loop) -> None:
    before = signal.getsignal(signal.SIGUSR1)
    wakeup = signal.set_wakeup_fd(-1)
    try:
        loop.on_signal(signal.SIGUSR1, loop.stop)
        loop.later(10.0, lambda: pytest.fail("the signal did not wake the loop"))
        timer = threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        timer.start()
        loop.run()
        timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
        signal.set_wakeup_fd(wakeup)
