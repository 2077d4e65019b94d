"""Children: started, adopted, signalled, reaped by one hand only."""

import ctypes
import os
import signal
import time
from collections.abc import Iterator

import pytest
from sealrun_agent.processes import Child, Processes

SET_CHILD_SUBREAPER = 36
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@pytest.fixture
def processes() -> Processes:
    return Processes()


@pytest.fixture
def null() -> Iterator[tuple[int, int, int]]:
    fd = os.open(os.devnull, os.O_RDWR)
    yield fd, fd, fd
    os.close(fd)


def shell(processes: Processes, script: str, stdio: tuple[int, int, int]) -> Child:
    return processes.spawn(["/bin/sh", "-c", script], ENVIRONMENT, stdio)


def reaped(processes: Processes, child: Child, seconds: float = 10.0) -> int:
    """The code, with the test as the one thread that reaps."""
    deadline = time.monotonic() + seconds
    while child.code is None and time.monotonic() < deadline:
        processes.reap()
        time.sleep(0.002)
    code = child.wait(0)
    assert code is not None
    return code


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_exit_codes(processes: Processes, null: tuple[int, int, int], code: int) -> None:
    assert reaped(processes, shell(processes, f"exit {code}", null)) == code


@pytest.mark.parametrize("number", [1, 2, 6, 9, 11, 13, 15, 31, 34, 64])
def test_death_by_signal_is_128_and_its_number(
    processes: Processes, null: tuple[int, int, int], number: int
) -> None:
    child = shell(processes, "exec sleep 100", null)
    time.sleep(0.02)
    assert child.signal(number)
    assert reaped(processes, child) == 128 + number
    assert not child.signal(number)


def test_only_the_three_descriptors_are_inherited(processes: Processes) -> None:
    read, write = os.pipe()
    os.set_inheritable(read, True)  # what a careless caller left open
    child = processes.spawn(["/bin/ls", "/proc/self/fd"], ENVIRONMENT, (write, write, write))
    os.close(write)
    listed = b""
    while data := os.read(read, 4096):
        listed += data
    os.close(read)
    assert reaped(processes, child) == 0
    assert {b"0", b"1", b"2"} <= set(listed.split())


def test_a_program_that_is_not_there(processes: Processes, null: tuple[int, int, int]) -> None:
    with pytest.raises(FileNotFoundError):
        processes.spawn(["/no/such/program"], ENVIRONMENT, null)


def test_callbacks_before_and_after_the_end(
    processes: Processes, null: tuple[int, int, int]
) -> None:
    calls: list[str] = []
    child = shell(processes, "exit 3", null)
    child.on_exit(lambda: calls.append("before"))
    assert reaped(processes, child) == 3
    child.on_exit(lambda: calls.append("after"))
    assert calls == ["before", "after"]


def test_wait_gives_up(processes: Processes, null: tuple[int, int, int]) -> None:
    child = shell(processes, "exec sleep 100", null)
    assert child.wait(0.01) is None
    assert child.code is None
    child.signal(signal.SIGKILL)
    assert reaped(processes, child) == 137


@pytest.fixture
def subreaper() -> Iterator[None]:
    prctl = ctypes.CDLL(None).prctl
    prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    yield
    prctl(SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _orphan(processes: Processes, script: str) -> int:
    """The pid of a process whose parent has ended."""
    read, write = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    parent = shell(processes, f"({script}) >/dev/null 2>&1 & echo $!", (null, write, null))
    os.close(write)
    pid = int(os.read(read, 100))
    os.close(read)
    os.close(null)
    assert reaped(processes, parent) == 0
    return pid


def test_an_orphan_is_adopted_while_it_lives(processes: Processes, subreaper: None) -> None:
    child = processes.adopt(_orphan(processes, "exec sleep 100"))
    assert child.code is None
    child.signal(signal.SIGTERM)
    assert reaped(processes, child) == 143


def test_an_orphan_that_ended_unclaimed_is_adopted_with_its_code(
    processes: Processes, subreaper: None
) -> None:
    # Not before its parent ($$ in a subshell), a shell that would take the status itself.
    pid = _orphan(processes, "while kill -0 $$; do sleep 0.01; done; exit 5")
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        processes.reap()
    child = processes.adopt(pid)
    assert child.code == 5
    with pytest.raises(ProcessLookupError):
        processes.adopt(pid)


def test_nobody_is_adopted_who_never_was(processes: Processes) -> None:
    with pytest.raises(ProcessLookupError):
        processes.adopt(2**22 - 1)
