"""A shim that stands still keeps nobody waiting for longer than it has to."""

import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sealrun_runtime import client, leftovers, store
from sealrun_runtime.commands import kill
from sealrun_runtime.errors import Silent

BACKLOG = 2


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[store.Directory]:
    opened = store.make_container(str(tmp_path), "c1")
    yield opened
    opened.close()


@pytest.fixture
def listener(directory: store.Directory) -> Iterator[socket.socket]:
    """The shim's, which takes nobody in."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(client.address(directory))
        listening.listen(BACKLOG)
        yield listening


@pytest.fixture
def shim(
    directory: store.Directory, listener: socket.socket
) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen(["sleep", "1000"], stdin=listener) as process:
        directory.append("processes", f"shim {process.pid} {leftovers.start_time(process.pid)}")
        yield process
        process.kill()


@pytest.mark.usefixtures("shim")
def test_one_that_hangs(directory: store.Directory) -> None:
    with pytest.raises(Silent) as raised:
        client.ask(directory, "ps", "c1", seconds=0.1)
    assert (raised.value.text, raised.value.remedy) == (
        "the shim does not answer",
        "use delete --force",
    )


def test_one_that_hangs_and_is_to_kill(
    directory: store.Directory,
    shim: "subprocess.Popen[bytes]",
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "WORD_SECONDS", 0.1)
    kill.send(directory, signal.SIGKILL)
    assert shim.wait(timeout=60) == -signal.SIGKILL


def test_one_that_was_stopped(
    directory: store.Directory, shim: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where so many have asked it already that the kernel lets nobody wait any more."""
    monkeypatch.setattr(client, "LOOK_SECONDS", 0.1)
    os.kill(shim.pid, signal.SIGSTOP)
    waiting = []
    try:
        for _ in range(BACKLOG + 1):  # so many the kernel lets wait
            waiting.append(client.Connection(directory))
        for _ in range(2):
            with pytest.raises(Silent) as raised:
                client.ask(directory, "ps", "c1")
            assert raised.value.text == "the shim is stopped"
            assert f"kill -CONT {shim.pid}," in raised.value.remedy
            waiting.pop().close()
    finally:
        for one in waiting:
            one.close()


@pytest.mark.usefixtures("shim")
def test_one_that_was_busy(
    directory: store.Directory, listener: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller whom the kernel did not let wait at first is let in later."""
    monkeypatch.setattr(client, "LOOK_SECONDS", 0.1)
    waiting = [client.Connection(directory) for _ in range(BACKLOG + 1)]

    def take_in() -> None:
        for _ in range(BACKLOG + 2):
            with listener.accept()[0] as connection:
                if connection.recv(client.DATAGRAM_BYTES):
                    connection.send(b"ok\0late")

    shim = threading.Timer(0.3, take_in)
    shim.start()
    for one in waiting[1:]:
        one.close()
    try:
        waiting[0].send("ps", "c1")
        assert client.ask(directory, "ps", "c1") == "late"
        assert waiting[0].receive() is None
        assert waiting[0].document == "late"
    finally:
        waiting[0].close()
        shim.join()
