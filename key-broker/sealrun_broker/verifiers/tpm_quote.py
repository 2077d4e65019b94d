"""What a TPM signs when it quotes: TPMS_ATTEST, and the signature's envelope TPMT_SIGNATURE.

TPM 2.0 Library, part 2: 10.12.8 (TPMS_ATTEST), 10.12.1 (TPMS_QUOTE_INFO), 10.6.1
(TPMS_PCR_SELECTION), 11.3.4 (TPMT_SIGNATURE). All numbers are big-endian.
"""

from typing import Final, NamedTuple

from sealrun_broker.verifiers.binding import EvidenceInvalid
from sealrun_broker.verifiers.reader import Reader

SHA256: Final = 0x000B
PCRS: Final = 24

_GENERATED: Final = b"\xffTCG"  # made by a TPM: nothing else that its key signs begins so
_ATTEST_QUOTE: Final = 0x8018
_RSASSA: Final = 0x0014
_BANKS: Final = 16


class Quote(NamedTuple):
    """extra_data: what the caller gave to be signed. selection: the PCRs of the SHA-256 bank that
    `pcr_digest` (SHA-256 of their values, in order) is over."""

    extra_data: bytes
    selection: tuple[int, ...]
    pcr_digest: bytes


def _read(data: bytes) -> Reader:
    return Reader(data, "the quote", "big")


def _end(reader: Reader) -> None:
    if reader.ahead(1):
        raise EvidenceInvalid("the quote is followed by more bytes")


def parse(message: bytes) -> Quote:
    """TPMS_ATTEST of a quote over the SHA-256 bank, and over no other. Raises EvidenceInvalid."""
    reader = _read(message)
    if reader.take(4) != _GENERATED or reader.number(2) != _ATTEST_QUOTE:
        raise EvidenceInvalid("what the TPM signed is not a quote")
    reader.sized()  # the key's qualified name
    extra_data = reader.sized()
    reader.take(17 + 8)  # clock, resets, restarts, safe; firmware version
    banks = reader.number(4)
    if banks > _BANKS:
        raise EvidenceInvalid("the quote selects too many banks")
    chosen: dict[int, tuple[int, ...]] = {}
    for _ in range(banks):
        algorithm, bitmap = reader.number(2), reader.take(reader.number(1))
        pcrs = tuple(i for i in range(8 * len(bitmap)) if bitmap[i // 8] >> i % 8 & 1)
        if pcrs and algorithm in chosen:
            raise EvidenceInvalid("the quote selects a bank twice")
        if pcrs:
            chosen[algorithm] = pcrs
    pcr_digest = reader.sized()
    _end(reader)
    if set(chosen) != {SHA256}:
        raise EvidenceInvalid("the quote is not over the SHA-256 bank alone")
    return Quote(extra_data, chosen[SHA256], pcr_digest)


def rsassa_signature(signature: bytes) -> bytes:
    """The RSASSA-PKCS1-v1_5 signature with SHA-256 in a TPMT_SIGNATURE. Raises EvidenceInvalid."""
    reader = _read(signature)
    if reader.number(2) != _RSASSA or reader.number(2) != SHA256:
        raise EvidenceInvalid("the quote is not signed with RSASSA and SHA-256")
    raw = reader.sized()
    _end(reader)
    return raw
