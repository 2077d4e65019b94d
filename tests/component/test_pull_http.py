"""What the registry client makes of tokens, redirects and statuses."""

import json
import socket
from urllib.parse import parse_qs, urlsplit

import pytest
from fixtures import layers
from fixtures.pulling import Puller
from sealrun_agent.errors import AgentError, DialFailed
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol.errors import ErrorCode
from simulators import registry as simulators
from simulators.registry import Answer, Simulator, blob_path, manifest_path

TAR = layers.tar([layers.file("file", b"content")])
BLOB = layers.compress(TAR, "gzip")


def code_of(puller: Puller, reference: str, *insecure: str) -> ErrorCode:
    return puller.refused(reference, ImagePolicy(insecure)).code


def guard(simulator: Simulator, realm: str, token: str) -> None:
    """Answer 401 to whoever has no token."""
    challenge = f'Bearer realm="{realm}",service="the registry",scope="ignored"'
    simulator.guard(challenge, lambda sent: sent == f"Bearer {token}")


@pytest.mark.parametrize("member", ["token", "access_token"])
def test_a_token_of_another_host(
    puller: Puller, simulator: Simulator, elsewhere: Simulator, member: str
) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, f"http://{elsewhere.address}/token?given=1", "the-token")
    elsewhere.answers["/token"] = Answer(json.dumps({member: "the-token"}).encode())
    puller(reference, ImagePolicy((simulator.address, elsewhere.address)))
    (asked,) = elsewhere.requests
    assert parse_qs(urlsplit(asked.path).query) == {
        "given": ["1"],
        "service": ["the registry"],
        "scope": [f"repository:{simulators.REPOSITORY}:pull"],
    }
    assert "authorization" not in asked.headers
    assert "authorization" not in simulator.requests[0].headers
    assert all("authorization" in request.headers for request in simulator.requests[1:])


def test_a_token_of_the_registry_itself(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, f"http://{simulator.address}/token", "t")
    simulator.answers["/token"] = Answer(b'{"token":"t"}')
    puller(reference, ImagePolicy((simulator.address,)))


def test_a_token_service_in_plain_http_must_be_named(
    puller: Puller, simulator: Simulator, elsewhere: Simulator
) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, f"http://{elsewhere.address}/token", "t")
    assert code_of(puller, reference, simulator.address) is ErrorCode.REGISTRY_UNTRUSTED
    assert elsewhere.requests == []


@pytest.mark.parametrize(
    "answer",
    [
        Answer(b""),
        Answer(b"{}"),
        Answer(b'{"token":""}'),
        Answer(b'{"token":7}'),
        Answer(json.dumps({"token": "a\r\nX-Injected: 1"}).encode()),
        Answer(json.dumps({"token": "x" * 70_000}).encode()),
        Answer(b"\xff"),
    ],
)
def test_what_is_no_token(puller: Puller, simulator: Simulator, answer: Answer) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, f"http://{simulator.address}/token", "t")
    simulator.answers["/token"] = answer
    assert code_of(puller, reference, simulator.address) is ErrorCode.REGISTRY_PROTOCOL


@pytest.mark.parametrize(
    ("realm", "code"),
    [
        ("ftp://r.example/token", ErrorCode.REGISTRY_PROTOCOL),
        ("http://user:pass@r.example/token", ErrorCode.REGISTRY_PROTOCOL),
        ("http://r.example:99999/", ErrorCode.REGISTRY_PROTOCOL),
        ("http://[::1/", ErrorCode.REGISTRY_PROTOCOL),
        ("http://r.example/a b", ErrorCode.REGISTRY_PROTOCOL),
        ("", ErrorCode.REGISTRY_DENIED),
        ("http://r.example/token", ErrorCode.REGISTRY_UNTRUSTED),
    ],
)
def test_realms_that_are_not_followed(
    puller: Puller, simulator: Simulator, realm: str, code: ErrorCode
) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, realm, "t")
    assert code_of(puller, reference, simulator.address) is code


@pytest.mark.parametrize("challenge", ["", "Basic realm=x", "Bearer", "Negotiate x"])
def test_other_challenges_are_a_denial(
    puller: Puller, simulator: Simulator, challenge: str
) -> None:
    reference = simulator.publish([TAR])
    headers = {"WWW-Authenticate": challenge} if challenge else {}
    simulator.answers[manifest_path("1")] = Answer(b"", 401, headers)
    assert code_of(puller, reference, simulator.address) is ErrorCode.REGISTRY_DENIED
    assert len(simulator.requests) == 1


def test_a_token_that_does_not_help(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, f"http://{simulator.address}/token", "right")
    simulator.answers["/token"] = Answer(b'{"token":"wrong"}')
    assert code_of(puller, reference, simulator.address) is ErrorCode.REGISTRY_DENIED
    assert len(simulator.requests) == 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_blob_that_lies_elsewhere_gets_no_token(
    puller: Puller, simulator: Simulator, elsewhere: Simulator, status: int
) -> None:
    reference = simulator.publish([TAR])
    location = f"http://{elsewhere.address}/storage/blob?signature=a%2Fb&x=1"
    simulator.answers[blob_path(BLOB)] = Answer(b"moved", status, {"Location": location})
    guard(simulator, f"http://{simulator.address}/token", "t")
    simulator.answers["/token"] = Answer(b'{"token":"t"}')
    elsewhere.answers["/storage/blob"] = Answer(BLOB)
    puller(reference, ImagePolicy((simulator.address, elsewhere.address)))
    (asked,) = elsewhere.requests
    assert asked.path == "/storage/blob?signature=a%2Fb&x=1"
    assert "authorization" not in asked.headers
    assert asked.headers["host"] == elsewhere.address


def test_a_relative_redirect(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.answers["/elsewhere"] = simulator.answers[blob_path(BLOB)]
    simulator.answers[blob_path(BLOB)] = Answer(b"", 307, {"Location": "/elsewhere"})
    puller(reference, ImagePolicy((simulator.address,)))


@pytest.mark.parametrize(
    ("location", "code"),
    [
        ("/loop", ErrorCode.REGISTRY_PROTOCOL),
        ("", ErrorCode.REGISTRY_PROTOCOL),
        ("file:///etc/passwd", ErrorCode.REGISTRY_PROTOCOL),
        ("gopher://r.example/", ErrorCode.REGISTRY_PROTOCOL),
        ("http://r.example/blob", ErrorCode.REGISTRY_UNTRUSTED),
        ("//r.example/blob", ErrorCode.REGISTRY_UNTRUSTED),
    ],
)
def test_redirects_that_are_not_followed(
    puller: Puller, simulator: Simulator, location: str, code: ErrorCode
) -> None:
    reference = simulator.publish([TAR])
    moved = Answer(b"", 302, {"Location": location})
    simulator.answers[blob_path(BLOB)] = simulator.answers["/loop"] = moved
    assert code_of(puller, reference, simulator.address) is code
    assert len(simulator.requests) < 12


@pytest.mark.parametrize(
    ("status", "code", "asked"),
    [
        (400, ErrorCode.REGISTRY_PROTOCOL, 1),
        (403, ErrorCode.REGISTRY_DENIED, 1),
        (404, ErrorCode.IMAGE_NOT_FOUND, 1),
        (429, ErrorCode.REGISTRY_BUSY, 4),
        (500, ErrorCode.REGISTRY_UNREACHABLE, 4),
        (503, ErrorCode.REGISTRY_UNREACHABLE, 4),
        (204, ErrorCode.REGISTRY_PROTOCOL, 1),
        (304, ErrorCode.REGISTRY_PROTOCOL, 1),
    ],
)
def test_statuses(
    puller: Puller, simulator: Simulator, status: int, code: ErrorCode, asked: int
) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[manifest_path("1")] = Answer(b"", status)
    assert code_of(puller, reference, simulator.address) is code
    assert len(simulator.requests) == asked


def test_what_the_registry_says_is_told_in_one_line(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    said = {"errors": [{"code": "DENIED", "message": "no\n\x1b[31mway" + "!" * 5000}]}
    simulator.answers[manifest_path("1")] = Answer(json.dumps(said).encode(), 403)
    with pytest.raises(AgentError, match=r"answers 403 \(DENIED: no\\n") as caught:
        puller(reference, ImagePolicy((simulator.address,)))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_a_registry_that_recovers(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    manifest = simulator.answers[manifest_path("1")]
    assert isinstance(manifest, Answer)
    answers = iter([Answer(b"", 502), Answer(raw=b""), manifest])
    simulator.answers[manifest_path("1")] = lambda _: next(answers)
    puller(reference, ImagePolicy((simulator.address,)))


def test_a_manifest_that_was_cut_is_asked_for_again(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    manifest = simulator.answers[manifest_path("1")]
    assert isinstance(manifest, Answer)
    answers = iter([Answer(manifest.body, headers=manifest.headers, cut=10), manifest])
    simulator.answers[manifest_path("1")] = lambda _: next(answers)
    puller(reference, ImagePolicy((simulator.address,)))


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200,
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000,
        b"x" * 200_000,
    ],
)
def test_what_is_not_http(puller: Puller, simulator: Simulator, raw: bytes) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[manifest_path("1")] = Answer(raw=raw)
    assert code_of(puller, reference, simulator.address) is ErrorCode.REGISTRY_PROTOCOL


def test_a_chunked_body(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    half = len(BLOB) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(c), c) for c in (BLOB[:half], BLOB[half:], b""))
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    simulator.answers[blob_path(BLOB)] = Answer(raw=head + chunks)
    puller(reference, ImagePolicy((simulator.address,)))


def test_one_connection_serves_a_whole_pull(puller: Puller, simulator: Simulator) -> None:
    dialled = []
    direct = puller.dial

    def counting(host: str, port: int) -> socket.socket:
        dialled.append((host, port))
        return direct(host, port)

    puller.dial = counting
    puller(simulator.publish([TAR]), ImagePolicy((simulator.address,)))
    assert len(simulator.requests) == 3
    assert dialled == [("127.0.0.1", int(simulator.address.rpartition(":")[2]))]


@pytest.mark.parametrize(
    ("refused", "code"),
    [(True, ErrorCode.ENDPOINT_REFUSED), (False, ErrorCode.REGISTRY_UNREACHABLE)],
)
def test_no_connection(puller: Puller, refused: bool, code: ErrorCode) -> None:
    calls = []

    def dial(host: str, port: int) -> socket.socket:
        calls.append((host, port))
        raise DialFailed("no", refused=refused)

    puller.dial = dial
    assert code_of(puller, "r.example/a:1") is code
    assert calls == [("r.example", 443)]


@pytest.mark.parametrize(
    ("reference", "insecure", "expected"),
    [
        ("docker.io/library/alpine", (), ("registry-1.docker.io", 443)),
        ("r.example/a", (), ("r.example", 443)),
        ("r.example:5000/a", (), ("r.example", 5000)),
        ("r.example/a", ("r.example",), ("r.example", 80)),
        ("[fd00::1]:5000/a", (), ("fd00::1", 5000)),
        ("[fd00::1]/a", ("[fd00::1]",), ("fd00::1", 80)),
    ],
)
def test_where_a_registry_is_dialled(
    puller: Puller, reference: str, insecure: tuple[str, ...], expected: tuple[str, int]
) -> None:
    calls = []

    def dial(host: str, port: int) -> socket.socket:
        calls.append((host, port))
        raise DialFailed("no", refused=False)

    puller.dial = dial
    code_of(puller, reference, *insecure)
    assert calls == [expected]
