"""The key provider: ocicrypt's requests as Go and as CoCo's Rust write them, CoCo's packet, its keys."""

import json
import os
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sealrun_runtime.keyprovider import exchange, packet
from sealrun_runtime.keyprovider.exchange import RequestInvalid, wish_of
from sealrun_runtime.keyprovider.keys import KeyStore

EXAMPLES = Path(__file__).parents[3] / "../shared/reference/examples"
OPTIONS = (
    b'{"symkey":"AA==","digest":"sha256:00","cipheroptions":{"nonce":"1GFZYBNfR1/wTRieGbs2wA=="}}'
)
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"


def request(op: str, **members: Any) -> bytes:
    return json.dumps({"op": op, **members}).encode()


def wrap_request(text: str, *, numbers: bool = False, name: str = exchange.PROVIDER) -> bytes:
    def written(data: bytes) -> object:
        return list(data) if numbers else b64encode(data).decode()

    ec = {"Parameters": {name: [written(text.encode())], "pubkeys": ["AAAA"]}}
    return request("keywrap", keywrapparams={"ec": ec, "optsdata": written(OPTIONS)})


def unwrap_request(annotation: bytes, text: str = "x") -> bytes:
    dc = {"Parameters": {exchange.PROVIDER: [b64encode(text.encode()).decode()]}}
    told = {"dc": dc, "annotation": b64encode(annotation).decode()}
    return request("keyunwrap", keyunwrapparams=told)


def annotation_of(answer: bytes) -> bytes:
    return bytes(json.loads(answer)["keywrapresults"]["annotation"])


@pytest.fixture
def keys(tmp_path: Path) -> KeyStore:
    return KeyStore(str(tmp_path / "keys"), None)


@pytest.mark.parametrize("numbers", [False, True])
def test_what_was_wrapped_is_cocos_packet(keys: KeyStore, tmp_path: Path, numbers: bool) -> None:
    answer = exchange.answer(wrap_request("keyid=kbs:///a/b/c", numbers=numbers), keys)
    made = json.loads(annotation_of(answer))
    assert set(made) == {"kid", "wrapped_data", "iv", "wrap_type"}
    assert (made["kid"], made["wrap_type"]) == ("kbs:///a/b/c", "A256GCM")
    path = tmp_path / "keys/a/b/c"
    assert path.stat().st_mode & 0o777 == 0o600
    key = path.read_bytes()
    opened = AESGCM(key).decrypt(b64decode(made["iv"]), b64decode(made["wrapped_data"]), None)
    assert opened == OPTIONS


def test_it_opens_what_it_wrapped(keys: KeyStore) -> None:
    annotation = annotation_of(exchange.answer(wrap_request("keyid=kbs:///a/b/c"), keys))
    answer = json.loads(exchange.answer(unwrap_request(annotation), keys))
    assert bytes(answer["keyunwrapresults"]["optsdata"]) == OPTIONS


def test_layers_of_an_image_share_a_key_and_no_iv(keys: KeyStore) -> None:
    made = [
        json.loads(annotation_of(exchange.answer(wrap_request("keyid=kbs:///a/b/c"), keys)))
        for _ in range(2)
    ]
    assert made[0]["iv"] != made[1]["iv"]
    for one in made:
        assert exchange.answer(unwrap_request(json.dumps(one).encode()), keys)


def test_a_key_file_is_taken_and_never_overwrites_another(keys: KeyStore, tmp_path: Path) -> None:
    key = os.urandom(32)
    (tmp_path / "kek").write_bytes(key)
    text = f"keyid=kbs:///a/b/c::keypath={tmp_path}/kek::algorithm=A256GCM"
    exchange.answer(wrap_request(text), keys)
    assert (tmp_path / "keys/a/b/c").read_bytes() == key
    (tmp_path / "kek").write_bytes(os.urandom(32))
    exchange.answer(wrap_request(text), keys)
    assert (tmp_path / "keys/a/b/c").read_bytes() == key
    assert os.listdir(tmp_path / "keys/a/b") == ["c"]


@pytest.mark.parametrize("text", ["", "algorithm=A256GCM"])
def test_without_a_name_each_key_gets_one(keys: KeyStore, text: str) -> None:
    import re

    made = json.loads(annotation_of(exchange.answer(wrap_request(text), keys)))
    assert re.fullmatch(f"kbs:///default/image-kek/{UUID}", made["kid"])


def test_cocos_bare_paths_are_names() -> None:
    assert str(wish_of("keyid=/a/b/c").name) == "a/b/c"
    assert str(wish_of("keyid=a/b/c").name) == "a/b/c"
    assert str(wish_of("keyid=kbs://some.host/a/b/c").name) == "a/b/c"


@pytest.mark.parametrize(
    "text",
    [
        "keyid=kbs:///../../etc",
        "keyid=kbs:///a/b",
        "keyid=kbs:///a/b/.c",
        "keyid=kbs:///a/b/c::keyid=kbs:///a/b/d",
        "algorithm=A128GCM",
        "sample=true",
        "keyid",
        "keypath=/nowhere/kek",
    ],
)
def test_what_cannot_be_done_is_said(keys: KeyStore, text: str) -> None:
    with pytest.raises(RequestInvalid) as caught:
        exchange.answer(wrap_request(text), keys)
    assert str(caught.value).isprintable()


def test_a_key_has_32_bytes(keys: KeyStore, tmp_path: Path) -> None:
    (tmp_path / "kek").write_bytes(b"x" * 31)
    with pytest.raises(RequestInvalid, match="32 bytes"):
        exchange.answer(wrap_request(f"keypath={tmp_path}/kek"), keys)


def test_one_name_without_a_place_to_keep_its_key_is_refused() -> None:
    """skopeo asks once for each layer: all but the last layer's key would be lost."""
    with pytest.raises(RequestInvalid, match="--keys"):
        exchange.answer(wrap_request("keyid=kbs:///a/b/c"), KeyStore("", None))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b'{"op":"sing"}',
        b'{"op":"keywrap"}',
        b'{"op":"keyunwrap"}',
        b'{"op":"keywrap","keywrapparams":{"ec":null,"optsdata":"!"}}',
        b'{"op":"keywrap","keywrapparams":{"ec":null,"optsdata":[256]}}',
        b'{"op":"keywrap","keywrapparams":{"ec":{"Parameters":{"attestation-agent":["/w=="]}}}}',
        b'{"op":"keyunwrap","keyunwrapparams":{"dc":null,"annotation":"e30="}}',
        b"\xff" * 100,
        b"[" * 100_000,
    ],
)
def test_nonsense_is_refused(keys: KeyStore, text: bytes) -> None:
    with pytest.raises(RequestInvalid):
        exchange.answer(text, keys)


@pytest.mark.parametrize("member", ["wrapped_data", "iv", "wrap_type", "kid"])
def test_a_changed_packet_is_not_opened(keys: KeyStore, member: str) -> None:
    made = json.loads(annotation_of(exchange.answer(wrap_request("keyid=kbs:///a/b/c"), keys)))
    made[member] = {"kid": "kbs:///a/b/d", "wrap_type": "A256CTR"}.get(member, "AAAA" * 8)
    with pytest.raises(RequestInvalid):
        exchange.answer(unwrap_request(json.dumps(made).encode()), keys)


def test_version_2_of_the_packet_is_read(keys: KeyStore) -> None:
    made = json.loads(annotation_of(exchange.answer(wrap_request("keyid=kbs:///a/b/c"), keys)))
    made |= {"version": "0.1.0", "provider": "kbs", "provider_settings": {}, "annotations": {}}
    assert exchange.answer(unwrap_request(json.dumps(made).encode()), keys)


def test_the_captured_request_is_understood(keys: KeyStore) -> None:
    """As skopeo 1.18 sent it, with a JWE recipient beside the provider; its parameter is a word."""
    path = EXAMPLES / "keyprovider-cmd-wrap-request.json"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    captured = json.loads(path.read_text())
    parameters = captured["keywrapparams"]["ec"]["Parameters"]
    parameters[exchange.PROVIDER] = [b64encode(b"keyid=kbs:///a/b/c").decode()]
    annotation = annotation_of(exchange.answer(json.dumps(captured).encode(), keys))
    read = packet.parse(annotation)
    assert read.kid == "kbs:///a/b/c"
    answer = json.loads(exchange.answer(unwrap_request(annotation), keys))
    options = bytes(answer["keyunwrapresults"]["optsdata"])
    assert options == (EXAMPLES / "keyprovider-cmd-wrap-optsdata.json").read_bytes()
