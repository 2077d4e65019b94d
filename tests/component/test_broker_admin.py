"""What an administrator sets over the network, and what it does to those who are attested already."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures.broker import ALLOW_SAMPLE, RunningBroker, command, running_broker
from fixtures.kbs import Answer, ask, attest, attestation, auth
from sealrun_agent.attestation import tee_key
from sealrun_broker import base64url

RESOURCE = "/kbs/v0/resource/default/key/app"
REFERENCES = "/kbs/v0/reference-value"
POLICY = "/kbs/v0/resource-policy"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[RunningBroker]:
    with running_broker(tmp_path) as running:
        running.add_resource("default/key/app", b"secret")
        yield running


def attested(broker: RunningBroker) -> str:
    """The cookie of a session that was attested with sample evidence."""
    challenge = auth(broker)
    body = attestation(challenge.json["nonce"], tee_key.generate())
    assert attest(broker, challenge.cookie, body).status == 200
    return challenge.cookie


def message(values: object) -> dict[str, str]:
    payload = base64.b64encode(json.dumps(values).encode()).decode()
    return {"version": "0.1.0", "type": "sample", "payload": payload}


def administer(broker: RunningBroker, method: str, path: str, body: object = None) -> Answer:
    return ask(broker, method, path, body, Authorization=f"Bearer {broker.admin_token()}")


# --- reference values ----------------------------------------------------------------------------


def test_reference_values_by_api_and_by_command(broker: RunningBroker) -> None:
    assert administer(broker, "POST", REFERENCES, message({"svn": ["1"], "n": 1})).status == 200
    assert administer(broker, "GET", f"{REFERENCES}/svn").json == ["1"]
    assert command("add-reference", str(broker.directory), "mr_td", "aa", "bb") == "stored mr_td\n"
    assert administer(broker, "GET", f"{REFERENCES}/mr_td").json == ["aa", "bb"]
    command("add-reference", str(broker.directory), "mr_td")
    missing = administer(broker, "GET", f"{REFERENCES}/mr_td")
    assert (missing.status, missing.error) == (404, "RvpsError")
    assert "set-reference ok (n svn)" in broker.log()


def test_reference_values_from_a_file(broker: RunningBroker, tmp_path: Path) -> None:
    file = tmp_path / "values.json"
    file.write_text('{"a": [1], "b": true}')
    assert command("add-reference", str(broker.directory), "--file", str(file)) == "stored a, b\n"
    assert administer(broker, "GET", f"{REFERENCES}/b").json is True


@pytest.mark.parametrize("body", [b"", b"{}", message([]), message({"a b": 1})])
def test_what_is_no_reference_value(broker: RunningBroker, body: object) -> None:
    answer = administer(broker, "POST", REFERENCES, body)
    assert (answer.status, answer.error) == (401, "RvpsError")


@pytest.mark.parametrize(
    ("method", "path"), [("POST", REFERENCES), ("GET", f"{REFERENCES}/svn"), ("POST", POLICY)]
)
def test_nobody_else_may(broker: RunningBroker, method: str, path: str) -> None:
    before = (broker.directory / "policy.toml").read_text()
    for headers in ({}, {"Authorization": "Bearer x"}, {"Cookie": attested(broker)}):
        answer = ask(broker, method, path, message({"svn": ["1"]}), **headers)
        assert (answer.status, answer.error) == (401, "AdminAuthAccess")
    assert not (broker.directory / "reference-values.json").exists()
    assert (broker.directory / "policy.toml").read_text() == before


# --- the policy ----------------------------------------------------------------------------------


def test_another_policy_counts_at_once_for_all(broker: RunningBroker) -> None:
    cookie = attested(broker)
    assert ask(broker, "GET", RESOURCE, Cookie=cookie).status == 200
    text = base64url.encode(b"[evidence]\ninsecure_sample = true\n")
    assert administer(broker, "POST", POLICY, {"policy": text}).status == 200
    answer = ask(broker, "GET", RESOURCE, Cookie=cookie)
    assert (answer.status, answer.error) == (403, "PolicyDeny")
    assert answer.json["detail"].endswith("to this VM: no rule is about it")
    bad = administer(broker, "POST", POLICY, {"policy": base64url.encode(b"[evidnce]")})
    assert (bad.status, bad.error) == (401, "ParsePolicyError")
    assert "insecure_sample = true" in command("policy", str(broker.directory))


def test_sample_evidence_that_no_longer_counts(broker: RunningBroker) -> None:
    cookie = attested(broker)
    broker.write_policy(ALLOW_SAMPLE.replace("insecure_sample = true", "insecure_sample = false"))
    answer = ask(broker, "GET", RESOURCE, Cookie=cookie)
    assert (answer.status, answer.error) == (403, "PolicyDeny")
    assert "sample evidence does not count" in answer.json["detail"]


# --- as Trustee has it -----------------------------------------------------------------------------


def test_stock_statuses(tmp_path: Path) -> None:
    with running_broker(tmp_path, "--stock-statuses") as broker:
        cookie = attested(broker)
        for path, error in (
            ("default/key/none", "PluginInternalError"),
            ("other/key/app", "PolicyDeny"),
        ):
            answer = ask(broker, "GET", f"/kbs/v0/resource/{path}", Cookie=cookie)
            assert (answer.status, answer.error) == (401, error)
        assert ask(broker, "GET", RESOURCE).status == 401
        assert ask(broker, "GET", "/kbs/v0/resource/one", Cookie=cookie).status == 404
        assert ask(broker, "GET", "/kbs/v0/nothing", Cookie=cookie).status == 404


def test_the_key_of_the_store_may_be_elsewhere(tmp_path: Path) -> None:
    home, key = tmp_path / "broker", tmp_path / "store.key"
    command("init", str(home), "--store-key", str(key))
    assert not (home / "store.key").exists()
    assert len(key.read_bytes()) == 32
    command("add-resource", str(home), "a/b/c", "-", "--store-key", str(key), stdin=b"secret")
    assert b"secret" not in (home / "resources/a/b/c").read_bytes()


# --- metrics ---------------------------------------------------------------------------------------


def test_metrics(broker: RunningBroker) -> None:
    cookie = attested(broker)
    for path in ("default/key/app", "default/key/app", "default/key/none", "x/y/z"):
        ask(broker, "GET", f"/kbs/v0/resource/{path}", Cookie=cookie)
    auth(broker)
    answer = ask(broker, "GET", "/metrics")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = answer.body.decode().splitlines()
    assert answer.body.endswith(b"\n")
    for line in lines:
        assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{(\w+="[^"\\]*",?)+\})? \d+', line), line
    name = "sealrun_broker_requests_total"
    assert f'{name}{{event="auth",outcome="ok",tee="sample"}} 2' in lines
    assert f'{name}{{event="get",outcome="ok",tee="sample"}} 2' in lines
    assert f'{name}{{event="get",outcome="not-found",tee="sample"}} 1' in lines
    assert f'{name}{{event="get",outcome="PolicyDeny",tee="sample"}} 1' in lines
    assert "sealrun_broker_sessions 2" in lines


def test_a_client_cannot_make_the_metrics_grow(broker: RunningBroker) -> None:
    for number in range(20):
        body = {"version": "0.4.0", "tee": f'x{number}"}}\n', "extra-params": ""}
        assert ask(broker, "POST", "/kbs/v0/auth", body).status == 200
    text = ask(broker, "GET", "/metrics").body.decode()
    assert text.count('event="auth"') == 1
