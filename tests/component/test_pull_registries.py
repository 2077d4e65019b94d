"""Mirrors, credentials, tokens that expire, rate limits, proxies, and blobs that are continued."""

import base64
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fixtures import layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from sealrun_agent.errors import AgentError
from sealrun_agent.image import authorization, retry
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.image_wishes import Proxy
from sealrun_protocol.registries import parse
from simulators import registry as simulators
from simulators.registry import Answer, Request, Simulator, blob_path, manifest_path

TAR = layers.tar([layers.file("file", random.Random(3).randbytes(300_000))])
BLOB = layers.compress(TAR, "gzip")
NAME = simulators.REPOSITORY
URI = "kbs:///default/credential/test"


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulator]:
    monkeypatch.setattr(retry, "SECONDS", 0.005)
    with simulators.serve() as simulator:
        yield simulator


@pytest.fixture
def mirror() -> Iterator[Simulator]:
    with simulators.serve() as simulator:
        yield simulator


@pytest.fixture
def puller(tmp_path: Path) -> Puller:
    return Puller(tmp_path / "store")


def failed(puller: Puller, reference: str, policy: ImagePolicy) -> AgentError:
    with pytest.raises(AgentError) as caught:
        puller(reference, policy)
    assert puller.left() == []
    assert str(caught.value).isprintable()
    return caught.value


def guard(simulator: Simulator, challenge: str, good: Callable[[str], bool]) -> None:
    """Answer 401 to whoever has not what is good."""

    def guarded(inner: simulators.Responder) -> simulators.Responder:
        def answer(request: Request) -> Answer:
            if good(request.headers.get("authorization", "")):
                return inner if isinstance(inner, Answer) else inner(request)
            return Answer(b"{}", 401, {"WWW-Authenticate": challenge})

        return answer

    simulator.answers = {path: guarded(inner) for path, inner in simulator.answers.items()}


def credentials(puller: Puller, address: str, **entry: str) -> None:
    puller.resources = {URI: json.dumps({"auths": {address: entry}}).encode()}


def basic(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


# --- credentials -----------------------------------------------------------------------------------


def test_basic(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, 'Basic realm="r"', lambda sent: sent == f"Basic {basic('me:secret')}")
    credentials(puller, simulator.address, auth=basic("me:secret"))
    puller(reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert puller.resources_asked == [URI]
    assert sum("authorization" not in request.headers for request in simulator.requests) == 1


def test_wrong_credentials(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, 'Basic realm="r"', lambda _: False)
    credentials(puller, simulator.address, auth=basic("me:secret"))
    error = failed(puller, reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert error.code is ErrorCode.REGISTRY_DENIED
    assert "secret" not in str(error)
    assert len(simulator.requests) == 2


def test_credentials_of_another_registry_are_not_sent(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, 'Basic realm="r"', lambda _: False)
    credentials(puller, "other.example", auth=basic("me:secret"))
    error = failed(puller, reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert error.code is ErrorCode.REGISTRY_DENIED
    assert not any("authorization" in request.headers for request in simulator.requests)


def test_a_public_registry_costs_no_attestation(puller: Puller, simulator: Simulator) -> None:
    puller(simulator.publish([TAR]), ImagePolicy((simulator.address,), credentials_uri=URI))
    assert puller.resources_asked == []


def test_a_token_for_user_and_password(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    challenge = f'Basic realm="b", Bearer realm="http://{simulator.address}/token",service="s"'
    guard(simulator, challenge, lambda sent: sent == "Bearer t")
    simulator.answers["/token"] = lambda request: Answer(
        b'{"token":"t"}'
        if request.headers.get("authorization") == f"Basic {basic('me:secret')}"
        else b"{}"
    )
    credentials(puller, simulator.address, auth=basic("me:secret"))
    puller(reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    (asked,) = [r for r in simulator.requests if r.path.startswith("/token")]
    assert parse_qs(urlsplit(asked.path).query) == {
        "account": ["me"], "service": ["s"], "scope": [f"repository:{NAME}:pull"],
    }  # fmt: skip


def test_an_identity_token(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, f'Bearer realm="http://{simulator.address}/token"', lambda s: s == "Bearer t")

    def token(request: Request) -> Answer:
        form = parse_qs(request.body.decode())
        right = form["grant_type"] == ["refresh_token"] and form["refresh_token"] == ["identity"]
        return Answer(b'{"access_token":"t"}' if right and form["client_id"] else b"{}")

    simulator.answers["/token"] = token
    credentials(puller, simulator.address, identitytoken="identity")
    puller(reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert "identity" not in "".join(simulator.paths())


def test_a_token_service_that_refuses(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    guard(simulator, f'Bearer realm="http://{simulator.address}/token"', lambda _: False)
    simulator.answers["/token"] = Answer(b"", 401)
    credentials(puller, simulator.address, auth=basic("me:secret"))
    error = failed(puller, reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert error.code is ErrorCode.REGISTRY_DENIED
    assert "refuses the credentials" in str(error)


def test_a_token_that_expires_in_the_middle(puller: Puller, simulator: Simulator) -> None:
    """The registry forgets the first token after the manifest."""
    reference = simulator.publish([TAR])
    given: list[str] = []

    def good(sent: str) -> bool:
        return bool(given) and sent == f"Bearer {given[-1]}"

    guard(simulator, f'Bearer realm="http://{simulator.address}/token"', good)

    def token(_: Request) -> Answer:
        given.append(f"t{len(given)}")
        return Answer(json.dumps({"token": given[-1]}).encode())

    simulator.answers["/token"] = token
    inner = simulator.answers[blob_path(BLOB)]
    forgotten: list[str] = []

    def forgetful(request: Request) -> Answer:
        if not forgotten:
            forgotten.append("t")
            given.append("nobody's")
        assert callable(inner)
        return inner(request)

    simulator.answers[blob_path(BLOB)] = forgetful
    puller(reference, ImagePolicy((simulator.address,)))
    assert simulator.paths().count("/token") >= 2


def test_a_token_is_renewed_before_it_expires(
    puller: Puller, simulator: Simulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(authorization, "_MARGIN_SECONDS", 3600.0)
    reference = simulator.publish([TAR])
    guard(simulator, f'Bearer realm="http://{simulator.address}/token"', bool)
    simulator.answers["/token"] = Answer(b'{"token":"t","expires_in":300}')
    puller(reference, ImagePolicy((simulator.address,)))
    refused = [r for r in simulator.requests if "authorization" not in r.headers]
    assert len([r for r in refused if not r.path.startswith("/token")]) == 1
    assert simulator.paths().count("/token") >= 3  # one request each


@pytest.mark.parametrize("how", ["port", "name"])
def test_a_redirect_to_another_place_of_the_same_host_loses_the_credentials(
    puller: Puller, simulator: Simulator, mirror: Simulator, how: str
) -> None:
    reference = simulator.publish([TAR])
    port = mirror.address.rpartition(":")[2]
    there = mirror.address if how == "port" else f"localhost:{port}"
    moved = Answer(b"", 307, {"Location": f"http://{there}/blob"})
    simulator.answers[blob_path(BLOB)] = moved
    mirror.answers["/blob"] = Answer(b"", 307, {"Location": f"http://{simulator.address}/home"})
    guard(simulator, 'Basic realm="r"', lambda sent: sent == f"Basic {basic('a:b')}")
    simulator.answers["/home"] = Answer(BLOB)
    credentials(puller, simulator.address, auth=basic("a:b"))
    puller(reference, ImagePolicy((simulator.address, there), credentials_uri=URI))
    (elsewhere,) = mirror.requests
    assert "authorization" not in elsewhere.headers
    assert "authorization" not in simulator.requests[-1].headers  # nor when it comes back


@pytest.mark.registry
def test_a_real_registry_with_tls_that_wants_credentials(puller: Puller, tmp_path: Path) -> None:
    layout = tmp_path / "layout"
    layers.write_layout(layout, [TAR])
    with registries.serve(
        tmp_path / "registry",
        certificate=registries.certificate(tmp_path / "tls"),
        guarded=True,
    ) as registry:
        login = ("--dest-creds", registries.CREDENTIALS)
        digest = registries.push(layout, registry, "team/app:1", options=login)
        assert registry.certificate is not None
        trusting = ImagePolicy(ca_certificates=registry.certificate.authority)
        reference = f"{registry.address}/team/app:1"
        assert failed(puller, reference, trusting).code is ErrorCode.REGISTRY_DENIED
        credentials(puller, f"{registry.address}/team", auth=basic(registries.CREDENTIALS))
        assert puller(reference, trusting._replace(credentials_uri=URI)).digest == digest


# --- retries ---------------------------------------------------------------------------------------


def test_a_registry_that_asks_to_wait(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    manifest = simulator.answers[manifest_path("1")]
    assert isinstance(manifest, Answer)
    answers = iter([Answer(b"", 429, {"Retry-After": "1"}), manifest])
    simulator.answers[manifest_path("1")] = lambda _: next(answers)
    start = time.monotonic()
    puller(reference, ImagePolicy((simulator.address,)))
    assert time.monotonic() - start >= 1


def test_a_registry_that_asks_to_wait_for_too_long(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[manifest_path("1")] = Answer(b"", 429, {"Retry-After": "3600"})
    error = failed(puller, reference, ImagePolicy((simulator.address,)))
    assert error.code is ErrorCode.REGISTRY_BUSY
    assert f"{simulator.address} answers 429, and asks to wait 3600 s" in str(error)
    assert len(simulator.requests) == 1


class Ranges:
    """A blob that is cut after each `part` bytes. kind: how the rest is answered."""

    def __init__(self, kind: str, part: int = 100_000) -> None:
        self.kind, self.part = kind, part
        self.asked: list[Request] = []

    def __call__(self, request: Request) -> Answer:
        self.asked.append(request)
        wanted = request.headers.get("range", "bytes=0-")
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
        headers = {"ETag": '"the-tag"'}
        if self.kind == "ignores" or not start:
            return Answer(BLOB, 200, headers, cut=start + self.part if self.cuts(start) else None)
        end, total = len(BLOB), len(BLOB)
        if self.kind in ("short", "byte"):
            end = min(end, start + (self.part if self.kind == "short" else 1))
        headers["Content-Range"] = {
            "total": f"bytes {start}-{end - 1}/{total + 1}",
            "start": f"bytes {start - 1}-{end - 1}/{total}",
            "beyond": f"bytes {start}-{end}/{total}",
            "none": "",
            "star": f"bytes {start}-{end - 1}/*",
        }.get(self.kind, f"bytes {start}-{end - 1}/{total}")
        body = BLOB[start:end]
        cut = self.part if self.kind == "cuts" and self.cuts(start) else None
        return Answer(body, 206, headers, cut=cut)

    def cuts(self, start: int) -> bool:
        return start + self.part < len(BLOB)


@pytest.mark.parametrize("kind", ["cuts", "ignores", "short", "star", "whole"])
def test_a_blob_that_is_cut_is_continued(puller: Puller, simulator: Simulator, kind: str) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = ranges = Ranges(kind)
    image = puller(reference, ImagePolicy((simulator.address,)))
    assert (Path(image.layers[0]) / "file").stat().st_size == 300_000
    assert len(ranges.asked) > 1
    assert all(request.headers["if-range"] == '"the-tag"' for request in ranges.asked[1:])
    assert "if-range" not in ranges.asked[0].headers


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("total", ErrorCode.DIGEST_MISMATCH),
        ("beyond", ErrorCode.DIGEST_MISMATCH),
        ("start", ErrorCode.REGISTRY_PROTOCOL),
        ("none", ErrorCode.REGISTRY_PROTOCOL),
        ("byte", ErrorCode.REGISTRY_PROTOCOL),
    ],
)
def test_ranges_that_lie(puller: Puller, simulator: Simulator, kind: str, code: ErrorCode) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = ranges = Ranges(kind)
    assert failed(puller, reference, ImagePolicy((simulator.address,))).code is code
    assert len(ranges.asked) < 10


def test_a_registry_that_drips_connections_is_given_up(
    puller: Puller, simulator: Simulator
) -> None:
    reference = simulator.publish([TAR])
    simulator.answers[blob_path(BLOB)] = ranges = Ranges("cuts", part=10)
    error = failed(puller, reference, ImagePolicy((simulator.address,)))
    assert error.code is ErrorCode.REGISTRY_UNREACHABLE
    assert simulator.address in str(error)
    assert len(ranges.asked) < 10


# --- mirrors ---------------------------------------------------------------------------------------


def mirrored(simulator: Simulator, mirror: Simulator, **more: Any) -> ImagePolicy:
    entry: dict[str, Any] = {
        "prefix": "r.example/demo",
        "location": f"{simulator.address}/demo",
        "insecure": True,
        "mirror": [{"location": f"{mirror.address}/demo", "insecure": True}],
    }
    return ImagePolicy(registries=parse({"registry": [entry | more]}))


def test_a_mirror_that_lies_is_passed_over(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    for one in (simulator, mirror):
        one.publish([TAR])
    mirror.answers[blob_path(BLOB)] = Answer(bytes(len(BLOB)))
    image = puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert (Path(image.layers[0]) / "file").stat().st_size == 300_000
    assert blob_path(BLOB) in simulator.paths()


def test_a_mirror_serves(puller: Puller, simulator: Simulator, mirror: Simulator) -> None:
    mirror.publish([TAR])
    image = puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert image.reference == "r.example/demo/image:1"
    assert simulator.requests == []


@pytest.mark.parametrize("status", [401, 404, 500])
def test_a_mirror_that_has_nothing(
    puller: Puller, simulator: Simulator, mirror: Simulator, status: int
) -> None:
    simulator.publish([TAR])
    mirror.answers[manifest_path("1")] = Answer(b"", status)
    puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert mirror.requests


def test_the_registry_continues_what_a_mirror_breaks_off(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    simulator.publish([TAR])
    mirror.publish([TAR])
    mirror.answers[blob_path(BLOB)] = lambda r: (
        Answer(b"", 404) if "range" in r.headers else Answer(BLOB, cut=100_000)
    )
    simulator.answers[blob_path(BLOB)] = ranges = Ranges("whole")
    puller("r.example/demo/image:1", mirrored(simulator, mirror))
    assert [request.headers["range"] for request in ranges.asked] == ["bytes=100000-"]


def test_a_mirror_that_lies_about_a_digest_counts_as_missing(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    simulator.publish([TAR])
    manifest = simulator.answers[manifest_path("1")]
    assert isinstance(manifest, Answer)
    digest = layers.digest(manifest.body)
    mirror.answers[manifest_path(digest)] = Answer(b'{"schemaVersion":2}')
    assert puller(f"r.example/demo/image@{digest}", mirrored(simulator, mirror)).digest == digest


def test_all_that_was_tried_is_told(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    error = failed(puller, "r.example/demo/image:1", mirrored(simulator, mirror))
    assert error.code is ErrorCode.IMAGE_NOT_FOUND
    assert mirror.address in str(error)
    assert simulator.address in str(error)


def test_a_blocked_registry_is_not_asked(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    policy = mirrored(simulator, mirror, blocked=True)
    assert failed(puller, "r.example/demo/image:1", policy).code is ErrorCode.REGISTRY_BLOCKED
    assert simulator.requests == mirror.requests == []


def test_short_names(puller: Puller, simulator: Simulator) -> None:
    two = parse({"unqualified-search-registries": ["a.example", "b.example"]})
    error = failed(puller, "app:1", ImagePolicy(registries=two))
    assert error.code is ErrorCode.REFERENCE_INVALID
    simulator.publish([TAR])
    name = f"{simulator.address}/{NAME}"
    alias = ImagePolicy((simulator.address,), registries=parse({"aliases": {"app": name}}))
    assert puller("app:1", alias).reference == f"{name}:1"


# --- proxies ---------------------------------------------------------------------------------------


def test_a_proxy_gets_the_whole_address(
    puller: Puller, simulator: Simulator, mirror: Simulator
) -> None:
    """`mirror` plays the proxy: it is asked for addresses elsewhere."""
    reference = simulator.publish([TAR]).replace(simulator.address, "r.example:5000")
    for path, answer in simulator.answers.items():
        mirror.answers[f"http://r.example:5000{path}"] = answer
    proxy = Proxy(http_proxy=f"http://{mirror.address}", no_proxy="other.example")
    puller(reference, ImagePolicy(("r.example:5000",), proxy=proxy))
    assert {request.headers["host"] for request in mirror.requests} == {"r.example:5000"}
    bypass = Proxy(http_proxy=f"http://{mirror.address}", no_proxy=".example, 127.0.0.1")
    mirror.requests.clear()
    puller(simulator.publish([TAR]), ImagePolicy((simulator.address,), proxy=bypass))
    assert mirror.requests == []


@pytest.mark.parametrize("status", [200, 407])
def test_tls_goes_through_a_tunnel(puller: Puller, status: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    said: list[bytes] = []

    def proxy() -> None:
        with listener, listener.accept()[0] as peer:
            said.append(peer.recv(4096))
            peer.sendall(b"HTTP/1.1 %d x\r\n\r\n" % status)
            said.append(peer.recv(4096))

    thread = threading.Thread(target=proxy)
    thread.start()
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    policy = ImagePolicy(proxy=Proxy(https_proxy=address))
    error = failed(puller, "[2001:db8::1]:8443/a:1", policy)
    thread.join()
    assert said[0].startswith(
        b"CONNECT [2001:db8::1]:8443 HTTP/1.1\r\nHost: [2001:db8::1]:8443\r\n"
    )
    if status == 200:
        assert said[1].startswith(b"\x16\x03")  # a TLS handshake
    else:
        assert error.code is ErrorCode.REGISTRY_UNREACHABLE
        assert "it answers 407" in str(error)
