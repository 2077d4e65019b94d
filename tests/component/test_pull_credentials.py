"""Credentials, and the tokens that they are given for: who gets them, and how often they are asked for."""

import base64
import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs, urlsplit

import pytest
from fixtures import layers
from fixtures import registry as registries
from fixtures.pulling import Puller
from sealrun_agent.image import authorization, filling
from sealrun_agent.image.pull import ImagePolicy
from sealrun_protocol.errors import ErrorCode
from simulators import registry as simulators
from simulators.registry import Answer, Request, Simulator, blob_path

TAR = layers.tar([layers.file("file", random.Random(3).randbytes(300_000))])
BLOB = layers.compress(TAR, "gzip")
NAME = simulators.REPOSITORY
URI = "kbs:///default/credential/test"


def credentials(puller: Puller, address: str, **entry: str) -> None:
    puller.resources = {URI: json.dumps({"auths": {address: entry}}).encode()}


def basic(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


def test_basic(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.guard('Basic realm="r"', lambda sent: sent == f"Basic {basic('me:secret')}")
    credentials(puller, simulator.address, auth=basic("me:secret"))
    puller(reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert puller.resources_asked == [URI]
    assert sum("authorization" not in request.headers for request in simulator.requests) == 1


def test_wrong_credentials(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.guard('Basic realm="r"', lambda _: False)
    credentials(puller, simulator.address, auth=basic("me:secret"))
    error = puller.refused(reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert error.code is ErrorCode.REGISTRY_DENIED
    assert "secret" not in str(error)
    assert len(simulator.requests) == 2


def test_credentials_of_another_registry_are_not_sent(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    simulator.guard('Basic realm="r"', lambda _: False)
    credentials(puller, "other.example", auth=basic("me:secret"))
    error = puller.refused(reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert error.code is ErrorCode.REGISTRY_DENIED
    assert not any("authorization" in request.headers for request in simulator.requests)


def test_a_public_registry_costs_no_attestation(puller: Puller, simulator: Simulator) -> None:
    puller(simulator.publish([TAR]), ImagePolicy((simulator.address,), credentials_uri=URI))
    assert puller.resources_asked == []


def test_a_token_for_user_and_password(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    challenge = f'Basic realm="b", Bearer realm="http://{simulator.address}/token",service="s"'
    simulator.guard(challenge, lambda sent: sent == "Bearer t")
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
    simulator.guard(f'Bearer realm="http://{simulator.address}/token"', lambda s: s == "Bearer t")

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
    simulator.guard(f'Bearer realm="http://{simulator.address}/token"', lambda _: False)
    simulator.answers["/token"] = Answer(b"", 401)
    credentials(puller, simulator.address, auth=basic("me:secret"))
    error = puller.refused(reference, ImagePolicy((simulator.address,), credentials_uri=URI))
    assert error.code is ErrorCode.REGISTRY_DENIED
    assert "refuses the credentials" in str(error)


def test_a_token_that_expires_in_the_middle(puller: Puller, simulator: Simulator) -> None:
    """The registry forgets the first token after the manifest."""
    reference = simulator.publish([TAR])
    given: list[str] = []

    def good(sent: str) -> bool:
        return bool(given) and sent == f"Bearer {given[-1]}"

    simulator.guard(f'Bearer realm="http://{simulator.address}/token"', good)

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
    simulator.guard(f'Bearer realm="http://{simulator.address}/token"', bool)
    simulator.answers["/token"] = Answer(b'{"token":"t","expires_in":300}')
    puller(reference, ImagePolicy((simulator.address,)))
    refused = [r for r in simulator.requests if "authorization" not in r.headers]
    assert len([r for r in refused if not r.path.startswith("/token")]) == 1
    assert simulator.paths().count("/token") >= 3  # one request each


@pytest.mark.parametrize("how", ["port", "name"])
def test_a_redirect_to_another_place_of_the_same_host_loses_the_credentials(
    puller: Puller, simulator: Simulator, elsewhere: Simulator, how: str
) -> None:
    reference = simulator.publish([TAR])
    port = elsewhere.address.rpartition(":")[2]
    there = elsewhere.address if how == "port" else f"localhost:{port}"
    moved = Answer(b"", 307, {"Location": f"http://{there}/blob"})
    simulator.answers[blob_path(BLOB)] = moved
    elsewhere.answers["/blob"] = Answer(b"", 307, {"Location": f"http://{simulator.address}/home"})
    simulator.guard('Basic realm="r"', lambda sent: sent == f"Basic {basic('a:b')}")
    simulator.answers["/home"] = Answer(BLOB)
    credentials(puller, simulator.address, auth=basic("a:b"))
    puller(reference, ImagePolicy((simulator.address, there), credentials_uri=URI))
    (elsewhere,) = elsewhere.requests
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
        assert puller.refused(reference, trusting).code is ErrorCode.REGISTRY_DENIED
        credentials(puller, f"{registry.address}/team", auth=basic(registries.CREDENTIALS))
        assert puller(reference, trusting._replace(credentials_uri=URI)).digest == digest


# --- tokens that connections share -----------------------------------------------------------------

BLOBS = [layers.tar([layers.file(str(n), random.Random(n).randbytes(400_000))]) for n in range(3)]


class Service:
    """A token service. given: how many tokens. slow: seconds for one."""

    def __init__(self, simulator: Simulator, *, slow: float = 0.0) -> None:
        self.given = 0
        self._slow, self._good = slow, ""
        self._lock = threading.Lock()
        challenge = f'Bearer realm="http://{simulator.address}/token"'
        simulator.guard(challenge, lambda sent: sent == f"Bearer {self._good}")
        simulator.answers["/token"] = self._answer

    def forget(self) -> None:
        """No token that was given is good any more."""
        self._good = "another"

    def _answer(self, _: Request) -> Answer:
        time.sleep(self._slow)
        with self._lock:
            self.given += 1
            self._good = f"t{self.given}"
            return Answer(json.dumps({"token": self._good, "expires_in": 300}).encode())


def once_at(simulator: Simulator, path: str, happens: Callable[[], None]) -> None:
    """Let something happen when this is asked for, behind the answer."""
    inner = simulator.answers[path]
    assert callable(inner)

    def answer(request: Request) -> Answer:
        given = inner(request)
        happens()
        return given

    simulator.answers[path] = answer


@pytest.fixture
def parallel(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> str:
    """An image whose three layers come over connections of their own."""
    monkeypatch.setattr(filling, "_SMALL_BYTES", 1)
    return simulator.publish(BLOBS)


def test_parallel_connections_share_a_token(
    puller: Puller, simulator: Simulator, parallel: str
) -> None:
    service = Service(simulator, slow=0.2)
    puller(parallel, ImagePolicy((simulator.address,)))
    assert service.given == 1
    unauthorized = [r for r in simulator.requests if "authorization" not in r.headers]
    assert len(unauthorized) == 2  # the first request, and the one for the token


def test_a_refused_token_is_replaced_once_for_all(
    puller: Puller, simulator: Simulator, parallel: str
) -> None:
    """All connections are refused at once."""
    service = Service(simulator, slow=0.3)
    once_at(simulator, blob_path(layers.config(BLOBS)), service.forget)
    puller(parallel, ImagePolicy((simulator.address,)))
    assert service.given == 2


def test_a_token_that_runs_out_is_replaced_once_for_all(
    puller: Puller, simulator: Simulator, parallel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(simulator, slow=0.3)
    later = SimpleNamespace(monotonic=lambda: time.monotonic() + 297)
    once_at(
        simulator,
        blob_path(layers.config(BLOBS)),
        lambda: monkeypatch.setattr(authorization, "time", later),
    )
    puller(parallel, ImagePolicy((simulator.address,)))
    assert service.given == 2
    unauthorized = [r for r in simulator.requests if "authorization" not in r.headers]
    assert len(unauthorized) == 3  # the first request, and those for tokens: nobody was refused


def test_a_token_service_that_asks_to_wait(puller: Puller, simulator: Simulator) -> None:
    reference = simulator.publish([TAR])
    Service(simulator)
    inner = simulator.answers["/token"]
    assert callable(inner)
    busy = [Answer(b"", 429, {"Retry-After": "1"})]
    simulator.answers["/token"] = lambda request: busy.pop() if busy else inner(request)
    start = time.monotonic()
    puller(reference, ImagePolicy((simulator.address,)))
    assert time.monotonic() - start >= 1


def test_a_token_service_that_asks_to_wait_for_too_long(
    puller: Puller, simulator: Simulator, elsewhere: Simulator
) -> None:
    reference = simulator.publish([TAR])
    simulator.guard(f'Bearer realm="http://{elsewhere.address}/token"', bool)
    elsewhere.answers["/token"] = Answer(b"", 429, {"Retry-After": "3600"})
    policy = ImagePolicy((simulator.address, elsewhere.address))
    error = puller.refused(reference, policy)
    assert error.code is ErrorCode.REGISTRY_BUSY
    assert f"{elsewhere.address} answers 429, and asks to wait 3600 s" in str(error)
    assert len(elsewhere.requests) == 1
