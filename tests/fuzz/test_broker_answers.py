"""Whatever a peer or a tenant sends: no exception but ours, in bounded time.

Inputs are the honest ones with changes that keep most of their form: pure noise stops at the first
check and tests nothing behind it.
"""

import json
import socket
from contextlib import ExitStack
from typing import Any

import msgspec
from fixtures.hostile import bounded, changed, spliced
from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.attestation import tee_key
from sealrun_agent.attestation.kbs import KeyBroker
from sealrun_agent.attestation.report_data import report_data
from sealrun_agent.attestation.sample import SampleAttester
from sealrun_agent.errors import AttestError, DialFailed
from sealrun_agent.jose import JweInvalid, decode, encode
from sealrun_broker import appraisal, jwe
from sealrun_broker.collateral import Collateral
from sealrun_broker.errors import BrokerError, Refusal
from sealrun_broker.policy import Evidence, Policy, parse
from sealrun_protocol import init_data
from sealrun_protocol.init_data import ABSENT, Broker, InitDataInvalid
from simulators.broker import NONCE, http

KEY = tee_key.generate()
SEALED = json.loads(jwe.seal(b"plaintext", jwe.recipient(KEY.public)))
HEADER = json.loads(decode(SEALED["protected"]))
EXAMPLE = (
    b'version = "0.1.0"\nalgorithm = "sha256"\n[data]\n'
    b"\"aa.toml\" = '''\n[token_configs.kbs]\nurl = \"https://a.example.com:1/x\"\n'''\n"
    b"\"sealrun.toml\" = '''\n[attestation]\ninsecure_sample_evidence = true\n"
    b'[image]\nallowed = ["a.b/c"]\ndecryption_keys = ["kbs:///a/b/c"]\n\'\'\'\n'
)
POLICY = b'[evidence]\ninsecure_sample = true\n[[resource]]\npath = "a/*/c"\ntee = ["snp"]\n'
ATTESTATION: dict[str, Any] = {
    "init-data": {"format": "toml", "body": "x"},
    "runtime-data": {"nonce": NONCE, "tee-pubkey": KEY.public},
    "tee-evidence": {
        "primary_evidence": SampleAttester().evidence(report_data(NONCE, KEY.public)),
        "additional_evidence": "",
    },
}
SAMPLES_COUNT = Evidence(insecure_sample=True)
NOTHING = Collateral("/nonexistent")


@bounded
@given(spliced(EXAMPLE))
def test_init_data(text: bytes) -> None:
    try:
        read = init_data.parse(text)
    except InitDataInvalid as error:
        assert "\n" not in str(error)
        return
    assert len(read.digest) in (32, 48, 64)
    init_data.endpoints(read)


@bounded
@given(
    st.text(max_size=200)
    | spliced(init_data.encode_annotation(EXAMPLE).encode()).map(
        lambda data: data.decode("latin-1")
    )
)
def test_annotations(value: str) -> None:
    try:
        assert isinstance(init_data.decode_annotation(value), bytes)
    except InitDataInvalid as error:
        assert "\n" not in str(error)


@bounded
@given(spliced(POLICY))
def test_policies(text: bytes) -> None:
    try:
        assert isinstance(parse(text), Policy)
    except BrokerError as error:
        assert "\n" not in str(error)


@bounded
@given(changed(SEALED), changed(HEADER))
def test_jwe(sealed: dict[str, Any], header: dict[str, Any]) -> None:
    protected = encode(json.dumps(header).encode())
    for candidate in (sealed, {**sealed, "protected": protected}):
        try:
            opened = KEY.open(json.dumps(candidate).encode())
        except JweInvalid as error:
            assert str(error).isprintable()
        else:
            assert opened == b"plaintext"


@bounded
@given(changed(dict(KEY.public)))
def test_keys_of_clients(jwk: dict[str, Any]) -> None:
    strings = {name: value for name, value in jwk.items() if isinstance(value, str)}
    try:
        assert jwe.seal(b"x", jwe.recipient(strings))
    except jwe.KeyInvalid as error:
        assert "\n" not in str(error)


@bounded
@given(changed(ATTESTATION))
def test_attestations(body: dict[str, Any]) -> None:
    try:
        attestation = msgspec.convert(body, appraisal.Attestation)
    except msgspec.ValidationError:
        return
    try:
        appraised = appraisal.appraise("sample", attestation, SAMPLES_COUNT, NOTHING, 0.0)
    except Refusal as refusal:
        assert refusal.status == 401
        return
    evidence = attestation.tee_evidence.primary_evidence
    assert appraised.verified.claims["report_data"] == evidence["report_data"]


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    """The bytes of one connection for each request: auth, attest, resource."""
    bodies = (
        draw(changed({"nonce": NONCE, "extra-params": ""})),
        draw(changed({"token": "a.b.c"})),
        draw(changed(SEALED)),
    )
    headers = ("Connection: close", "Set-Cookie: kbs-session-id=c0ffee; Expires=never")
    answers = [http(200, json.dumps(body).encode(), *headers) for body in bodies]
    broken = draw(st.integers(0, len(answers)))
    if broken < len(answers):
        answers[broken] = draw(spliced(answers[broken]))
    return answers


@bounded
@given(conversations())
def test_answers_of_brokers(answers: list[bytes]) -> None:
    with ExitStack() as sockets:

        def dial(_host: str, _port: int) -> socket.socket:
            if not answers:
                raise DialFailed("nobody is there", refused=False)
            ours, theirs = socket.socketpair()
            sockets.enter_context(theirs)
            theirs.sendall(answers.pop(0))
            theirs.shutdown(socket.SHUT_WR)
            return ours

        broker = Broker("http://a:1", False, "a", 1, "", "")
        client = KeyBroker(broker, SampleAttester(), dial, ABSENT, seconds=1)
        try:
            client.resource("kbs:///a/b/c")
        except AttestError as error:
            assert str(error).isprintable()
        else:
            raise AssertionError("nothing was sealed for this client")
        finally:
            client.close()
