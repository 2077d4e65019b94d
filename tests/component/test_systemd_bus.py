"""Our side of D-Bus against a real dbus-daemon, and against peers that are none: an error in time, whatever
comes. systemd itself answers in tests/system/test_systemd.py."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.cli import ROOT
from jeepney import DBusAddress
from sealrun_runtime.systemd import bus as buses
from sealrun_runtime.systemd.bus import Bus, BusError, Refusal
from sealrun_runtime.systemd.scopes import Manager

DAEMON = DBusAddress("/org/freedesktop/DBus", "org.freedesktop.DBus", "org.freedesktop.DBus")
SECONDS = 20.0
_ASK = (
    "import sys; sys.path[:0] = sys.argv[2:]\n"
    "from sealrun_runtime.systemd.bus import Bus\n"
    "from jeepney import DBusAddress\n"
    "name = 'org.freedesktop.DBus'\n"
    "with Bus(sys.argv[1]) as bus:\n"
    "    print(bus.call(DBusAddress('/org/freedesktop/DBus', name, name), 'GetId')[0])\n"
)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A bus of its own."""
    path = tmp_path_factory.mktemp("bus") / "with, odd=name"
    escaped = str(path).replace(",", "%2c").replace("=", "%3d").replace(" ", "%20")
    command = [
        "dbus-daemon",
        "--session",
        "--nofork",
        "--nopidfile",
        f"--address=unix:path={escaped}",
    ]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as daemon:
        try:
            wait(path.exists)
            yield f"unix:path={escaped}"
        finally:
            daemon.kill()


def wait(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_call_and_its_answer(address: str) -> None:
    with Bus(address) as bus:
        (first,) = bus.call(DAEMON, "GetId")
        assert bus.call(DAEMON, "GetId") == (first,)
        assert bus.call(DAEMON, "NameHasOwner", "s", ("org.freedesktop.DBus",)) == (True,)


def test_an_error_is_told_with_its_name(address: str) -> None:
    with Bus(address) as bus:
        with pytest.raises(Refusal, match="NoSuchMethod") as told:
            bus.call(DAEMON, "NoSuchMethod")
        assert told.value.name == "org.freedesktop.DBus.Error.UnknownMethod"
        assert bus.call(DAEMON, "GetId")  # it goes on


def test_signals_are_kept_until_they_are_asked_for(address: str) -> None:
    with Bus(address) as bus:
        bus.listen("type='signal',interface='org.freedesktop.DBus',member='NameAcquired'")
        bus.call(DAEMON, "RequestName", "su", ("test.of.sealrun", 0))
        bus.call(DAEMON, "GetId")
        deadline = time.monotonic() + SECONDS
        names = [bus.signal("NameAcquired", deadline)[0]]
        while names[-1] != "test.of.sealrun":
            names.append(bus.signal("NameAcquired", deadline)[0])
        with pytest.raises(BusError, match="does not answer"):
            bus.signal("NameAcquired", time.monotonic() + 0.1)


def test_a_bus_without_systemd(address: str) -> None:
    with Manager(address) as manager, pytest.raises(Refusal, match=r"systemd1"):
        manager.root()


@pytest.mark.root
def test_the_bus_knows_us_from_within_a_user_namespace(address: str) -> None:
    """There we are 0 and another one to the bus: only an id that nobody claims is right."""
    site = next(path for path in sys.path if path.endswith("site-packages"))
    paths = [str(ROOT / "runtime"), site]
    command = ["unshare", "--user", "--map-user=1234", sys.executable, "-c", _ASK, address, *paths]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) == 32


def test_the_first_address_that_answers_is_taken(address: str, tmp_path: Path) -> None:
    with Bus(f"unix:path={tmp_path}/none;{address}") as bus:
        assert bus.call(DAEMON, "GetId")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("unix:path=/none", "cannot connect to /none: No such file"),
        ("tcp:host=127.0.0.1,port=1", "no D-Bus address of a unix socket"),
        ("", "no D-Bus address"),
        ("nonsense", "no D-Bus address"),
        ("unix:path", "no D-Bus address"),
        ("unix:path=/\0", "cannot connect|no D-Bus address"),
        ("unix:path=/" + "x" * 500, "cannot connect"),
    ],
)
def test_an_address_where_nobody_is(address: str, text: str) -> None:
    with pytest.raises(BusError, match=text):
        Bus(address)


# --- peers that are none -------------------------------------------------------------------------

OK = b"OK 00112233445566778899aabbccddeeff\r\n"


@contextmanager
def peer(path: Path, *answers: bytes) -> Iterator[str]:
    """Sends each answer after it has heard something, and hangs up after the last."""

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            for answer in answers:
                if not connection.recv(65536):
                    return
                connection.sendall(answer)
            connection.settimeout(SECONDS)
            try:
                while not silent and connection.recv(65536):
                    return
                while connection.recv(65536):
                    pass
            except OSError:
                pass

    silent = bool(answers) and answers[-1] == b""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"unix:path={path}"
        thread.join(SECONDS)


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        ((b"REJECTED EXTERNAL\r\n",), "does not let user .* in: REJECTED"),
        ((b"DATA\r\n", b"REJECTED\r\n"), "does not let user"),
        ((b"x" * 5000,), "does not speak D-Bus"),
        ((b"\0\xff\r\n",), "does not let user"),
        ((OK, b"garbage that is no message, and long enough for a header"), "not speak D-Bus|was closed|not answer"),
        ((OK, b"l\x02\x01\x01\xff\xff\xff\x7f\x01\0\0\0\xff\xff\xff\x7f"), "not speak D-Bus|was closed"),
        ((OK, b"l\x63\x63\x63" + b"\0" * 60), "not speak D-Bus|was closed"),
        ((OK, b"l\x02\x01\x01\0\0\0\0\x01\0\0\0\x08\0\0\0\x05\x01z\0\0\0\0\0"), "not speak D-Bus|was closed"),
        ((), "was closed|broke"),
    ],
)  # fmt: skip
def test_a_peer_that_is_no_bus(tmp_path: Path, answers: tuple[bytes, ...], text: str) -> None:
    with peer(tmp_path / "peer", *answers) as address, pytest.raises(BusError, match=text):
        Bus(address)


def test_a_silent_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buses, "_CONNECT_SECONDS", 0.3)
    with peer(tmp_path / "peer", b"") as address, pytest.raises(BusError, match="not answer"):
        Bus(address)


def test_nothing_stays_open(address: str) -> None:
    before = os.listdir("/proc/self/fd")
    with Bus(address) as bus:
        bus.call(DAEMON, "GetId")
    with pytest.raises(BusError):
        Bus("unix:path=/none")
    assert len(os.listdir("/proc/self/fd")) <= len(before)
