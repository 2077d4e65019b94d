"""What containers may ask of the agent: over real HTTP, of a real broker, with a real TPM."""

import base64
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fixtures import direct
from fixtures import tpm as tpms
from fixtures.broker import RunningBroker, running_broker
from sealrun_agent.attestation.choice import Choice
from sealrun_agent.attestation.tpm import TpmAttester
from sealrun_agent.errors import BootError, DialFailed
from sealrun_agent.vault import Vault
from sealrun_agent.workload_api import WorkloadApi
from sealrun_broker import base64url
from sealrun_broker.verifiers import tpm
from sealrun_broker.verifiers.binding import Expected
from sealrun_protocol import init_data, limits

pytestmark = pytest.mark.tpm

SECRET = bytes(range(256))
ALL = ("resource", "attestation")
ANY_TPM = '[[resource]]\npath = "default/*/*"\ninsecure_unrecognised = true\n'


class Answer(NamedTuple):
    status: int
    kind: str
    body: bytes


class Api:
    """A served API, and what stands behind it."""

    def __init__(self, broker: RunningBroker, vault: Vault, features: tuple[str, ...]) -> None:
        self.broker, self.vault = broker, vault
        self.port = WorkloadApi(vault, features, ("127.0.0.1", 0)).port

    def ask(self, method: str, path: str, body: bytes | None = None) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body)
            response = connection.getresponse()
            kind = response.headers["Content-Type"]
            return Answer(response.status, kind, response.read())
        finally:
            connection.close()

    def raw(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            received = b""
            while more := connection.recv(65536):
                received += more
            return received


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker"), policy=ANY_TPM) as running:
        running.add_resource("default/key/app", SECRET)
        yield running


Make = Callable[..., Api]


@pytest.fixture(scope="module")
def make(broker: RunningBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Make]:
    """make(features): an API before a VM that has a TPM."""
    with ExitStack() as stack:
        transact = stack.enter_context(tpms.emulated(tmp_path_factory.mktemp("tpm")))
        lock = threading.Lock()

        def one_at_a_time(command: bytes) -> bytes:
            with lock:
                return transact(command)

        def new(features: tuple[str, ...] = ALL) -> Api:
            choice = Choice("/nonexistent")
            choice._found = TpmAttester(one_at_a_time, "/nonexistent")
            document = init_data.parse(broker.init_data(sample=False))
            vault = Vault(document._replace(text=b""), choice, direct.dial)
            stack.callback(vault.close)
            return Api(broker, vault, features)

        yield new


@pytest.fixture(scope="module")
def api(make: Make) -> Api:
    return make()


def test_a_resource(api: Api) -> None:
    before = api.broker.log().count(" attest ")
    for _ in range(3):
        answer = api.ask("GET", "/cdh/resource/default/key/app")
        assert answer == (200, "application/octet-stream", SECRET)
    assert api.broker.log().count(" attest ") == before + 1


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/cdh/resource/default/key/none", 404, b"key-not-found"),
        ("/cdh/resource/secret/key/app", 403, b"key-denied"),
        ("/cdh/resource/default/key", 400, b"is not repository/type/tag"),
        ("/cdh/resource/default/key/..", 400, b"is not repository/type/tag"),
        ("/cdh/resource/default/key/%2e%2e", 400, b"is not repository/type/tag"),
        ("/cdh/resource/", 400, b"is not repository/type/tag"),
    ],
)
def test_what_the_broker_does_not_give(api: Api, path: str, status: int, said: bytes) -> None:
    answer = api.ask("GET", path)
    assert answer.status == status
    assert said in answer.body


def test_a_token_with_a_key_of_its_own(api: Api) -> None:
    answer = api.ask("GET", "/aa/token?token_type=kbs")
    assert answer.status == 200
    given = json.loads(answer.body)
    key = load_pem_private_key(given["tee_keypair"].encode(), None)
    claims = json.loads(base64url.decode(given["token"].split(".")[1]))
    submod = claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]
    jwk = submod["runtime_data_claims"]["tee-pubkey"]
    numbers = key.public_key().public_numbers()  # type: ignore[union-attr]
    assert base64url.decode(jwk["x"]) == numbers.x.to_bytes(32, "big")  # type: ignore[union-attr]
    again = json.loads(api.ask("GET", "/aa/token?token_type=kbs").body)
    assert again["tee_keypair"] != given["tee_keypair"]


@pytest.mark.parametrize(
    ("query", "data"),
    [
        ("runtime_data=hello%20there", b"hello there"),
        (
            "runtime_data="
            + base64.b64encode(bytes(range(64))).decode().replace("+", "%2B").replace("/", "%2F")
            + "&encoding=base64",
            bytes(range(64)),
        ),
        ("runtime_data=", b""),
    ],
)
def test_evidence_over_data_of_the_workload_s_choice(api: Api, query: str, data: bytes) -> None:
    answer = api.ask("GET", f"/aa/evidence?{query}")
    assert answer.status == 200
    assert tpm.verify(json.loads(answer.body), Expected(data.ljust(32, b"\0"), None, 0.0))


def test_an_entry_in_the_event_log(make: Make) -> None:
    api = make()
    event = {"domain": "example.com/app", "operation": "Load", "content": '{"model":"x"}'}
    answer = api.ask("POST", "/aa/aael", json.dumps(event).encode())
    assert (answer.status, answer.body) == (200, b'{"success":"true"}')
    evidence = json.loads(api.ask("GET", "/aa/evidence?runtime_data=x").body)
    assert b'example.com/app Load {"model":"x"}' in base64.b64decode(evidence["event_log"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"domain":"a","operation":"b"}',
        b'{"domain":"a b","operation":"b","content":"c"}',
        b'{"domain":"","operation":"b","content":"c"}',
        b'{"domain":"a","operation":"b\\n","content":"c"}',
        b'{"domain":"a","operation":"b","content":"c\\nsealrun InitData x"}',
    ],
)
def test_what_is_no_entry(api: Api, body: bytes) -> None:
    assert api.ask("POST", "/aa/aael", body).status == 400


def test_who_it_is(api: Api) -> None:
    answer = api.ask("GET", "/info")
    assert (answer.status, answer.kind) == (200, "application/json")
    assert json.loads(answer.body) == {"version": "0.1.0", "tee": "tpm", "feature": "all"}


@pytest.mark.parametrize(
    ("features", "path", "status"),
    [
        (("resource",), "/cdh/resource/default/key/app", 200),
        (("resource",), "/aa/token?token_type=kbs", 404),
        (("resource",), "/aa/evidence?runtime_data=x", 404),
        (("attestation",), "/cdh/resource/default/key/app", 404),
        (("attestation",), "/aa/evidence?runtime_data=x", 200),
    ],
)
def test_only_what_the_tenant_turned_on(
    make: Make, features: tuple[str, ...], path: str, status: int
) -> None:
    answer = make(features).ask("GET", path)
    assert answer.status == status
    if status == 404:
        assert b"the init-data does not turn" in answer.body


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/cdh/other", 404),
        ("POST", "/cdh/resource/a/b/c", 405),
        ("GET", "/aa/aael", 405),
        ("PUT", "/info", 405),
        ("GET", "/aa/token", 400),
        ("GET", "/aa/token?token_type=coco_as", 400),
        ("GET", "/aa/evidence", 400),
        ("GET", "/aa/evidence?runtime_data=x&encoding=hex", 400),
        ("GET", "/aa/evidence?runtime_data=!&encoding=base64", 400),
        ("GET", "/aa/evidence?runtime_data=" + "x" * 65, 400),
    ],
)
def test_requests_that_are_none(api: Api, method: str, path: str, status: int) -> None:
    assert api.ask(method, path).status == status


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"garbage\r\n\r\n", 400),
        (b"GET /info\r\n\r\n", 400),
        (b"GET /info HTTP/2\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
        (b"GET /info HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /info HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET /info HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", 413),
        (b"GET /" + b"a" * 20_000, 413),
        (b"\xff" * 100 + b"\r\n\r\n", 400),
    ],
)
def test_bytes_that_are_no_request(api: Api, data: bytes, status: int) -> None:
    assert api.raw(data).startswith(f"HTTP/1.1 {status} ".encode())
    assert api.ask("GET", "/info").status == 200


def test_a_client_that_says_nothing_does_not_hold_up_the_others(api: Api) -> None:
    silent = [
        socket.create_connection(("127.0.0.1", api.port)) for _ in range(limits.API_CONNECTIONS - 1)
    ]
    try:
        assert api.ask("GET", "/info").status == 200
    finally:
        for connection in silent:
            connection.close()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if api.ask("GET", "/info").status == 200:
            return
    raise AssertionError("the slots are not given back")


def test_a_broker_that_cannot_be_reached(make: Make) -> None:
    api = make()

    def dial(_host: str, _port: int) -> socket.socket:
        raise DialFailed("not open for the guest", refused=True)

    api.vault._dial = dial
    answer = api.ask("GET", "/cdh/resource/default/key/app")
    assert answer.status == 502
    assert b"endpoint-refused" in answer.body
    api.vault._dial = direct.dial
    assert api.ask("GET", "/cdh/resource/default/key/app").status == 200


def test_an_address_that_somebody_has(api: Api) -> None:
    with pytest.raises(BootError, match="cannot serve the workload at"):
        WorkloadApi(api.vault, ALL, ("127.0.0.1", api.port))
