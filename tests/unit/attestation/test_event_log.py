"""The agent's event log: as CoCo writes it, and readable for the broker."""

import hashlib

import pytest
from fixtures.vectors import vector
from sealrun_agent.attestation import event_log
from sealrun_broker.verifiers import event_log as verifier
from simulators.event_log import END, event, header


def test_an_entry_is_coco_s() -> None:
    """The digests of guest-components' own test."""
    digests = {
        "sha256": "46df8dacf00a07d34a83cdf56d7978697790787cf2ba1432ef7c38f22cd96351",
        "sha384": "dad5f0e226318ffa9839b75a472c6aa7fdb5834949d0a0a2",
    }
    for algorithm, digest in digests.items():
        entry = event_log.entry(4, algorithm, "domain", "operation", "content")
        assert entry.digest.hex().startswith(digest)


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_the_broker_reads_what_the_agent_wrote(algorithm: str) -> None:
    entries = [
        event_log.entry(13, algorithm, "sealrun", "InitData", '{"digest":"x"}'),
        event_log.entry(13, algorithm, event_log.DOMAIN, "PullImage", '{"digest":"sha256:1"}'),
    ]
    log = event_log.joined(b"", algorithm, b"".join(entry.data for entry in entries))
    events = verifier.parse(log)
    value = bytes(hashlib.new(algorithm).digest_size)
    for entry in entries:
        value = hashlib.new(algorithm, value + entry.digest).digest()
    assert verifier.replay(events, 13, algorithm) == value
    read = verifier.agent_entries(events, 13, algorithm)
    assert [entry.operation for entry in read] == ["InitData", "PullImage"]
    assert verifier.pulled_images(read) == ("sha256:1",)


def test_nothing_measured_is_no_log() -> None:
    assert event_log.joined(b"", "sha256", b"") == b""
    assert event_log.joined(bytes(65536), "sha384", b"") == b""
    assert event_log.joined(b"\xff" * 100, "sha384", b"") == b""


@pytest.mark.parametrize("padding", [b"", END, bytes(8), bytes(4096), b"\xff" * 4096])
def test_the_firmware_s_padding_is_left_out(padding: bytes) -> None:
    log = header("sha1", "sha256", "sha384") + event(1, 4, b"x" * 300, ["sha1", "sha384"])
    entry = event_log.entry(4, "sha384", "a", "b", "c")
    joined = event_log.joined(log + padding, "sha384", entry.data)
    assert joined == log + entry.data + END
    assert len(verifier.parse(joined)) == 2


def test_a_recorded_ccel_is_continued() -> None:
    entry = event_log.entry(4, "sha384", "a", "b", "c")
    events = verifier.parse(event_log.joined(vector("tdx/ccel_ovmf.bin"), "sha384", entry.data))
    assert len(events) == 21
    assert verifier.replay(events, 1, "sha384").hex().startswith("8566f998798db094")
    assert verifier.replay(events, 4, "sha384") == hashlib.sha384(bytes(48) + entry.digest).digest()


GOOD = header("sha256") + event(1, 4, b"abc", ["sha256"])


@pytest.mark.parametrize(
    "log",
    [
        GOOD[:-1],
        GOOD[:40],
        b"\1" * 100,
        header("sha256") + b"\1\0\0\0\4\0\0\0\1\0\0\0\x99\0" + bytes(64),
        header("sha256") + b"\1\0\0\0\4\0\0\0\xff\xff\xff\xff\x0b\0" + bytes(64),
        header("sha256") + b"\1\0\0\0\4\0\0\0\0\0\0\0\xff\xff\xff\x7f",
    ],
)
def test_a_log_that_cannot_be_read(log: bytes) -> None:
    with pytest.raises(ValueError, match="the firmware's event log"):
        event_log.trimmed(log)
