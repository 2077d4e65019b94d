"""Event logs: read, replayed, and believed only where a register vouches for them."""

import hashlib
import struct
from collections.abc import Callable

import pytest
from fixtures.vectors import vector
from sealrun_broker import bounds
from sealrun_broker.verifiers import event_log
from sealrun_broker.verifiers.binding import EvidenceInvalid
from simulators.event_log import event, extended, header, tagged

PULL = b'github.com/confidential-containers PullImage {"digest":"sha256:%s","image":"app"}'
ONE, TWO = b"1" * 64, b"2" * 64


def test_a_recorded_log_replays_to_the_registers_of_its_machine() -> None:
    """RTMR 0 to 3 as Trustee's tests have them for this log."""
    events = event_log.parse(vector("tdx/ccel_ovmf.bin"))
    assert len(events) == 20
    replayed = [event_log.replay(events, register, "sha384").hex() for register in range(1, 5)]
    assert [value[:16] for value in replayed] == [
        "8566f998798db094",
        "775b9f6bfe99f8a3",
        "94eaf7a7bf398ed8",
        "0" * 16,
    ]
    shown = event_log.claims(events)
    assert {"device_paths": ["File(kernel)"]} in [entry["details"] for entry in shown]
    assert {"string": "LOADED_IMAGE::LoadOptions"} in [entry["details"] for entry in shown]


def test_no_bit_of_a_recorded_digest_may_change() -> None:
    data = vector("tdx/ccel_ovmf.bin")
    events = event_log.parse(data)
    good = [event_log.replay(events, register, "sha384") for register in range(1, 5)]
    for entry in events:
        if entry.kind == event_log.EV_NO_ACTION:
            continue
        for position in range(48):
            digest = bytearray(entry.digests["sha384"])
            digest[position] ^= 1
            forged = data.replace(entry.digests["sha384"], bytes(digest))
            changed = event_log.parse(forged)
            assert good != [event_log.replay(changed, number, "sha384") for number in range(1, 5)]


def test_the_agent_s_entries() -> None:
    texts = [PULL % ONE, b"github.com/confidential-containers Other x", PULL % TWO, PULL % ONE]
    log = header("sha256", "sha384")
    log += event(1, 4, b"\0\0\0\0", ["sha256", "sha384"])
    log += b"".join(event(13, 6, tagged(text), ["sha256", "sha384"]) for text in texts)
    events = event_log.parse(log + b"\xff" * 8)
    digests = [hashlib.sha384(tagged(text)).digest() for text in texts]
    assert event_log.replay(events, 13, "sha384") == extended("sha384", *digests)
    entries = event_log.agent_entries(events, 13, "sha256")
    assert [entry.operation for entry in entries] == [
        "PullImage",
        "Other",
        "PullImage",
        "PullImage",
    ]
    assert entries[1].content == "x"
    assert event_log.pulled_images(entries) == ("sha256:" + ONE.decode(), "sha256:" + TWO.decode())
    assert event_log.agent_entries(events, 4, "sha256") == ()


def test_the_digest_of_coco_s_own_test() -> None:
    """guest-components' vectors for the event `domain operation content`."""
    data = tagged(b"domain operation content")
    assert hashlib.sha256(data).hexdigest().startswith("46df8dacf00a07d34a83cdf56d797869")
    assert hashlib.sha384(data).hexdigest().startswith("dad5f0e226318ffa9839b75a472c6aa7")


def test_an_entry_whose_text_was_exchanged_is_not_believed() -> None:
    """The register vouches for digests: the host may write what it likes beside them."""
    honest = hashlib.sha256(tagged(PULL % ONE)).digest()
    log = header("sha256") + event(13, 6, tagged(PULL % TWO), {"sha256": honest})
    events = event_log.parse(log)
    assert event_log.replay(events, 13, "sha256") == extended("sha256", honest)
    with pytest.raises(EvidenceInvalid, match="an entry whose text is not the measured one"):
        event_log.agent_entries(events, 13, "sha256")


@pytest.mark.parametrize("text", [b"PullImage", b"a b", b"\xff\xff x y"])
def test_an_entry_that_is_none(text: bytes) -> None:
    events = event_log.parse(header("sha256") + event(13, 6, tagged(text), ["sha256"]))
    with pytest.raises(EvidenceInvalid, match="the event log has an entry that is not"):
        event_log.agent_entries(events, 13, "sha256")


@pytest.mark.parametrize("content", [b"{}", b"[]", b"x", b'{"digest":1}', b'"sha256:x"'])
def test_a_pull_without_a_digest(content: bytes) -> None:
    text = b"github.com/confidential-containers PullImage " + content
    events = event_log.parse(header("sha256") + event(13, 6, tagged(text), ["sha256"]))
    with pytest.raises(EvidenceInvalid, match="a PullImage without a digest"):
        event_log.pulled_images(event_log.agent_entries(events, 13, "sha256"))


def test_an_event_without_a_digest_of_the_register_s_kind() -> None:
    log = header("sha1", "sha256") + event(13, 6, b"x", ["sha1"])
    with pytest.raises(EvidenceInvalid, match="an event without a sha256 digest"):
        event_log.replay(event_log.parse(log), 13, "sha256")


GOOD = header("sha256") + event(1, 4, b"abc", ["sha256"])


@pytest.mark.parametrize(
    ("forge", "said"),
    [
        (lambda: b"", "cut off"),
        (lambda: GOOD[:-1], "cut off"),
        (lambda: GOOD[: len(header("sha256")) + 9], "cut off"),
        (lambda: b"\0" * 8 + GOOD, "its specification's id"),
        (lambda: header() + event(1, 4, b"", ["sha256"]), "a digest of kind 0xb"),
        (lambda: header("sha256") + event(1, 4, b"", ["sha384"]), "a digest of kind 0xc"),
        (lambda: header("sha256") + struct.pack("<III", 1, 4, 2**32 - 1), "cut off"),
        (
            lambda: (
                header("sha256")
                + struct.pack("<III", 1, 4, 2)
                + 2 * (struct.pack("<H", 0xB) + bytes(32))
            ),
            "a digest of kind 0xb",
        ),
        (
            lambda: header("sha256") + struct.pack("<IIII", 1, 4, 0, 2**32 - 1) + b"abc",
            "cut off",
        ),
        (lambda: header("sha256").replace(b"\x0b\0\x20\0", b"\x0b\0\x21\0"), "digests of 33 bytes"),
        (
            lambda: header("sha256").replace(b"\x0b\0\x20\0", b"\x99\0\xff\0"),
            "digests of 255 bytes",
        ),
        (
            lambda: header("sha256") + (bounds.LOG_EVENTS + 1) * event(1, 4, b"", ["sha256"]),
            "more than 4096 events",
        ),
    ],
)
def test_what_is_no_log(forge: Callable[[], bytes], said: str) -> None:
    assert event_log.parse(GOOD)
    with pytest.raises(EvidenceInvalid, match=said):
        event_log.parse(forge())


def test_a_device_path_without_an_end() -> None:
    load = bytes(32) + b"\x04\x04\x00\x00" + b"x" * 20
    log = header("sha256") + event(2, 0x80000003, load, ["sha256"])
    assert event_log.claims(event_log.parse(log))[0]["details"] == {"device_paths": []}
