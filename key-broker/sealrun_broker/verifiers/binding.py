"""What every verifier is given, gives back and raises, and how a digest fits a register.

A verifier takes evidence from whoever connects: bounded input, typed decoding, no exception but
EvidenceInvalid.
"""

import hashlib
import hmac
from typing import Any, Final, NamedTuple

KINDS: Final = ("sample", "snp", "tdx", "tpm")
ALGORITHMS: Final = ("sha256", "sha384", "sha512")


class EvidenceInvalid(Exception):
    """Not evidence, not genuine, or not about this request; the text says why, in one line."""


class Expected(NamedTuple):
    """What the evidence must be bound to.

    report_data: the hash of nonce and key, 32 to 64 bytes. init_data: the exact text, which the hardware
    must vouch for; empty where the VM must have none; None where nothing is to be compared, as for a
    client that sent none.
    now: Unix time, for the validity of certificates.
    """

    report_data: bytes
    init_data: bytes | None
    now: float


class Verified(NamedTuple):
    """Genuine evidence. claims: in the names of Trustee's verifier (kbs-protocol, 5.2 and 7).

    images: digests of the images that the guest pulled, as an event log says that was replayed into
    the hardware's register; None where there is no such log. missing: what could not be looked into,
    one line each, so that a verdict can name it.
    """

    claims: dict[str, Any]
    images: tuple[str, ...] | None = None
    missing: tuple[str, ...] = ()


def fitted(digest: bytes, size: int) -> bytes:
    """`digest` in a field of `size` bytes: cut at the end, or padded with zeros."""
    return digest[:size].ljust(size, b"\0")


def check_report_data(field: bytes, expected: Expected, name: str) -> None:
    """Raises EvidenceInvalid where `field` is not the expected report data, fitted."""
    if not hmac.compare_digest(field, fitted(expected.report_data, len(field))):
        raise EvidenceInvalid(f"{name} is not the hash of this session's nonce and key")


def check_init_data(field: bytes, expected: Expected, name: str) -> None:
    """Raises EvidenceInvalid where init-data was sent that is not the one in `field`.

    Which of the three algorithms the text names is not looked at: the text comes from a client and
    is not worth parsing for it (docs/decisions.md)."""
    if expected.init_data is None:
        return
    if not expected.init_data:
        if any(field):
            raise EvidenceInvalid(f"{name} says that there is init-data")
        return
    digests = (hashlib.new(algorithm, expected.init_data).digest() for algorithm in ALGORITHMS)
    if not any(hmac.compare_digest(field, fitted(digest, len(field))) for digest in digests):
        raise EvidenceInvalid(f"{name} is not the digest of the init-data")
