"""What evidence is bound to, against the measured vectors of KBS 0.4.0; client and broker alike."""

import base64
import hashlib
import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from sealrun_agent.attestation.report_data import canonical, report_data
from sealrun_broker.appraisal import RuntimeData
from sealrun_broker.appraisal import report_data as report_data_of_the_broker

NONCE = base64.b64encode(bytes(32)).decode()
# RFC 7515, appendix A.3
KEY = {
    "kty": "EC",
    "crv": "P-256",
    "alg": "ECDH-ES+A256KW",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
R1 = (
    '{"additional-evidence":"","nonce":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","tee-pubkey":'
    '{"alg":"ECDH-ES+A256KW","crv":"P-256","kty":"EC",'
    '"x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",'
    '"y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"}}'
)
R1_SHA384 = (
    "d4bd1841ef158d7c3904848b81d834cafb2fb888d896151632a2aa5e8c258da2"
    "0f8ba11735fc30d095f10ed26e055e09"
)


def test_r1_is_the_exact_text() -> None:
    assert canonical({"tee-pubkey": KEY, "nonce": NONCE, "additional-evidence": ""}).decode() == R1


def test_trustee_s_own_vector() -> None:
    """A number in it is more than `canonical` is typed for, and no more than it can do."""
    vector: Any = {"b": 1, "a": "test", "c": {"d": "e"}}
    assert canonical(vector) == b'{"a":"test","b":1,"c":{"d":"e"}}'
    assert hashlib.sha384(canonical(vector)).hexdigest() == (
        "e71ce8e70d814ba6639c3612ebee0ff1f76f650f8dbb5e47157e0f3f525cd22c"
        "4597480a186427c813ca941da78870c3"
    )


def test_vector_of_r2() -> None:
    """What devices are bound to. No device gives evidence here yet; the canonical form is the same."""
    assert hashlib.sha384(canonical({"tee-pubkey": KEY, "nonce": NONCE})).hexdigest() == (
        "19a630d21977b83b1c45bff1aa391bd83375a9e24f11c6915fba17d41519e1aa"
        "78bece9d15bb779a5a68c86d7bc3e483"
    )


def test_vector_of_r1() -> None:
    assert report_data(NONCE, KEY).hex() == R1_SHA384


def test_vector_of_r1_at_the_broker() -> None:
    assert report_data_of_the_broker(RuntimeData(NONCE, KEY), "").hex() == R1_SHA384


def test_every_input_is_bound() -> None:
    others = [
        report_data(NONCE[1:], KEY),
        report_data(NONCE, {**KEY, "x": KEY["y"]}),
        report_data(NONCE, KEY, "{}"),
        report_data(NONCE, KEY, "", "sha512"),
    ]
    assert len({report_data(NONCE, KEY), *others}) == 5


@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii")), st.text(st.characters(codec="utf-8")), max_size=5
    )
)
def test_canonical_form_of_any_strings(members: dict[str, str]) -> None:
    expected = json.dumps(members, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert canonical(members) == expected.encode()
    assert json.loads(canonical(members)) == members
