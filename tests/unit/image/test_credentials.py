"""auth.json: who the guest is to which registry."""

import base64
import json

import pytest
from fixtures.hostile import bounded, changed, spliced
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.errors import PullError
from sealrun_agent.image.credentials import Credential, Credentials, Safe
from sealrun_protocol.errors import ErrorCode


def auth(pair: str) -> str:
    return base64.b64encode(pair.encode()).decode()


HUB = "index.docker.io"
AUTHS: dict[str, dict[str, str]] = {
    "r.example": {"auth": auth("wide:p:w")},
    "r.example/team/app": {"auth": auth("narrow:pw")},
    f"https://{HUB}/v1/": {"auth": auth("hub:pw")},
    "t.example:5000": {
        "auth": auth("00000000-0000-0000-0000-000000000000:"),
        "identitytoken": "id",
    },
    "b.example": {"registrytoken": "bearer"},
    "empty.example": {},
    "bad.example": {"auth": "!"},
    "odd.example": {"auth": auth("nocolon")},
    "inject.example": {"identitytoken": "a\r\nb"},
}
DOCUMENT = {"auths": AUTHS, "credsStore": "secretservice"}
CREDENTIALS = Credentials(json.dumps(DOCUMENT).encode())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("r.example/team", Credential("wide", "p:w")),
        ("r.example/team/app", Credential("narrow", "pw")),
        ("r.example/team/app/sub", Credential("narrow", "pw")),
        ("r.example/team/apple", Credential("wide", "p:w")),
        ("docker.io/library/alpine", Credential("hub", "pw")),
        ("r.example:5000/team", None),
        ("b.example/x", Credential(registry_token="bearer")),
    ],
)
def test_the_longest_key_counts(name: str, expected: Credential | None) -> None:
    assert CREDENTIALS.find(name) == expected


def test_an_identity_token() -> None:
    found = CREDENTIALS.find("t.example:5000/x")
    assert found is not None
    assert (found.identity_token, found.password) == ("id", "")


@pytest.mark.parametrize("name", ["empty", "bad", "odd", "inject"])
def test_entries_without_use(name: str) -> None:
    with pytest.raises(PullError) as caught:
        CREDENTIALS.find(f"{name}.example/x")
    assert caught.value.code is ErrorCode.CREDENTIALS_INVALID


def test_the_broker_is_asked_once_and_only_when_needed() -> None:
    asked: list[str] = []

    def resource(uri: str) -> bytes:
        asked.append(uri)
        return json.dumps(DOCUMENT).encode()

    safe = Safe("kbs:///a/b/c", resource)
    assert asked == []
    assert safe.find("x.example/y") is None
    assert safe.find("r.example/y") is not None
    assert asked == ["kbs:///a/b/c"]
    assert Safe("", resource).find("r.example/y") is None


@bounded
@given(changed(DOCUMENT).map(lambda d: json.dumps(d).encode()) | spliced(json.dumps(DOCUMENT).encode()) | st.binary(max_size=40))  # fmt: skip
def test_any_document_is_read_or_refused(text: bytes) -> None:
    try:
        Credentials(text).find("r.example/team/app")
    except PullError as error:
        assert error.code is ErrorCode.CREDENTIALS_INVALID
