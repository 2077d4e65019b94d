"""The relay through a real shim: what the guest may reach, and that it reaches nothing else."""

import os
import socket
import socketserver
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures.shim import Shim, memory_kib, running, wait
from sealrun_protocol import limits, messages
from sealrun_protocol.errors import ErrorCode
from simulators.guest import Guest

MIB = 1 << 20


class Echo(socketserver.BaseRequestHandler):
    """Sends back what it gets, then half-closes."""

    def handle(self) -> None:
        while data := self.request.recv(MIB):
            self.request.sendall(data)


class Counting(socketserver.ThreadingTCPServer):
    daemon_threads = True
    connections = 0

    def get_request(self) -> tuple[socket.socket, object]:
        self.connections += 1
        return super().get_request()


@contextmanager
def serving(
    handler: type[socketserver.BaseRequestHandler], host: str = "127.0.0.1"
) -> Iterator[Counting]:
    kind = (
        type("Server6", (Counting,), {"address_family": socket.AF_INET6})
        if ":" in host
        else Counting
    )
    with kind((host, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def echo() -> Iterator[Counting]:
    with serving(Echo) as server:
        yield server


@contextmanager
def pulling(tmp_path: Path, image: str, **options: object) -> Iterator[tuple[Shim, Guest]]:
    """A shim whose guest has been asked to create the container."""
    with running(tmp_path, image=image, **options) as shim, shim.guest() as guest:  # type: ignore[arg-type]
        shim.create()
        guest.boot()
        guest.expect(messages.CreateContainer)
        yield shim, guest


def dial(guest: Guest, host: str, port: int, stream: int = 1) -> messages.Message:
    """Ask for a tunnel; the answer."""
    guest.send(messages.OpenTunnel(stream=stream, host=host, port=port))
    while True:
        answer = guest.receive()
        if isinstance(answer, messages.TunnelOpened | messages.StreamReset):
            return answer
        assert answer is not None


def port_of(server: Counting) -> int:
    return int(server.server_address[1])


def test_bytes_flow_both_ways_and_half_close(tmp_path: Path, echo: Counting) -> None:
    with pulling(tmp_path, f"127.0.0.1:{port_of(echo)}/app:1") as (_, guest):
        answer = dial(guest, "127.0.0.1", port_of(echo))
        assert answer == messages.TunnelOpened(stream=1)
        guest.send(messages.StreamData(stream=1, data=b"GET \0\xff"))
        assert guest.expect(messages.StreamData).data == b"GET \0\xff"
        guest.send(messages.StreamEnd(stream=1))
        assert guest.expect(messages.StreamEnd).stream == 1


def test_much_flows_with_flat_memory(tmp_path: Path) -> None:
    class Source(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            chunk = os.urandom(MIB)
            for _ in range(100):
                self.request.sendall(chunk)

    with (
        serving(Source) as server,
        pulling(tmp_path, f"127.0.0.1:{port_of(server)}/app:1") as (shim, guest),
    ):
        assert isinstance(dial(guest, "127.0.0.1", port_of(server)), messages.TunnelOpened)
        time.sleep(0.3)
        before = memory_kib(shim.process.pid)
        assert len(guest.input(1)) == 100 * MIB
        assert memory_kib(shim.process.pid) - before < 4096


def test_a_guest_that_stops_taking_holds_the_endpoint_up(tmp_path: Path) -> None:
    sent = 0

    class Source(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            nonlocal sent
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 << 10)
            try:
                while True:
                    sent += self.request.send(bytes(64 << 10))
            except OSError:
                return

    with (
        serving(Source) as server,
        pulling(tmp_path, f"127.0.0.1:{port_of(server)}/app:1") as (_, guest),
    ):
        dial(guest, "127.0.0.1", port_of(server))

        def held_up() -> bool:
            first = sent
            time.sleep(0.5)
            return 0 < first == sent

        wait(held_up)
        guest.send(messages.StreamReset(stream=1))


@pytest.mark.parametrize(
    "host",
    ["localhost", "127.1", "127.0.0.2", "0.0.0.0", "::1", "::ffff:127.0.0.1", "[::1]",
     "2130706433", "0x7f000001", "127.0.0.1.", " 127.0.0.1", "", "127.0.0.1\0", "169.254.169.254"],
)  # fmt: skip
def test_other_forms_of_the_same_host_are_refused(
    tmp_path: Path, echo: Counting, host: str
) -> None:
    with pulling(tmp_path, f"127.0.0.1:{port_of(echo)}/app:1") as (_, guest):
        answer = dial(guest, host, port_of(echo))
        assert isinstance(answer, messages.StreamReset)
        assert answer.code is ErrorCode.ENDPOINT_REFUSED
        assert str(port_of(echo)) in answer.text
        assert echo.connections == 0


@pytest.mark.parametrize("port", [0, -1, 22, 80, 443, 65536, 2**40])
def test_other_ports_of_the_host_are_refused(tmp_path: Path, echo: Counting, port: int) -> None:
    with pulling(tmp_path, f"127.0.0.1:{port_of(echo)}/app:1") as (_, guest):
        answer = dial(guest, "127.0.0.1", port)
        assert isinstance(answer, messages.StreamReset)
        assert answer.code is ErrorCode.ENDPOINT_REFUSED
        assert f"127.0.0.1:{port}" in answer.text


def test_another_server_of_the_host_is_refused(tmp_path: Path, echo: Counting) -> None:
    with (
        serving(Echo) as other,
        pulling(tmp_path, f"127.0.0.1:{port_of(echo)}/app:1") as (shim, guest),
    ):
        answer = dial(guest, "127.0.0.1", port_of(other))
        assert isinstance(answer, messages.StreamReset)
        assert other.connections == 0
        assert f"refused the guest a connection to 127.0.0.1:{port_of(other)}" in shim.log()


def test_the_operator_and_the_init_data_name_more(tmp_path: Path, echo: Counting) -> None:
    with serving(Echo) as broker:
        init_data = f"""version = "0.1.0"
algorithm = "sha256"
[data]
"aa.toml" = '''
[token_configs.kbs]
url = "http://127.0.0.1:{port_of(broker)}"
'''
""".encode()
        endpoint = f"localhost:{port_of(echo)}"
        options = {"init_data": init_data, "endpoints": (endpoint,)}
        with pulling(tmp_path, "registry.test/app:1", **options) as (_, guest):
            assert isinstance(dial(guest, "localhost", port_of(echo)), messages.TunnelOpened)
            answer = dial(guest, "127.0.0.1", port_of(broker), 3)
            assert isinstance(answer, messages.TunnelOpened)
            assert isinstance(dial(guest, "localhost", port_of(broker), 5), messages.StreamReset)


def test_names_are_compared_without_case(tmp_path: Path, echo: Counting) -> None:
    with pulling(tmp_path, f"LocalHost:{port_of(echo)}/app:1") as (_, guest):
        assert isinstance(dial(guest, "LOCALHOST", port_of(echo)), messages.TunnelOpened)


def test_ipv6(tmp_path: Path) -> None:
    try:
        with serving(Echo, "::1") as server:
            image = f"[::1]:{port_of(server)}/app:1"
            with pulling(tmp_path, image) as (_, guest):
                assert isinstance(dial(guest, "::1", port_of(server)), messages.TunnelOpened)
    except OSError as error:
        pytest.skip(f"this machine has no ::1: {error}")


def test_nobody_listens(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and kept, so that nobody else takes it
        port = unused.getsockname()[1]
        with pulling(tmp_path, f"127.0.0.1:{port}/app:1") as (_, guest):
            answer = dial(guest, "127.0.0.1", port)
            assert answer == messages.StreamReset(
                stream=1, code=None, text=f"127.0.0.1:{port}: connection refused"
            )


def test_a_name_that_nobody_knows(tmp_path: Path) -> None:
    with pulling(tmp_path, "nowhere.invalid:5000/app:1") as (_, guest):
        answer = dial(guest, "nowhere.invalid", 5000)
        assert isinstance(answer, messages.StreamReset)
        assert answer.code is None
        assert answer.text.startswith("nowhere.invalid:5000: ")


def test_a_connection_that_does_not_stand_in_time(tmp_path: Path) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        port = full.getsockname()[1]
        with socket.socket() as first, socket.socket() as second:
            for one in (first, second):
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            with pulling(tmp_path, f"127.0.0.1:{port}/app:1", relay_timeout=2) as (_, guest):
                answer = dial(guest, "127.0.0.1", port)
                assert isinstance(answer, messages.StreamReset)
                assert "no connection within 2 s" in answer.text


def test_a_reset_while_dialling_is_obeyed(tmp_path: Path, echo: Counting) -> None:
    with pulling(tmp_path, "nowhere.invalid:5000/app:1", endpoints=(f"127.0.0.1:{port_of(echo)}",)) as (_, guest):  # fmt: skip
        guest.send(messages.OpenTunnel(stream=1, host="nowhere.invalid", port=5000))
        guest.send(messages.StreamReset(stream=1))
        assert isinstance(dial(guest, "127.0.0.1", port_of(echo), 3), messages.TunnelOpened)
        # The id is free again.
        assert isinstance(dial(guest, "127.0.0.1", port_of(echo), 1), messages.TunnelOpened)


def test_an_endpoint_that_resets_the_connection(tmp_path: Path) -> None:
    class Rude(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.request.recv(1)
            self.request.close()

    with (
        serving(Rude) as server,
        pulling(tmp_path, f"127.0.0.1:{port_of(server)}/app:1") as (_, guest),
    ):
        dial(guest, "127.0.0.1", port_of(server))
        guest.send(messages.StreamData(stream=1, data=b"x"))
        assert guest.expect(messages.StreamReset).stream == 1
        assert isinstance(dial(guest, "127.0.0.1", port_of(server), 1), messages.TunnelOpened)


def test_tunnels_are_bounded_in_number(tmp_path: Path, echo: Counting) -> None:
    with pulling(tmp_path, f"127.0.0.1:{port_of(echo)}/app:1") as (_, guest):
        opened = 0
        for stream in range(1, 2 * limits.STREAMS + 20, 2):
            answer = dial(guest, "127.0.0.1", port_of(echo), stream)
            if isinstance(answer, messages.StreamReset):
                assert "too many" in answer.text
                break
            opened += 1
        assert limits.STREAMS - 16 < opened < limits.STREAMS


def test_all_tunnels_end_with_the_sandbox(tmp_path: Path) -> None:
    ended = threading.Event()

    class Waiting(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(1)
            ended.set()

    with serving(Waiting) as server:
        with pulling(tmp_path, f"127.0.0.1:{port_of(server)}/app:1") as (shim, guest):
            dial(guest, "127.0.0.1", port_of(server))
            shim.delete(force=True).ok()
            assert ended.wait(20)
            assert shim.gone() == 0
