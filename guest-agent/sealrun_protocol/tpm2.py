"""The few TPM 2.0 commands that attestation takes, as bytes. No I/O.

TPM 2.0 Library, part 3 (commands) and part 2 (structures). All numbers are big-endian. Host and guest
share it for the template of the attestation key: a primary key of the endorsement hierarchy, which a
TPM makes anew from its seed whenever it is asked, always the same. So the host's operator can say
which key a guest will have, without the guest.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

PCRS: Final = 24
SHA256: Final = 0x000B
DIGEST_BYTES: Final = 32
RESPONSE_BYTES: Final = 4096  # the longest that a TPM gives

_SESSIONS, _NO_SESSIONS = 0x8002, 0x8001
_PASSWORD: Final = struct.pack(">IHBH", 0x40000009, 0, 0, 0)  # TPM_RS_PW, an empty one
_ENDORSEMENT: Final = 0x4000000B
_NULL: Final = 0x0010
_RSA, _RSASSA = 0x0001, 0x0014
_KEY_BITS: Final = 2048
_HEADER: Final = struct.Struct(">HII")
HEADER_BYTES: Final = _HEADER.size

_STARTUP: Final = 0x144
_SELF_TEST: Final = 0x143
_CREATE_PRIMARY: Final = 0x131
_FLUSH_CONTEXT: Final = 0x165
_PCR_EXTEND: Final = 0x182
_PCR_READ: Final = 0x17E
_QUOTE: Final = 0x158
_INITIALIZED: Final = 0x100  # TPM_RC_INITIALIZE: it was started up before
_RETRY: Final = 0x922  # TPM_RC_RETRY
AGAIN: Final = _HEADER.pack(_NO_SESSIONS, _HEADER.size, _RETRY)
"""The answer upon which a command is to be sent again, as it was (part 2, 6.6.3)."""

# fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA, restricted, sign: a key that was
# made in this TPM, cannot leave it, and signs nothing but what the TPM itself attests.
_ATTRIBUTES: Final = 0x00050472
# TPMT_PUBLIC: RSA, named by SHA-256, no policy, RSASSA with SHA-256, no symmetric part, unique empty.
_TEMPLATE: Final = (
    struct.pack(">HHIH", _RSA, SHA256, _ATTRIBUTES, 0)
    + struct.pack(">HHHHI", _NULL, _RSASSA, SHA256, _KEY_BITS, 0)
    + struct.pack(">H", 0)
)
# The DER of SubjectPublicKeyInfo around a modulus of 2048 bits and the exponent 65537 (RFC 8017).
_SPKI_BEFORE: Final = bytes.fromhex(
    "30820122300d06092a864886f70d01010105000382010f003082010a0282010100"
)
_SPKI_BEHIND: Final = bytes.fromhex("0203010001")


class TpmError(Exception):
    """The TPM refused a command, or its answer cannot be read; the text says which, in one line."""


class Key(NamedTuple):
    """A key that was loaded. handle: to be flushed. public: DER of its SubjectPublicKeyInfo."""

    handle: int
    public: bytes


class Quote(NamedTuple):
    """message: TPMS_ATTEST, as it was signed. signature: TPMT_SIGNATURE."""

    message: bytes
    signature: bytes


def startup() -> bytes:
    """TPM2_Startup(CLEAR), which resets the PCRs; answered by `started`."""
    return _command(_STARTUP, bytes(2))


def started(response: bytes) -> None:
    """Raises TpmError, but not where it had been started up before."""
    if _code(response) != _INITIALIZED:
        done(response, "start up")


def self_test() -> bytes:
    """TPM2_SelfTest of all that was not tested yet; answered by `done`."""
    return _command(_SELF_TEST, b"\0")


def length(message: bytes) -> int:
    """The length that a command or an answer has by its first HEADER_BYTES."""
    total: int = _HEADER.unpack_from(message)[1]
    return total


def create_attestation_key() -> bytes:
    """TPM2_CreatePrimary with the template; answered by `created`."""
    body = struct.pack(">HHH", 4, 0, 0)  # TPM2B_SENSITIVE_CREATE: no password, no data
    body += _sized(_TEMPLATE) + struct.pack(">HI", 0, 0)  # no outside information, no PCRs
    return _command(_CREATE_PRIMARY, body, handles=(_ENDORSEMENT,), authorized=True)


def created(response: bytes) -> Key:
    """Raises TpmError."""
    reader = _answer(response, "create the attestation key")
    handle = reader.number(4)
    reader.number(4)  # the length of the parameters
    public = reader.sized()
    head = _TEMPLATE[:-2]
    modulus = public[len(head) + 2 :]
    if public[: len(head)] != head or len(modulus) != _KEY_BITS // 8 or modulus[0] < 0x80:
        raise TpmError("the TPM made another key than it was asked for")
    return Key(handle, _SPKI_BEFORE + modulus + _SPKI_BEHIND)


def flush(handle: int) -> bytes:
    """TPM2_FlushContext; answered by `done`."""
    return _command(_FLUSH_CONTEXT, struct.pack(">I", handle))


def quote(handle: int, data: bytes) -> bytes:
    """TPM2_Quote over all PCRs of the SHA-256 bank; data: 32 bytes to be signed with them. Answered by
    `quoted`."""
    body = _sized(data) + struct.pack(">H", _NULL) + _selection(range(PCRS))
    return _command(_QUOTE, body, handles=(handle,), authorized=True)


def quoted(response: bytes) -> Quote:
    """Raises TpmError."""
    reader = _answer(response, "quote")
    size = reader.number(4)
    parameters = _Reader(reader.take(size))
    message = parameters.sized()
    return Quote(message, parameters.rest())


def read_pcrs(pcrs: Sequence[int]) -> bytes:
    """TPM2_PCR_Read of the SHA-256 bank; a TPM gives some of them, up to eight. Answered by `pcrs`."""
    return _command(_PCR_READ, _selection(pcrs))


def pcrs(response: bytes) -> Mapping[int, bytes]:
    """The values of those PCRs that it gave. Raises TpmError."""
    reader = _answer(response, "read its PCRs")
    reader.number(4)  # the update counter
    given: list[int] = []
    for _ in range(reader.number(4)):
        bank, bitmap = reader.number(2), reader.take(reader.number(1))
        if bank != SHA256:
            raise TpmError("the TPM gave PCRs of another bank than SHA-256")
        given += [i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1]
    values = [reader.sized() for _ in range(reader.number(4))]
    if len(values) != len(given) or any(len(value) != DIGEST_BYTES for value in values):
        raise TpmError("the TPM has no SHA-256 bank of PCRs")
    return dict(zip(given, values, strict=True))


def extend(pcr: int, digest: bytes) -> bytes:
    """TPM2_PCR_Extend of the SHA-256 bank with a digest of 32 bytes; answered by `done`."""
    body = struct.pack(">IH", 1, SHA256) + digest
    return _command(_PCR_EXTEND, body, handles=(pcr,), authorized=True)


def done(response: bytes, what: str) -> None:
    """Raises TpmError where a command without an answer failed. what: as in "cannot …"."""
    _answer(response, what)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise TpmError("the TPM's answer is cut off")
        self._at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self) -> bytes:
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def _sized(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _selection(pcrs: Sequence[int]) -> bytes:
    """TPML_PCR_SELECTION of one bank."""
    bitmap = sum(1 << pcr for pcr in pcrs).to_bytes(PCRS // 8, "little")
    return struct.pack(">IHB", 1, SHA256, len(bitmap)) + bitmap


def _command(
    code: int, parameters: bytes, *, handles: Sequence[int] = (), authorized: bool = False
) -> bytes:
    tag = _SESSIONS if authorized else _NO_SESSIONS
    body = b"".join(struct.pack(">I", handle) for handle in handles)
    if authorized:
        body += struct.pack(">I", len(_PASSWORD)) + _PASSWORD
    body += parameters
    return _HEADER.pack(tag, _HEADER.size + len(body), code) + body


def _code(response: bytes) -> int:
    if len(response) < _HEADER.size:
        raise TpmError("the TPM's answer is cut off")
    code: int = _HEADER.unpack_from(response)[2]
    return code


def _answer(response: bytes, what: str) -> _Reader:
    if code := _code(response):
        raise TpmError(f"the TPM cannot {what}: it answers 0x{code:x}")
    reader = _Reader(response)
    reader.take(_HEADER.size)
    if length(response) != len(response):
        raise TpmError("the TPM's answer is cut off")
    return reader
