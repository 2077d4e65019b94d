"""The agent's client against a broker that lies, stalls or floods: its own error, in bounded time."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from fixtures import direct
from sealrun_agent.attestation.kbs import KeyBroker
from sealrun_agent.attestation.report_data import report_data
from sealrun_agent.attestation.sample import SampleAttester
from sealrun_agent.errors import AttestError
from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import ABSENT, Broker
from simulators.broker import NONCE, SECRET, Order, Send, Simulator, error, http, raw
from simulators.broker import simulated_broker as simulated

URI = "kbs:///default/key/app"
SECONDS = 20.0  # for an exchange on a busy machine
SHORT_SECONDS = 1.0  # where the broker is to use them up
BUSY_SECONDS = 20.0
COOKIE = "Set-Cookie: kbs-session-id=c0ffee"


@pytest.fixture
def broker() -> Iterator[Simulator]:
    with simulated() as simulator:
        yield simulator


def client_of(broker: Simulator, patience: float, seconds: float = SECONDS) -> KeyBroker:
    host, port = broker.url.removeprefix("http://").split(":")
    return KeyBroker(
        Broker(broker.url, False, host, int(port), "", ""),
        SampleAttester(),
        direct.dial,
        ABSENT,
        seconds=seconds,
        patience=patience,
    )


@pytest.fixture
def kbs(broker: Simulator) -> Iterator[KeyBroker]:
    with closing(client_of(broker, patience=0)) as client:
        yield client


def refused(kbs: KeyBroker) -> AttestError:
    started = time.monotonic()
    with pytest.raises(AttestError) as caught:
        kbs.resource(URI)
    assert time.monotonic() - started < BUSY_SECONDS
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < limits.ERROR_TEXT_BYTES
    return caught.value


def test_an_honest_one_is_understood(broker: Simulator, kbs: KeyBroker) -> None:
    assert kbs.resource(URI) == SECRET
    (_, auth), (_, attest), _ = broker.requests
    assert auth == {
        "version": "0.4.0",
        "tee": "sample",
        "extra-params": {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]},
    }
    assert list(attest) == ["init-data", "runtime-data", "tee-evidence"]
    assert attest["init-data"] is None
    assert attest["runtime-data"]["nonce"] == NONCE
    assert attest["tee-evidence"]["additional_evidence"] == ""
    bound = {"additional-evidence": "", **attest["runtime-data"]}
    text = json.dumps(bound, sort_keys=True, separators=(",", ":"))
    assert attest["tee-evidence"]["primary_evidence"] == {
        "svn": "1",
        "report_data": SampleAttester()
        .evidence(hashlib.sha384(text.encode()).digest())
        .get("report_data"),
    }


def test_the_hash_that_the_broker_selects(broker: Simulator, kbs: KeyBroker) -> None:
    body = {"nonce": NONCE, "extra-params": {"selected-hash-algorithm": "SHA512"}}
    broker.orders["auth"] = raw(http(200, json.dumps(body).encode(), COOKIE))
    assert kbs.resource(URI) == SECRET
    attest = broker.requests[1][1]
    bound = report_data(NONCE, attest["runtime-data"]["tee-pubkey"], "", "sha512")
    assert attest["tee-evidence"]["primary_evidence"] == SampleAttester().evidence(bound)


# --- time and size -------------------------------------------------------------------------------


def endless_body(send: Send, _honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\n\r\n")
    while True:
        send(b" " * 65536)


def endless_chunks(send: Send, _honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        send(b"10000\r\n" + b" " * 65536 + b"\r\n")


def a_body_as_long_as_it_said(send: Send, _honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\nContent-Length: 99999999999999\r\n\r\n")
    while True:
        send(b" " * 65536)


def one_byte_too_many(send: Send, _honest: bytes) -> None:
    send(http(200, b" " * (limits.BROKER_BODY_BYTES + 1), COOKIE))


def endless_headers(send: Send, _honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\n")
    while True:
        send(b"A: b\r\n")


def an_endless_header(send: Send, _honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\nA: ")
    while True:
        send(b"b" * 65536)


def endless_continue(send: Send, _honest: bytes) -> None:
    while True:
        send(b"HTTP/1.1 100 Continue\r\n\r\n")


def dripping_body(send: Send, honest: bytes) -> None:
    send(f"HTTP/1.1 200 X\r\nContent-Length: {len(honest)}\r\n{COOKIE}\r\n\r\n".encode())
    for byte in honest:
        send(bytes([byte]))
        time.sleep(0.2)


def dripping_status(send: Send, _honest: bytes) -> None:
    for byte in b"HTTP/1.1 200 " + b"X" * 60:
        send(bytes([byte]))
        time.sleep(0.2)


def silence(_send: Send, _honest: bytes) -> None:
    time.sleep(3 * SHORT_SECONDS)


def hanging_up(_send: Send, _honest: bytes) -> None:
    return


def cut_off(send: Send, honest: bytes) -> None:
    send(http(200, honest, COOKIE)[:-1])


def cut_off_in_a_chunk(send: Send, honest: bytes) -> None:
    send(b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n10000\r\n" + honest)


FLOODS = [
    (endless_body, ErrorCode.BROKER_PROTOCOL),
    (endless_chunks, ErrorCode.BROKER_PROTOCOL),
    (a_body_as_long_as_it_said, ErrorCode.BROKER_PROTOCOL),
    (one_byte_too_many, ErrorCode.BROKER_PROTOCOL),
    (endless_headers, ErrorCode.BROKER_PROTOCOL),
    (an_endless_header, ErrorCode.BROKER_PROTOCOL),
    (endless_continue, ErrorCode.BROKER_UNREACHABLE),
    (dripping_body, ErrorCode.BROKER_UNREACHABLE),
    (dripping_status, ErrorCode.BROKER_UNREACHABLE),
    (silence, ErrorCode.BROKER_UNREACHABLE),
    (hanging_up, ErrorCode.BROKER_UNREACHABLE),
    (cut_off, ErrorCode.BROKER_PROTOCOL),
    (cut_off_in_a_chunk, ErrorCode.BROKER_PROTOCOL),
]


@pytest.mark.parametrize("step", ["auth", "attest", "resource"])
@pytest.mark.parametrize(("order", "code"), FLOODS, ids=[order.__name__ for order, _ in FLOODS])
def test_floods_and_stalls(broker: Simulator, step: str, order: Order, code: ErrorCode) -> None:
    broker.orders[step] = order
    seconds = SHORT_SECONDS if code is ErrorCode.BROKER_UNREACHABLE else SECONDS
    with closing(client_of(broker, 0, seconds)) as kbs:
        assert refused(kbs).code == code


# --- wrong answers -------------------------------------------------------------------------------

DEEP = b"[" * 100_000
CHALLENGE = json.dumps({"nonce": NONCE, "extra-params": ""}).encode()


def challenge(nonce: object, extra: object = "") -> bytes:
    body = json.dumps({"nonce": nonce, "extra-params": extra}).encode()
    return http(200, body, COOKIE)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01garbage\r\n\r\n",
        b"220 mail.example.com ESMTP\r\n",
        b"HTTP/9.9 200 X\r\n\r\n",
        b"HTTP/1.1 abc X\r\n\r\n",
        http(200, b"<html>", COOKIE),
        http(200, b"", COOKIE),
        http(200, b"\xff\xfe", COOKIE),
        http(200, DEEP, COOKIE),
        http(200, b"null", COOKIE),
        http(200, b"{}", COOKIE),
        http(200, CHALLENGE),
        http(200, CHALLENGE, "Set-Cookie: other=1"),
        http(200, CHALLENGE, "Set-Cookie: kbs-session-id=a b"),
        http(200, CHALLENGE, f"Set-Cookie: kbs-session-id={'a' * 200}"),
        http(204, b""),
        http(302, b"", "Location: http://127.0.0.1:1/"),
        http(404, b"<html>nothing here</html>"),
        http(500, b""),
        error(401, "AttestationError", "KBS version is 0.5.0, not 0.4.0"),
        challenge(7),
        challenge(""),
        challenge("a\nb"),
        challenge("é"),
        challenge("a" * 2000),
        challenge("\ud800"),
        challenge(NONCE, 7),
        challenge(NONCE, {"selected-hash-algorithm": "md5"}),
        challenge(NONCE, {"selected-hash-algorithm": ["sha384"]}),
    ],
)
def test_challenges_that_are_none(broker: Simulator, kbs: KeyBroker, answer: bytes) -> None:
    broker.orders["auth"] = raw(answer)
    assert refused(kbs).code == ErrorCode.BROKER_PROTOCOL
    assert broker.steps() == ["auth"], "no evidence was given to it"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (http(200, b"a.b.c"), ErrorCode.BROKER_PROTOCOL),
        (http(200, b'{"token":null}'), ErrorCode.BROKER_PROTOCOL),
        (http(200, DEEP), ErrorCode.BROKER_PROTOCOL),
        (http(400, b""), ErrorCode.BROKER_PROTOCOL),
        (http(503, b""), ErrorCode.BROKER_UNREACHABLE),
        (http(401, b"<html>"), ErrorCode.EVIDENCE_REFUSED),
        (http(403, DEEP), ErrorCode.EVIDENCE_REFUSED),
        (
            error(401, "AttestationError", "no\r\n\x1b[31m\u202e" + "x" * 5000),
            ErrorCode.EVIDENCE_REFUSED,
        ),
    ],
)
def test_attestations_that_fail(
    broker: Simulator, kbs: KeyBroker, answer: bytes, code: ErrorCode
) -> None:
    broker.orders["attest"] = raw(answer)
    assert refused(kbs).code == code
    assert broker.steps() == ["auth", "attest"]


@pytest.mark.parametrize(
    ("answer", "code", "attestations"),
    [
        (error(401, "TokenNotFound", "who are you"), ErrorCode.KEY_DENIED, 2),
        (http(401, b""), ErrorCode.KEY_DENIED, 2),
        (error(401, "PolicyDeny", "no"), ErrorCode.KEY_DENIED, 1),
        (error(401, "PluginInternalError", "no such file"), ErrorCode.KEY_NOT_FOUND, 1),
        (error(403, "PolicyDeny", "no"), ErrorCode.KEY_DENIED, 1),
        (error(404, "PluginInternalError", "none"), ErrorCode.KEY_NOT_FOUND, 1),
        (http(404, b""), ErrorCode.KEY_NOT_FOUND, 1),
        (http(502, b""), ErrorCode.BROKER_UNREACHABLE, 1),
        (http(500, b""), ErrorCode.BROKER_PROTOCOL, 1),
        (http(302, b"", "Location: http://127.0.0.1:1/"), ErrorCode.BROKER_PROTOCOL, 1),
        (http(200, b"the key"), ErrorCode.BROKER_PROTOCOL, 1),
        (http(200, DEEP), ErrorCode.BROKER_PROTOCOL, 1),
    ],
)
def test_resources_that_are_not_given(
    broker: Simulator, kbs: KeyBroker, answer: bytes, code: ErrorCode, attestations: int
) -> None:
    broker.orders["resource"] = raw(answer)
    assert refused(kbs).code == code
    assert broker.steps().count("attest") == attestations
    assert broker.steps().count("resource") == attestations


@pytest.mark.parametrize("step", ["auth", "attest", "resource"])
def test_an_overloaded_broker_is_asked_again(broker: Simulator, step: str) -> None:
    """From the beginning of the handshake: a nonce serves once."""
    left = [2]

    def overloaded(send: Send, honest: bytes) -> None:
        left[0] -= 1
        send(http(200, honest, COOKIE) if left[0] < 0 else http(503, b""))

    broker.orders[step] = overloaded
    with closing(client_of(broker, patience=30)) as kbs:
        assert kbs.resource(URI) == SECRET
    assert broker.steps().count(step) == 3
    assert broker.steps().count("auth") == (1 if step == "resource" else 3)


def test_patience_has_an_end(broker: Simulator) -> None:
    broker.orders["auth"] = raw(http(503, b""))
    with closing(client_of(broker, patience=3.0)) as kbs:  # pauses of 0.5 and 1 s, but none of 2
        started = time.monotonic()
        with pytest.raises(AttestError) as caught:
            kbs.resource(URI)
        assert caught.value.code is ErrorCode.BROKER_UNREACHABLE
        assert time.monotonic() - started < BUSY_SECONDS
        assert broker.steps() == ["auth"] * 3
        with pytest.raises(AttestError):
            kbs.resource(URI)
        assert broker.steps() == ["auth"] * 6, "it is for each wish"


def test_a_token_that_is_too_long_is_no_token(broker: Simulator, kbs: KeyBroker) -> None:
    broker.orders["attest"] = raw(
        http(200, b'{"token":"' + b"a" * (256 * 1024 + 1) + b'"}', COOKIE)
    )
    assert refused(kbs).code == ErrorCode.BROKER_PROTOCOL


@pytest.mark.parametrize("token", ["a.b.c\r\nX: y", "é.b.c", "", "a" * 40_000 + ".b.c"])
def test_a_token_that_fits_no_header_is_not_sent(
    broker: Simulator, kbs: KeyBroker, token: str
) -> None:
    broker.orders["attest"] = raw(http(200, json.dumps({"token": token}).encode(), COOKIE))
    assert kbs.resource(URI) == SECRET


@pytest.mark.parametrize("member", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_a_changed_jwe_is_not_opened(broker: Simulator, kbs: KeyBroker, member: str) -> None:
    def change(send: Send, honest: bytes) -> None:
        jwe = json.loads(honest)
        middle = len(jwe[member]) // 2
        letter = "A" if jwe[member][middle] != "A" else "B"
        jwe[member] = jwe[member][:middle] + letter + jwe[member][middle + 1 :]
        send(http(200, json.dumps(jwe).encode()))

    broker.orders["resource"] = change
    assert refused(kbs).code == ErrorCode.BROKER_PROTOCOL


def test_a_uri_that_is_none_is_asked_of_nobody(broker: Simulator, kbs: KeyBroker) -> None:
    with pytest.raises(AttestError) as caught:
        kbs.resource("kbs:///a/../c")
    assert caught.value.code == ErrorCode.INIT_DATA_INVALID
    assert broker.steps() == []
