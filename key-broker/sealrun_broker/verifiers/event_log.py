"""Event logs in the TCG's crypto-agile form: read, replayed, and what of them becomes claims.

TCG PC Client Platform Firmware Profile, 9.2.2 (TCG_PCR_EVENT2) and 9.4.5.1 (Spec ID event); ACPI's
CCEL has the same form. The agent's own entries (AAEL) are events of type EV_EVENT_TAG in it
(kbs-protocol, 9).

A register vouches for the digests of the log, not for its data. An entry of the agent counts only
where the digest is that of its data; of a firmware's event the data is a label.
"""

import hashlib
import struct
from collections.abc import Iterable
from typing import Any, Final, NamedTuple

import msgspec

from sealrun_broker import bounds
from sealrun_broker.verifiers.binding import EvidenceInvalid
from sealrun_broker.verifiers.reader import Reader

EV_NO_ACTION: Final = 0x3
EV_EVENT_TAG: Final = 0x6
EV_EFI_BOOT_SERVICES_APPLICATION: Final = 0x80000003
AAEL_TAG: Final = 0x4141454C
DOMAIN: Final = "github.com/confidential-containers"
PULL_IMAGE: Final = "PullImage"

_ALGORITHMS: Final = {0x4: "sha1", 0xB: "sha256", 0xC: "sha384", 0xD: "sha512"}
_NAMES: Final = {
    0x0: "EV_PREBOOT_CERT",
    0x1: "EV_POST_CODE",
    EV_NO_ACTION: "EV_NO_ACTION",
    0x4: "EV_SEPARATOR",
    0x5: "EV_ACTION",
    EV_EVENT_TAG: "EV_EVENT_TAG",
    0x7: "EV_S_CRTM_CONTENTS",
    0x8: "EV_S_CRTM_VERSION",
    0xA: "EV_PLATFORM_CONFIG_FLAGS",
    0xC: "EV_COMPACT_HASH",
    0xD: "EV_IPL",
    0xE: "EV_IPL_PARTITION_DATA",
    0x80000001: "EV_EFI_VARIABLE_DRIVER_CONFIG",
    0x80000002: "EV_EFI_VARIABLE_BOOT",
    EV_EFI_BOOT_SERVICES_APPLICATION: "EV_EFI_BOOT_SERVICES_APPLICATION",
    0x80000004: "EV_EFI_BOOT_SERVICES_DRIVER",
    0x80000005: "EV_EFI_RUNTIME_SERVICES_DRIVER",
    0x80000006: "EV_EFI_GPT_EVENT",
    0x80000007: "EV_EFI_ACTION",
    0x80000008: "EV_EFI_PLATFORM_FIRMWARE_BLOB",
    0x80000009: "EV_EFI_HANDOFF_TABLES",
    0x8000000A: "EV_EFI_PLATFORM_FIRMWARE_BLOB2",
    0x8000000B: "EV_EFI_HANDOFF_TABLES2",
    0x8000000C: "EV_EFI_VARIABLE_BOOT2",
    0x800000E0: "EV_EFI_VARIABLE_AUTHORITY",
}
_END: Final = (b"\0" * 8, b"\xff" * 8)
_STARTUP_LOCALITY: Final = b"StartupLocality\0"
_FILE_PATH: Final = (0x04, 0x04)  # UEFI device path: media, file path
_IMAGE_LOAD: Final = struct.Struct("<4Q")  # UEFI_IMAGE_LOAD_EVENT up to its device path


class Event(NamedTuple):
    """One entry. digests: by the algorithm's name."""

    register: int
    kind: int
    digests: dict[str, bytes]
    data: bytes


class AgentEntry(NamedTuple):
    """One entry of the agent's own log. content: JSON where it is JSON, else text."""

    domain: str
    operation: str
    content: Any


def _read(data: bytes) -> Reader:
    return Reader(data, "the event log", "little")


def _over(reader: Reader) -> bool:
    """At the end of the data, or at the mark that ends a log (the rest is padding)."""
    ahead = reader.ahead(8)
    return not ahead or ahead in _END


def parse(data: bytes) -> tuple[Event, ...]:
    """All events behind the first, which declares the algorithms. Raises EvidenceInvalid."""
    reader = _read(data)
    sizes = _declared(reader)
    events: list[Event] = []
    while not _over(reader):
        if len(events) == bounds.LOG_EVENTS:
            raise EvidenceInvalid(f"the event log has more than {bounds.LOG_EVENTS} events")
        register, kind = reader.number(4), reader.number(4)
        digests: dict[str, bytes] = {}
        for _ in range(reader.number(4)):
            algorithm = reader.number(2)
            if algorithm not in sizes or len(digests) == len(sizes):
                raise EvidenceInvalid(f"the event log has a digest of kind 0x{algorithm:x}")
            digest = reader.take(sizes[algorithm])
            if algorithm in _ALGORITHMS:
                digests[_ALGORITHMS[algorithm]] = digest
        events.append(Event(register, kind, digests, reader.take(reader.number(4))))
    return tuple(events)


def _declared(reader: Reader) -> dict[int, int]:
    """Digest sizes by algorithm, from the Spec ID event, which has the form of TPM 1.2's log."""
    reader.number(4)
    if reader.number(4) != EV_NO_ACTION:
        raise EvidenceInvalid("the event log does not begin with its specification's id")
    reader.take(20)
    header = _read(reader.take(reader.number(4)))
    header.take(24)  # signature, platform class, version: CoCo's own header has zeros there
    sizes = {}
    for _ in range(header.number(4)):
        algorithm, size = header.number(2), header.number(2)
        known = _ALGORITHMS.get(algorithm)
        if not 0 < size <= 64 or (known and hashlib.new(known).digest_size != size):
            raise EvidenceInvalid(f"the event log declares digests of {size} bytes")
        sizes[algorithm] = size
    return sizes


def replay(events: Iterable[Event], register: int, algorithm: str) -> bytes:
    """The value of a register that began as zeros (PCR 0: with the locality that the TPM was started
    from, where the log says it). Raises EvidenceInvalid where an event of the register has no digest of
    this algorithm."""
    value = bytes(hashlib.new(algorithm).digest_size)
    for event in events:
        if event.register != register:
            continue
        if event.kind == EV_NO_ACTION:
            if register == 0 and event.data[:-1] == _STARTUP_LOCALITY and not any(value):
                value = value[:-1] + event.data[-1:]
            continue
        digest = event.digests.get(algorithm)
        if digest is None:
            raise EvidenceInvalid(f"the event log has an event without a {algorithm} digest")
        value = hashlib.new(algorithm, value + digest).digest()
    return value


def agent_entries(events: Iterable[Event], register: int, algorithm: str) -> tuple[AgentEntry, ...]:
    """What the agent wrote down in `register`. Raises EvidenceInvalid where the digest of an entry
    is not that of its text."""
    entries = []
    for event in events:
        if event.register != register or event.kind != EV_EVENT_TAG:
            continue
        text = _tagged(event.data, AAEL_TAG)
        if text is None:
            continue
        if hashlib.new(algorithm, event.data).digest() != event.digests.get(algorithm):
            raise EvidenceInvalid("the event log has an entry whose text is not the measured one")
        entries.append(_entry(text))
    return tuple(entries)


def pulled_images(entries: Iterable[AgentEntry]) -> tuple[str, ...]:
    """The digests of all images that were pulled, in order. Raises EvidenceInvalid."""
    found = []
    for entry in entries:
        if (entry.domain, entry.operation) != (DOMAIN, PULL_IMAGE):
            continue
        digest = entry.content.get("digest") if isinstance(entry.content, dict) else None
        if not isinstance(digest, str):
            raise EvidenceInvalid("the event log has a PullImage without a digest")
        found.append(digest)
    return tuple(dict.fromkeys(found))


def claims(events: Iterable[Event]) -> list[dict[str, Any]]:
    """`uefi_event_logs`, without the raw data, which a token has no room for."""
    return [
        {
            "index": event.register,
            "type_name": _NAMES.get(event.kind, f"0x{event.kind:x}"),
            "digests": [
                {"alg": name.replace("sha", "SHA-"), "digest": digest.hex()}
                for name, digest in event.digests.items()
            ],
            "details": _details(event),
        }
        for event in events
    ]


def _details(event: Event) -> dict[str, Any]:
    if event.kind == EV_EVENT_TAG:
        text = _tagged(event.data)
        if text is None:
            return {}
        shown = text.decode("utf-8", "replace").replace("\0", "")
        details: dict[str, Any] = {"string": shown}
        if _tagged(event.data, AAEL_TAG) is not None:
            details |= {"unicode_name": "AAEL", "data": _entry(text)._asdict()}
        return details
    if event.kind == EV_EFI_BOOT_SERVICES_APPLICATION:
        return {"device_paths": _files(event.data)}
    return {}


def _tagged(data: bytes, tag: int | None = None) -> bytes | None:
    """The data of a TCG_PCClientTaggedEvent, if it is one, and of this tag."""
    if len(data) < 8 or (tag is not None and int.from_bytes(data[:4], "little") != tag):
        return None
    size = int.from_bytes(data[4:8], "little")
    return data[8 : 8 + size] if len(data) >= 8 + size else None


def _entry(text: bytes) -> AgentEntry:
    try:
        words = text.decode().rstrip("\n").split(" ", 2)
    except UnicodeDecodeError as error:
        raise EvidenceInvalid("the event log has an entry that is not text") from error
    if len(words) != 3:
        raise EvidenceInvalid("the event log has an entry that is not domain, operation, content")
    try:
        content = msgspec.json.decode(words[2])
    except (ValueError, RecursionError):
        content = words[2]
    return AgentEntry(words[0], words[1], content)


def _files(data: bytes) -> list[str]:
    """The file paths in the device path of a UEFI_IMAGE_LOAD_EVENT."""
    path = data[_IMAGE_LOAD.size :]
    found = []
    while len(path) >= 4:
        size = int.from_bytes(path[2:4], "little")
        if size < 4:
            break
        if (path[0], path[1]) == _FILE_PATH:
            name = path[4:size].decode("utf-16-le", "replace").rstrip("\0")
            found.append(f"File({name})")
        path = path[size:]
    return found
