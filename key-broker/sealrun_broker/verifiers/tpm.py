"""TPM evidence (kbs-protocol, 7). Rules, in order:

1. The attestation key signed the message, and the message is a quote of a TPM's.
2. Its extra data is the expected hash: its first 32 bytes, or all of it and zeros, as older
   attesters have it.
3. It is over all 24 PCRs of the SHA-256 bank, and the values that were sent have its digest.
4. PCR 8 was extended once, with the SHA-256 digest of the init-data that was sent.
5. The event log, where there is one, replays into the PCR that the agent writes, and into every other
   one that it has events of.

Whose key it is, is not said by any of this: `ak_public` is a claim, and counts only where it is
among the reference values `trusted_aks`.
"""

import binascii
import hashlib
import hmac
from typing import Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from sealrun_broker.verifiers import event_log, tpm_quote
from sealrun_broker.verifiers.binding import (
    EvidenceInvalid,
    Expected,
    Verified,
    check_init_data,
    check_report_data,
)
from sealrun_broker.verifiers.event_log import Event

INIT_DATA_PCR: Final = 8
AGENT_PCR: Final = 13  # PCR 17, CoCo's, can be extended from a higher locality only
_REPORT_DATA_BYTES: Final = 32
_RSA_BITS: Final = range(2048, 4097)


class _Quote(msgspec.Struct, frozen=True):
    signature: str
    message: str
    pcrs: list[str]


class _Evidence(msgspec.Struct, frozen=True):
    tpm_quote: _Quote
    ak_public: str
    event_log: str = ""


def verify(evidence: object, expected: Expected) -> Verified:
    """Check the evidence's JSON. Raises EvidenceInvalid."""
    try:
        read = msgspec.convert(evidence, _Evidence)
        message, signature = _base64(read.tpm_quote.message), _base64(read.tpm_quote.signature)
        pcrs = [bytes.fromhex(pcr) for pcr in read.tpm_quote.pcrs]
        log = _base64(read.event_log)
    except ValueError as error:
        raise EvidenceInvalid(str(error)) from error
    _verify_signature(message, signature, _base64_key(read.ak_public))
    quote = tpm_quote.parse(message)
    if len(quote.extra_data) < _REPORT_DATA_BYTES:
        raise EvidenceInvalid("the quote is over less than 32 bytes of report data")
    check_report_data(quote.extra_data, expected, "the quote's extra data")
    _check_pcrs(quote, pcrs)
    _check_init_data(pcrs[INIT_DATA_PCR], expected)
    claims: dict[str, Any] = {
        "init_data": pcrs[INIT_DATA_PCR].hex(),
        "report_data": quote.extra_data.hex(),
        "ak_public": read.ak_public,
    }
    claims |= {f"pcr{number:02}": pcr.hex() for number, pcr in enumerate(pcrs)}
    if not log:
        return Verified(claims, None, ("there is no event log",))
    events = event_log.parse(log)
    _match(events, pcrs)
    entries = event_log.agent_entries(events, AGENT_PCR, "sha256")
    claims["uefi_event_logs"] = event_log.claims(events)
    return Verified(claims, event_log.pulled_images(entries))


def _match(events: tuple[Event, ...], pcrs: list[bytes]) -> None:
    """The agent's PCR, and every other one that the log says anything about."""
    for number in sorted({AGENT_PCR} | {event.register for event in events}):
        if number >= len(pcrs) or event_log.replay(events, number, "sha256") != pcrs[number]:
            raise EvidenceInvalid(f"the event log does not replay into PCR {number}")


def _base64(text: str) -> bytes:
    return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)


def _base64_key(text: str) -> rsa.RSAPublicKey:
    try:
        key = load_der_public_key(_base64(text))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EvidenceInvalid("the attestation key is not a public key") from error
    if not isinstance(key, rsa.RSAPublicKey) or key.key_size not in _RSA_BITS:
        raise EvidenceInvalid("the attestation key is not an RSA key of 2048 to 4096 bits")
    return key


def _verify_signature(message: bytes, signature: bytes, key: rsa.RSAPublicKey) -> None:
    raw = tpm_quote.rsassa_signature(signature)
    try:
        key.verify(raw, message, padding.PKCS1v15(), SHA256())
    except InvalidSignature as error:
        raise EvidenceInvalid("the quote's signature does not match") from error


def _check_pcrs(quote: tpm_quote.Quote, pcrs: list[bytes]) -> None:
    if quote.selection != tuple(range(tpm_quote.PCRS)):
        raise EvidenceInvalid("the quote is not over all 24 PCRs")
    if len(pcrs) != tpm_quote.PCRS or any(len(pcr) != 32 for pcr in pcrs):
        raise EvidenceInvalid("the PCRs that were sent are not 24 values of 32 bytes")
    if not hmac.compare_digest(hashlib.sha256(b"".join(pcrs)).digest(), quote.pcr_digest):
        raise EvidenceInvalid("the PCRs that were sent are not those of the quote")


def _check_init_data(pcr: bytes, expected: Expected) -> None:
    """Extended once, with a digest of 32 bytes: for a TPM, init-data is hashed with SHA-256."""
    if not expected.init_data:
        check_init_data(pcr, expected, f"PCR {INIT_DATA_PCR}")
        return
    digest = hashlib.sha256(expected.init_data).digest()
    if not hmac.compare_digest(hashlib.sha256(bytes(32) + digest).digest(), pcr):
        raise EvidenceInvalid(f"PCR {INIT_DATA_PCR} is not the digest of the init-data")
