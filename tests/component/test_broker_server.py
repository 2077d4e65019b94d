"""The real broker, spoken to in raw HTTP: the exact answers, and what it refuses."""

import base64
import json
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from fixtures.broker import ALLOW_SAMPLE, LAUNCHER, RunningBroker, command, running_broker
from fixtures.kbs import AUTH, ask, attest, attestation, auth
from sealrun_agent.attestation import tee_key
from sealrun_broker import base64url, bounds, jwt
from sealrun_broker.store import Store
from sealrun_protocol.resource_uri import parse_name

RESOURCE = "/kbs/v0/resource/default/key/app"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBroker]:
    with running_broker(tmp_path_factory.mktemp("broker")) as running:
        running.add_resource("default/key/app", b"secret")
        yield running


# --- the handshake -------------------------------------------------------------------------------


def test_the_first_get_starts_the_stock_client_s_handshake(broker: RunningBroker) -> None:
    answer = ask(broker, "GET", RESOURCE)
    assert (answer.status, answer.error) == (401, "TokenNotFound")


def test_the_whole_handshake_to_the_letter(broker: RunningBroker) -> None:
    challenge = auth(broker)
    assert list(challenge.json) == ["nonce", "extra-params"]
    assert challenge.json["extra-params"] == ""
    assert len(base64.b64decode(challenge.json["nonce"], validate=True)) == 32
    assert re.fullmatch(
        r"kbs-session-id=[0-9a-f]{32}; Expires=[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} GMT",
        challenge.headers["Set-Cookie"],
    )
    key = tee_key.generate()
    attested = attest(broker, challenge.cookie, attestation(challenge.json["nonce"], key))
    assert attested.status == 200
    assert list(attested.json) == ["token"]
    assert attested.cookie == challenge.cookie
    resource = ask(broker, "GET", RESOURCE, Cookie=challenge.cookie)
    assert resource.status == 200
    assert resource.headers["Content-Type"] == "application/json"
    assert key.open(resource.body) == b"secret"


def test_the_token_serves_as_bearer_and_says_what_was_appraised(broker: RunningBroker) -> None:
    challenge, key = auth(broker), tee_key.generate()
    body = attestation(challenge.json["nonce"], key)
    token = attest(broker, challenge.cookie, body).json["token"]
    resource = ask(broker, "GET", RESOURCE, Authorization=f"Bearer {token}")
    assert key.open(resource.body) == b"secret"

    header, claims = (json.loads(base64url.decode(part)) for part in token.split(".")[:2])
    assert (header["typ"], header["alg"]) == ("JWT", "ES256")
    assert header["jwk"]["crv"] == "P-256"
    assert claims["eat_profile"] == "tag:github.com,2024:confidential-containers/Trustee"
    assert claims["exp"] - claims["iat"] in (300, 301)
    cpu = claims["submods"]["cpu0"]
    assert cpu["ear.status"] == "contraindicated", "nobody vouches for sample evidence"
    annotated = cpu["ear.veraison.annotated-evidence"]
    assert annotated["runtime_data_claims"] == body["runtime-data"]
    assert annotated["sample"]["svn"] == "1"


def test_tokens_of_somebody_else(broker: RunningBroker) -> None:
    challenge, key = auth(broker), tee_key.generate()
    body = attestation(challenge.json["nonce"], key)
    token = attest(broker, challenge.cookie, body).json["token"]
    header, claims, signature = token.split(".")
    other = "A" if claims[20] != "A" else "B"
    for bad in (
        f"{header}.{claims[:20]}{other}{claims[21:]}.{signature}",
        f"{header}.{claims}.",
        broker.admin_token(),
        "",
    ):
        answer = ask(broker, "GET", RESOURCE, Authorization=f"Bearer {bad}")
        assert (answer.status, answer.error) == (401, "TokenVerifierError")


@pytest.mark.parametrize(
    "change",
    [
        {"version": "0.3.0"},
        {"version": "0.4.1"},
        {"version": "v0.4.0"},
        {"version": 4},
        {"tee": None},
        {"tee": 7},
    ],
)
def test_auth_that_is_none(broker: RunningBroker, change: dict[str, object]) -> None:
    assert ask(broker, "POST", "/kbs/v0/auth", {**AUTH, **change}).status == 401


@pytest.mark.parametrize("member", ["version", "tee", "extra-params"])
def test_auth_needs_all_members(broker: RunningBroker, member: str) -> None:
    body = {name: value for name, value in AUTH.items() if name != member}
    answer = ask(broker, "POST", "/kbs/v0/auth", body)
    assert (answer.status, answer.error) == (401, "SerdeError")


@pytest.mark.parametrize(
    "body", [b"", b"x", b"null", b"[]", b"\xff", b"[" * 100_000, b'{"a":' * 100_000]
)
@pytest.mark.parametrize("step", ["auth", "attest"])
def test_bodies_that_are_none(broker: RunningBroker, step: str, body: bytes) -> None:
    cookie = auth(broker).cookie
    answer = ask(broker, "POST", f"/kbs/v0/{step}", body, Cookie=cookie)
    assert (answer.status, answer.error) == (401, "SerdeError")


def test_a_nonce_serves_once(broker: RunningBroker) -> None:
    challenge, key = auth(broker), tee_key.generate()
    good = attestation(challenge.json["nonce"], key)
    bad = attestation(challenge.json["nonce"], tee_key.generate())
    bad["tee-evidence"] = good["tee-evidence"]
    assert attest(broker, challenge.cookie, bad).error == "AttestationError"
    answer = attest(broker, challenge.cookie, good)
    assert (answer.status, answer.error) == (401, "AttestationError")


def test_evidence_of_another_session_is_a_replay(broker: RunningBroker) -> None:
    first, second, key = auth(broker), auth(broker), tee_key.generate()
    body = attestation(first.json["nonce"], key)
    assert attest(broker, first.cookie, body).status == 200
    answer = attest(broker, second.cookie, body)
    assert (answer.status, answer.error) == (401, "AttestationError")
    assert "nonce" in answer.json["detail"]
    answer = ask(broker, "GET", RESOURCE, Cookie=second.cookie)
    assert (answer.status, answer.error) == (401, "TokenNotFound")


def test_an_attested_session_answers_its_first_token_to_whatever_key(broker: RunningBroker) -> None:
    challenge, key, thief = auth(broker), tee_key.generate(), tee_key.generate()
    nonce = challenge.json["nonce"]
    token = attest(broker, challenge.cookie, attestation(nonce, key)).json["token"]
    again = attest(broker, challenge.cookie, attestation(nonce, thief))
    assert again.json["token"] == token
    assert key.open(ask(broker, "GET", RESOURCE, Cookie=challenge.cookie).body) == b"secret"


@pytest.mark.parametrize("cookie", ["", "kbs-session-id=", "kbs-session-id=c0ffee", "x=y"])
def test_no_session(broker: RunningBroker, cookie: str) -> None:
    answer = attest(broker, cookie, attestation("AAAA", tee_key.generate()))
    assert (answer.status, answer.error) == (401, "AttestationError")


@pytest.mark.parametrize(
    ("path", "value", "name"),
    [
        ("tee-evidence/primary_evidence", {}, "AttestationError"),
        ("tee-evidence/primary_evidence", None, "AttestationError"),
        ("tee-evidence/primary_evidence/report_data", "", "AttestationError"),
        ("tee-evidence/primary_evidence/report_data", "*", "AttestationError"),
        ("tee-evidence/primary_evidence/report_data", "é", "AttestationError"),
        ("tee-evidence/primary_evidence/report_data", "A" * 64, "AttestationError"),
        ("tee-evidence/primary_evidence/svn", 1, "AttestationError"),
        ("tee-evidence/additional_evidence", "{}", "AttestationError"),
        ("tee-evidence/additional_evidence", {}, "SerdeError"),
        ("init-data", {"format": "json", "body": "{}"}, "AttestationError"),
        ("init-data", {"format": "toml"}, "SerdeError"),
        ("init-data", {"format": "toml", "body": "\ud800"}, "SerdeError"),
        ("runtime-data/nonce", 7, "SerdeError"),
        ("runtime-data/tee-pubkey", {}, "JweError"),
        ("runtime-data/tee-pubkey", {"kty": {}}, "SerdeError"),
        ("runtime-data/tee-pubkey/x", "AAAA", "JweError"),
        ("runtime-data/tee-pubkey/é", "x", "JweError"),
        ("runtime-data/tee-pubkey/kid", "x", "AttestationError"),  # not what was hashed
    ],
)
def test_evidence_that_does_not_count(
    broker: RunningBroker, path: str, value: object, name: str
) -> None:
    challenge = auth(broker)
    body = attestation(challenge.json["nonce"], tee_key.generate())
    *folders, last = path.split("/")
    place = body
    for folder in folders:
        place = place[folder]
    place[last] = value
    answer = attest(broker, challenge.cookie, body)
    assert (answer.status, answer.error) == (401, name)
    assert ask(broker, "GET", RESOURCE, Cookie=challenge.cookie).status == 401


@pytest.mark.parametrize("tee", ["snp", "tdx", "tpm", "se", "nonsense", "", "sampledevice"])
def test_no_verifier_for_this_kind(broker: RunningBroker, tee: str) -> None:
    challenge = ask(broker, "POST", "/kbs/v0/auth", {**AUTH, "tee": tee})
    body = attestation(challenge.json["nonce"], tee_key.generate())
    answer = attest(broker, challenge.cookie, body)
    assert (answer.status, answer.error) == (401, "AttestationError")


@pytest.mark.parametrize("step", ["auth", "attest"])
def test_oversized_bodies(broker: RunningBroker, step: str) -> None:
    cookie = auth(broker).cookie
    answer = ask(broker, "POST", f"/kbs/v0/{step}", b" " * (bounds.BODY_BYTES + 1), Cookie=cookie)
    assert (answer.status, answer.error) == (413, "PayloadTooLarge")


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/", 404, "PluginNotFound"),
        ("GET", "/kbs/v0/pkcs11/a", 404, "PluginNotFound"),
        ("GET", "/kbs/v0/auth", 405, "InvalidRequest"),
        ("PUT", RESOURCE, 405, "InvalidRequest"),
    ],
)
def test_no_such_route(
    broker: RunningBroker, method: str, path: str, status: int, name: str
) -> None:
    answer = ask(broker, method, path)
    assert (answer.status, answer.error) == (status, name)


@pytest.mark.parametrize(
    "path", ["a/b", "a/b/c/d", "a/../c", "..%2f..%2fadmin/x/admin.key", "a/b/%2e%2e", "a/b/.x"]
)
def test_no_such_name(broker: RunningBroker, path: str) -> None:
    challenge, key = auth(broker), tee_key.generate()
    assert attest(broker, challenge.cookie, attestation(challenge.json["nonce"], key)).status == 200
    answer = ask(broker, "GET", f"/kbs/v0/resource/{path}", Cookie=challenge.cookie)
    assert (answer.status, answer.error) == (404, "InvalidRequestPath")


def test_healthz(broker: RunningBroker) -> None:
    assert ask(broker, "GET", "/healthz").status == 200


# --- administrators ------------------------------------------------------------------------------


def test_an_administrator_stores_and_deletes(broker: RunningBroker) -> None:
    bearer = f"Bearer {broker.admin_token()}"
    path, content = "/kbs/v0/resource/default/key/posted", bytes(range(256))
    assert ask(broker, "POST", path, content, Authorization=bearer).status == 200
    stored = broker.directory / "resources/default/key/posted"
    assert content not in stored.read_bytes()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert ask(broker, "DELETE", path, Authorization=bearer).status == 200
    assert not stored.exists()
    answer = ask(broker, "DELETE", path, Authorization=bearer)
    assert answer.status == 404
    assert re.search(r"put default/key/posted ok", broker.log())


def admin_key(broker: RunningBroker) -> ed25519.Ed25519PrivateKey:
    key = load_pem_private_key((broker.directory / "admin/admin.key").read_bytes(), None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    return key


@pytest.mark.parametrize("method", ["POST", "DELETE"])
def test_nobody_else_does(broker: RunningBroker, method: str) -> None:
    now, key = int(time.time()), admin_key(broker)
    stored = broker.directory / "resources/default/key/app"
    before = stored.read_bytes()
    stranger = ed25519.Ed25519PrivateKey.generate()
    claims = {"role": "admin", "iat": now, "exp": now + 60}
    for authorization in (
        "",
        "Basic YTpi",
        "Bearer",
        "Bearer x",
        f"Bearer {jwt.sign(claims, stranger)}",
        f"Bearer {jwt.sign({**claims, 'role': 'user'}, key)}",
        f"Bearer {jwt.sign({'exp': now + 60}, key)}",
        f"Bearer {jwt.sign({'role': 'admin'}, key)}",
        f"Bearer {jwt.sign({**claims, 'exp': now - 1}, key)}",
        f"Bearer {jwt.sign({**claims, 'iat': now + 3600, 'exp': now + 7200}, key)}",
        f"Bearer {jwt.sign({**claims, 'exp': now + 90_000}, key)}",
    ):
        answer = ask(broker, method, RESOURCE, b"mine", Authorization=authorization)
        assert (answer.status, answer.error) == (401, "AdminAuthAccess"), authorization
    assert stored.read_bytes() == before


def test_an_attestation_token_is_no_administrator_s(broker: RunningBroker) -> None:
    challenge, key = auth(broker), tee_key.generate()
    body = attestation(challenge.json["nonce"], key)
    token = attest(broker, challenge.cookie, body).json["token"]
    answer = ask(broker, "POST", RESOURCE, b"mine", Authorization=f"Bearer {token}")
    assert (answer.status, answer.error) == (401, "AdminAuthAccess")


def test_an_oversized_resource(broker: RunningBroker) -> None:
    bearer = f"Bearer {broker.admin_token()}"
    body = bytes(bounds.RESOURCE_BYTES + 1)
    answer = ask(broker, "POST", RESOURCE, body, Authorization=bearer)
    assert (answer.status, answer.error) == (413, "PayloadTooLarge")


def test_the_log_holds_no_secret(broker: RunningBroker) -> None:
    challenge, key = auth(broker), tee_key.generate()
    body = attestation(challenge.json["nonce"], key)
    token = attest(broker, challenge.cookie, body).json["token"]
    ask(broker, "GET", RESOURCE, Cookie=challenge.cookie)
    text = (broker.directory / "audit.jsonl").read_text()
    for secret in (challenge.cookie.partition("=")[2], token, "secret", challenge.json["nonce"]):
        assert secret not in text
    last = [json.loads(line) for line in text.splitlines()][-3:]
    assert [entry["event"] for entry in last] == ["auth", "attest", "get"]
    assert len({entry["session"] for entry in last}) == 1


# --- the program ---------------------------------------------------------------------------------


def refused(*arguments: object) -> str:
    result = subprocess.run(
        [str(LAUNCHER), *map(str, arguments)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.fullmatch(r"sealrun-broker: cannot [^\n]*[^.\n]\n", result.stderr)
    return result.stderr


def test_refusals_are_one_line(broker: RunningBroker, tmp_path: Path) -> None:
    home, full = broker.directory, tmp_path / "full"
    full.mkdir()
    (full / "x").touch()
    assert "not empty" in refused("init", full)
    assert "not empty" in refused("init", home)
    assert "is no name" in refused("init", tmp_path / "new", "--name", "é")
    assert not (tmp_path / "new").exists()
    for arguments in (["serve"], ["admin-token"], ["log"]):
        assert "no broker's directory" in refused(*arguments, full)
    assert "no broker's directory" in refused("add-resource", full, "a/b/c", "-")
    assert "not repository/type/tag" in refused("add-resource", home, "a/b", "-")
    assert "No such file" in refused("add-resource", home, "a/b/c", tmp_path / "none")
    assert "Is a directory" in refused("add-resource", home, "a/b/c", tmp_path)
    assert "--seconds" in refused("admin-token", home, "--seconds", 0)
    assert "not HOST:PORT" in refused("serve", home, "--listen", "8080")
    assert "session-seconds" in refused("serve", home, "--session-seconds", 0)
    assert "in use" in refused("serve", home, "--listen", f"{broker.host}:{broker.port}")
    assert "not HOST:PORT" in refused("serve", home, "--listen", "127.0.0.1:99999")
    assert "cannot listen" in refused("serve", home, "--listen", "192.0.2.1:0")
    assert "No such file" in refused(
        "serve", home, "--listen", "127.0.0.1:0", "--port-file", tmp_path / "none/port"
    )


def test_a_damaged_directory_is_not_served(tmp_path: Path) -> None:
    home = tmp_path / "broker"
    command("init", str(home))
    for name, said in (
        ("policy.toml", "cannot read the policy"),
        ("tls/server.pem", "cannot use"),
        ("token/token.key", "not a PEM private key"),
        ("admin/admin.pem", "not PEM"),
    ):
        good = (home / name).read_bytes()
        (home / name).write_bytes(b"x")
        assert said in refused("serve", home, "--listen", "127.0.0.1:0")
        (home / name).write_bytes(good)
    (home / "token/token.key").write_bytes((home / "admin/admin.key").read_bytes())
    assert "not a P-256 key" in refused("serve", home, "--listen", "127.0.0.1:0")


def test_a_new_directory_allows_nothing_and_is_private(tmp_path: Path) -> None:
    home = tmp_path / "broker"
    command("init", str(home), "--name", "broker.example.com", "--name", "192.0.2.1")
    assert "insecure_sample = false" in (home / "policy.toml").read_text()
    for path in (home, *home.rglob("*")):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o644 if path.suffix == ".pem" else 0o600)
    text = subprocess.run(
        ["openssl", "x509", "-noout", "-ext", "subjectAltName", "-in", home / "tls/server.pem"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in ("localhost", "127.0.0.1", "0:0:0:0:0:0:0:1", "broker.example.com", "192.0.2.1"):
        assert f":{name}" in text
    subprocess.run(
        [
            "openssl",
            "verify",
            "-x509_strict",
            "-CAfile",
            home / "tls/ca.pem",
            home / "tls/server.pem",
        ],
        capture_output=True,
        check=True,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_the_moment_it_listens(tmp_path: Path, number: signal.Signals) -> None:
    home, port_file = tmp_path / "broker", tmp_path / "port"
    command("init", str(home))
    with subprocess.Popen(
        [LAUNCHER, "serve", home, "--listen", "127.0.0.1:0", "--port-file", port_file],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert re.fullmatch(r"listening on https://127.0.0.1:\d+\n", process.stdout.readline())
        process.send_signal(number)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_what_is_stored_outlives_the_server(tmp_path: Path) -> None:
    with running_broker(tmp_path, policy=ALLOW_SAMPLE) as first:
        first.add_resource("default/key/app", b"kept")
    assert first.log() == ""
    key = (first.directory / "store.key").read_bytes()
    store = Store(str(first.directory / "resources"), key)
    assert store.get(parse_name("default/key/app")) == b"kept"
