"""What the host, its TPM and the containers hand to the agent's small decoders: our own error or a good
answer, in bounded time and size."""

import json
import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fixtures.hostile import changed, spliced
from hypothesis import given, settings
from hypothesis import strategies as st
from sealrun_agent.attestation import event_log, sealed_secret, snp
from sealrun_agent.attestation.tpm import TpmAttester
from sealrun_agent.errors import AttestError
from sealrun_agent.workload_api import RESOURCE, WorkloadApi
from sealrun_broker import sealing
from sealrun_protocol import limits, tpm2
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import APIS
from simulators.event_log import event, header

# Each example that takes long fails by a time-out of its own; the machine may be busy with others.
bounded = settings(max_examples=80, deadline=None)

# --- sealed secrets ------------------------------------------------------------------------------

PRIVATE, PUBLIC = sealing.new_signer()
WORD, SEALING_KEY = b"the word", bytes(range(32))
BROKER = {
    "kbs:///a/b/signer": PUBLIC,
    "kbs:///a/b/word": WORD,
    "kbs:///a/b/key": SEALING_KEY,
}
VAULT = sealing.placed(sealing.vault("kbs:///a/b/word"), "PLACE")
ENVELOPE = sealing.envelope(WORD, SEALING_KEY, "kbs:///a/b/key")


def resource(uri: str) -> bytes:
    if uri not in BROKER:
        raise AttestError(ErrorCode.KEY_NOT_FOUND, "there is none")
    return BROKER[uri]


def signed(payload: dict[str, Any]) -> bytes:
    return sealing.sealed(payload, PRIVATE, "kbs:///a/b/signer").encode()


def opened(text: bytes, source: Callable[[str], bytes] = resource) -> bytes | None:
    try:
        return sealed_secret.unseal(text, "PLACE", source)
    except AttestError as error:
        assert error.code in (ErrorCode.SEAL_INVALID, ErrorCode.KEY_NOT_FOUND)
        assert str(error).isprintable()
        return None


@bounded
@given(spliced(signed(VAULT)) | spliced(signed(ENVELOPE)))
def test_sealed_secrets(text: bytes) -> None:
    assert opened(text) in (None, WORD)


@bounded
@given(changed(VAULT) | changed(ENVELOPE))
def test_payloads_that_are_signed(payload: dict[str, Any]) -> None:
    assert opened(signed(payload)) in (None, *BROKER.values())


@bounded
@given(spliced(PUBLIC), spliced(SEALING_KEY))
def test_keys_from_the_broker(signer: bytes, key: bytes) -> None:
    given = {**BROKER, "kbs:///a/b/signer": signer, "kbs:///a/b/key": key}
    assert opened(signed(ENVELOPE), given.__getitem__) in (None, WORD)


# --- the TPM -------------------------------------------------------------------------------------


def answer(body: bytes, tag: int = 0x8001) -> bytes:
    return struct.pack(">HII", tag, 10 + len(body), 0) + body


SELECTION = struct.pack(">IHB", 1, tpm2.SHA256, 3) + b"\xff\0\0"
PCR_VALUES = answer(
    bytes(4) + SELECTION + struct.pack(">I", 8) + (b"\0\x20" + bytes(32)) * 8,
)
QUOTED = answer(struct.pack(">I", 12) + b"\0\4ATTS" + b"SIGNED", 0x8002)
KEY = tpm2._TEMPLATE[:-2] + b"\1\0" + b"\x80" * 256
CREATED = answer(bytes(8) + struct.pack(">H", len(KEY)) + KEY, 0x8002)
READERS: dict[str, tuple[bytes, Callable[[bytes], object]]] = {
    "pcrs": (PCR_VALUES, tpm2.pcrs),
    "quoted": (QUOTED, tpm2.quoted),
    "created": (CREATED, tpm2.created),
    "done": (answer(b""), lambda data: tpm2.done(data, "do it")),
}


def test_the_honest_answers_are_taken() -> None:
    assert tpm2.pcrs(PCR_VALUES) == {number: bytes(32) for number in range(8)}
    assert tpm2.created(CREATED).handle == 0
    assert tpm2.quoted(QUOTED) == tpm2.Quote(b"ATTS", b"SIGNED")


@pytest.mark.parametrize("name", READERS)
@bounded
@given(data=st.data())
def test_answers_of_a_tpm(name: str, data: st.DataObject) -> None:
    honest, read = READERS[name]
    try:
        assert read(data.draw(spliced(honest))) is None or name != "done"
    except tpm2.TpmError as error:
        assert str(error).isprintable()


@bounded
@given(st.lists(spliced(PCR_VALUES) | spliced(QUOTED), min_size=1, max_size=4))
def test_a_tpm_that_answers_anything(answers: list[bytes]) -> None:
    """It is asked a bounded number of times, and no evidence comes of it."""
    asked = 0

    def transact(_command: bytes) -> bytes:
        nonlocal asked
        asked += 1
        assert asked <= 2 * tpm2.PCRS
        return answers[asked % len(answers)]

    with pytest.raises(AttestError) as caught:
        TpmAttester(transact, "/nonexistent").evidence(bytes(48))
    assert caught.value.code is ErrorCode.TEE_UNAVAILABLE


# --- what the host writes ------------------------------------------------------------------------

CERTIFICATES = [b"\x30\x01a", b"\x30\x02bb", b"\x30\x03ccc"]
ENTRY = struct.Struct("<16sII")
GUIDS = {
    kind: bytes.fromhex(guid)
    for kind, guid in (
        ("ARK", "c0b406a4a803495297433fb6014cd0ae"),
        ("ASK", "4ab7b379bbac4fe4a02f05aef327c782"),
        ("VCEK", "63da758de6644564adc5f4b93be8accd"),
        ("VLEK", "a8074bc2a25a483eaae639c045a0b8a1"),
        ("CRL", "92f81bc358114d3d97ffd19f88dc67ea"),
    )
}


def certificate_table() -> bytes:
    start, entries = ENTRY.size * (len(CERTIFICATES) + 1), b""
    for kind, data in zip(("VCEK", "ASK", "ARK"), CERTIFICATES, strict=True):
        entries += ENTRY.pack(GUIDS[kind], start, len(data))
        start += len(data)
    return entries + bytes(ENTRY.size) + b"".join(CERTIFICATES)


@bounded
@given(spliced(certificate_table()))
def test_tables_of_certificates(table: bytes) -> None:
    for found in snp.certificates(table):
        assert found["cert_type"] in GUIDS
        assert octets(found) in table


def octets(certificate: dict[str, Any]) -> bytes:
    return bytes(certificate["data"])


def test_a_table_that_names_its_whole_self_again_and_again() -> None:
    size = 16 * limits.KIB
    table = ENTRY.pack(GUIDS["VCEK"], 0, size) * (size // ENTRY.size + 1)
    (found,) = snp.certificates(table[:size])
    assert len(octets(found)) == size


@bounded
@given(spliced(header("sha256") + event(4, 0xD, b"boot", ["sha256"]) + bytes(16)))
def test_logs_of_the_firmware(log: bytes) -> None:
    try:
        trimmed = event_log.trimmed(log)
    except ValueError as error:
        assert str(error).isprintable()
    else:
        assert log.startswith(trimmed)


# --- what the workload asks ----------------------------------------------------------------------


class Source:
    """Has nothing."""

    tee = "none"

    def resource(self, uri: str) -> bytes:
        raise AttestError(ErrorCode.KEY_NOT_FOUND, uri)

    def token(self) -> bytes:
        return b"{}"

    def evidence(self, report_data: bytes) -> bytes:
        assert len(report_data) <= 64
        return b"{}"

    def record(self, _domain: str, _operation: str, _content: str) -> bool:
        return True


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    yield WorkloadApi(Source(), APIS, ("127.0.0.1", 0)).port


EVENT = json.dumps({"domain": "a", "operation": "b", "content": "c"}).encode()
REQUESTS = (
    b"GET /cdh/%s/a/b/c HTTP/1.1\r\nHost: x\r\n\r\n" % RESOURCE.encode(),
    b"GET /aa/evidence?runtime_data=QUFB&encoding=base64 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"POST /aa/aael HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(EVENT), EVENT),
)


@bounded
@given(data=st.data())
def test_requests_of_the_workload(port: int, data: st.DataObject) -> None:
    request = data.draw(st.sampled_from(REQUESTS).flatmap(spliced))
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while more := connection.recv(65536):
                received += more
        except ConnectionResetError:
            return  # what was left unread is answered by the kernel
    head, _, body = received.partition(b"\r\n\r\n")
    if received:  # nothing, where the request was cut off
        assert head.startswith(b"HTTP/1.1 ")
        assert int(head.split(b" ")[1]) in (200, 400, 404, 405, 413)
        assert f"Content-Length: {len(body)}".encode() in head
