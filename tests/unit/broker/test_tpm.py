"""TPM evidence: what an attestation key signed verifies, and nothing else does."""

import base64
import copy
import hashlib
import json
import struct
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from fixtures.vectors import vector
from sealrun_broker.verifiers import tpm, tpm_quote
from sealrun_broker.verifiers.binding import EvidenceInvalid, Expected, Verified
from simulators.event_log import event, extended, header, tagged

BOUND, INIT_DATA = b"\x5a" * 48, b'version = "0.1.0"\n'
EXPECTED = Expected(BOUND, None, 0.0)
ALL = tuple(range(24))
PULL = b'github.com/confidential-containers PullImage {"digest":"sha256:1","image":"app"}'


class Tpm:
    """Signs what it is told, as a TPM would."""

    def __init__(self) -> None:
        self.key = rsa.generate_private_key(65537, 2048)
        self.pcrs = [bytes(32)] * 24

    def message(self, **members: Any) -> bytes:
        """TPMS_ATTEST: extra, banks, digest, kind, magic."""
        bitmap = sum(1 << pcr for pcr in members.get("pcrs", ALL)).to_bytes(3, "little")
        banks = members.get("banks", [(0x000B, bitmap)])
        selection = struct.pack(">I", len(banks))
        for algorithm, bits in banks:
            selection += struct.pack(">HB", algorithm, len(bits)) + bits
        digest = members.get("digest", hashlib.sha256(b"".join(self.pcrs)).digest())
        return (
            members.get("magic", b"\xffTCG")
            + struct.pack(">H", members.get("kind", 0x8018))
            + _sized(b"\0\x0b" + bytes(32))
            + _sized(members.get("extra", BOUND[:32]))
            + bytes(17 + 8)
            + selection
            + _sized(digest)
            + members.get("more", b"")
        )

    def evidence(self, log: bytes = b"", **members: Any) -> dict[str, Any]:
        message = self.message(**members)
        raw = self.key.sign(message, padding.PKCS1v15(), SHA256())
        spki = self.key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        found: dict[str, Any] = {
            "tpm_quote": {
                "signature": _text(struct.pack(">HH", 0x0014, 0x000B) + _sized(raw)),
                "message": _text(message),
                "pcrs": [pcr.hex() for pcr in self.pcrs],
            },
            "ak_public": _text(spki),
        }
        return found | ({"event_log": _text(log)} if log else {})


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def chip() -> Tpm:
    return Tpm()


# --- recorded evidence ---------------------------------------------------------------------------


def recorded() -> tuple[dict[str, Any], Expected]:
    evidence = json.loads(vector("tpm/evidence.json"))
    message = base64.b64decode(evidence["tpm_quote"]["message"])
    return evidence, Expected(tpm_quote.parse(message).extra_data, None, 0.0)


def test_recorded_evidence_verifies() -> None:
    evidence, expected = recorded()
    found = tpm.verify(evidence, expected)
    assert found.claims["pcr17"] == "ff" * 32
    assert found.claims["pcr08"] == found.claims["init_data"] == "00" * 32
    assert found.claims["ak_public"] == evidence["ak_public"]
    assert found.images is None
    assert found.missing == ("there is no event log",)
    # The hash alone, as it was before the attester padded it.
    assert tpm.verify(evidence, expected._replace(report_data=expected.report_data[:48]))


def test_no_bit_of_what_is_signed_may_change() -> None:
    evidence, expected = recorded()
    for member in ("message", "signature"):
        raw = base64.b64decode(evidence["tpm_quote"][member])
        for position in range(len(raw)):
            for bit in range(8):
                changed = bytearray(raw)
                changed[position] ^= 1 << bit
                forged = copy.deepcopy(evidence)
                forged["tpm_quote"][member] = _text(bytes(changed))
                with pytest.raises(EvidenceInvalid):
                    tpm.verify(forged, expected)


def test_no_bit_of_a_pcr_may_change() -> None:
    evidence, expected = recorded()
    for number in range(24):
        raw = bytearray.fromhex(evidence["tpm_quote"]["pcrs"][number])
        for position in range(32):
            changed = bytearray(raw)
            changed[position] ^= 1 << position % 8
            forged = copy.deepcopy(evidence)
            forged["tpm_quote"]["pcrs"][number] = changed.hex()
            with pytest.raises(EvidenceInvalid, match="not those of the quote"):
                tpm.verify(forged, expected)


# --- bindings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("extra", [BOUND[:32], BOUND, BOUND.ljust(64, b"\0")])
def test_report_data(chip: Tpm, extra: bytes) -> None:
    assert tpm.verify(chip.evidence(extra=extra), EXPECTED).claims["report_data"] == extra.hex()


@pytest.mark.parametrize(
    "extra", [b"", BOUND[:31], bytes(32), b"\0" + BOUND[:31], BOUND.ljust(64, b"\1")]
)
def test_other_report_data(chip: Tpm, extra: bytes) -> None:
    with pytest.raises(EvidenceInvalid, match=r"report data|is not the hash"):
        tpm.verify(chip.evidence(extra=extra), EXPECTED)


def test_init_data_is_bound_by_pcr_8(chip: Tpm) -> None:
    chip.pcrs[8] = extended("sha256", hashlib.sha256(INIT_DATA).digest())
    expected = EXPECTED._replace(init_data=INIT_DATA)
    assert tpm.verify(chip.evidence(), expected)
    assert tpm.verify(chip.evidence(), EXPECTED)
    with pytest.raises(EvidenceInvalid, match="PCR 8 says that there is init-data"):
        tpm.verify(chip.evidence(), EXPECTED._replace(init_data=b""))
    with pytest.raises(EvidenceInvalid, match="PCR 8 is not the digest of the init-data"):
        tpm.verify(chip.evidence(), EXPECTED._replace(init_data=INIT_DATA + b" "))
    for other in (
        bytes(32),
        hashlib.sha256(INIT_DATA).digest(),
        extended("sha256", *[hashlib.sha256(INIT_DATA).digest()] * 2),
        extended("sha256", hashlib.sha384(INIT_DATA).digest()[:32]),
    ):
        chip.pcrs[8] = other
        with pytest.raises(EvidenceInvalid, match="PCR 8"):
            tpm.verify(chip.evidence(), expected)


def logged(chip: Tpm, *more: bytes) -> Verified:
    log = header("sha256") + event(0, 8, b"firmware", ["sha256"]) + b"".join(more)
    log += event(13, 6, tagged(PULL), ["sha256"])
    return tpm.verify(chip.evidence(log), EXPECTED)


def test_the_log_says_which_images_were_pulled(chip: Tpm) -> None:
    chip.pcrs[0] = extended("sha256", hashlib.sha256(b"firmware").digest())
    chip.pcrs[13] = extended("sha256", hashlib.sha256(tagged(PULL)).digest())
    found = logged(chip)
    assert (found.images, found.missing) == (("sha256:1",), ())
    chip.pcrs[13] = extended("sha256", chip.pcrs[13])
    with pytest.raises(EvidenceInvalid, match="does not replay into PCR 13"):
        logged(chip)


def test_the_log_replays_into_every_pcr_that_it_names(chip: Tpm) -> None:
    chip.pcrs[13] = extended("sha256", hashlib.sha256(tagged(PULL)).digest())
    with pytest.raises(EvidenceInvalid, match="does not replay into PCR 0"):
        logged(chip)
    chip.pcrs[0] = extended("sha256", hashlib.sha256(b"firmware").digest())
    with pytest.raises(EvidenceInvalid, match="does not replay into PCR 4"):
        logged(chip, event(4, 0x80000003, b"kernel", ["sha256"]))
    with pytest.raises(EvidenceInvalid, match="does not replay into PCR 24"):
        logged(chip, event(24, 0x80000003, b"kernel", ["sha256"]))


def test_a_tpm_that_was_started_from_another_locality(chip: Tpm) -> None:
    chip.pcrs[13] = extended("sha256", hashlib.sha256(tagged(PULL)).digest())
    first = hashlib.sha256(bytes(31) + b"\3" + hashlib.sha256(b"firmware").digest()).digest()
    chip.pcrs[0] = first
    log = header("sha256") + event(0, 3, b"StartupLocality\0\3", {"sha256": bytes(32)})
    log += event(0, 8, b"firmware", ["sha256"]) + event(13, 6, tagged(PULL), ["sha256"])
    assert tpm.verify(chip.evidence(log), EXPECTED).images == ("sha256:1",)
    with pytest.raises(EvidenceInvalid, match="PCR 0"):
        logged(chip)


# --- what else a key may have signed ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"magic": b"\0TCG"}, "is not a quote"),
        ({"kind": 0x8017}, "is not a quote"),
        ({"pcrs": range(23)}, "not over all 24 PCRs"),
        ({"pcrs": ()}, "not over the SHA-256 bank alone"),
        ({"banks": [(0x0004, b"\xff\xff\xff")]}, "not over the SHA-256 bank alone"),
        ({"banks": [(0x000B, b"\xff\xff\xff"), (0x0004, b"\1\0\0")]}, "SHA-256 bank alone"),
        ({"banks": [(0x000B, b"\xff\xff\xff")] * 2}, "selects a bank twice"),
        ({"banks": [(0x000B, b"\0\0\0")] * 17}, "too many banks"),
        ({"banks": [(0x000B, b"\xff\xff\xff\1")]}, "not over all 24 PCRs"),
        ({"digest": bytes(32)}, "not those of the quote"),
        ({"digest": b""}, "not those of the quote"),
        ({"more": b"\0"}, "followed by more bytes"),
    ],
)
def test_signed_but_no_quote_of_ours(chip: Tpm, members: dict[str, Any], said: str) -> None:
    with pytest.raises(EvidenceInvalid, match=said):
        tpm.verify(chip.evidence(**members), EXPECTED)


def test_another_key_is_another_claim(chip: Tpm) -> None:
    other = Tpm()
    mixed = chip.evidence() | {"ak_public": other.evidence()["ak_public"]}
    with pytest.raises(EvidenceInvalid, match="signature does not match"):
        tpm.verify(mixed, EXPECTED)


def test_keys_that_are_not_taken(chip: Tpm) -> None:
    for key in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 1024)):
        spki = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(EvidenceInvalid, match="not an RSA key of 2048"):
            tpm.verify(chip.evidence() | {"ak_public": _text(spki)}, EXPECTED)


@pytest.mark.parametrize(
    "change",
    [
        lambda _: None,
        lambda _: {},
        lambda evidence: evidence | {"ak_public": "QUFB"},
        lambda evidence: evidence | {"ak_public": "!"},
        lambda evidence: evidence | {"event_log": "QUFB"},
        lambda evidence: evidence | {"event_log": None},
        lambda evidence: evidence | {"tpm_quote": None},
        lambda evidence: evidence | {"tpm_quote": evidence["tpm_quote"] | {"pcrs": []}},
        lambda evidence: evidence | {"tpm_quote": evidence["tpm_quote"] | {"pcrs": ["00"] * 24}},
        lambda evidence: evidence | {"tpm_quote": evidence["tpm_quote"] | {"pcrs": ["xx"] * 24}},
        lambda evidence: evidence | {"tpm_quote": evidence["tpm_quote"] | {"message": ""}},
        lambda evidence: evidence | {"tpm_quote": evidence["tpm_quote"] | {"signature": ""}},
        lambda evidence: (
            evidence | {"tpm_quote": evidence["tpm_quote"] | {"signature": "ABYACw=="}}
        ),
    ],
)
def test_what_is_no_evidence(chip: Tpm, change: Callable[[Any], Any]) -> None:
    with pytest.raises(EvidenceInvalid):
        tpm.verify(change(chip.evidence()), EXPECTED)
