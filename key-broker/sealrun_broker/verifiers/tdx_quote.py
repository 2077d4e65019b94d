"""The TDX quote: its fields, and its signatures up to Intel's root.

Layout: Intel's TDX DCAP quoting library API, appendix A: versions 4 (A.3) and 5 (A.4), with ECDSA
P-256 and the PCK certificate chain in the quote. Rules, in order:

1. The PCK chain ends in the pinned root.
2. The PCK signed the quoting enclave's report.
3. That report's data is SHA-256(attestation key, authentication data).
4. The attestation key signed the quote's header and body.

What this does not say is whether platform and quoting enclave are up to date: tdx_tcb.py.
"""

import hashlib
import hmac
import struct
from collections.abc import Collection
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from sealrun_broker.verifiers.binding import EvidenceInvalid

# SHA-256 of the SubjectPublicKeyInfo of Intel's SGX Root CA: the anchor of all trust in quotes.
PINNED_ROOTS: Final = frozenset(
    {"a0af031289f5d5d4132f9186068a7fc13628633ba235777472e29b6b6c67a49e"}
)
TEE_TDX: Final = 0x81

_HEADER: Final = struct.Struct("<HHI4s16s20s")
_ECDSA_P256: Final = 2
_TDX_1_0, _TDX_1_5 = 2, 3  # body types of version 5
_QE_REPORT_DATA, _PCK_CHAIN = 6, 5  # kinds of certification data
_QE_REPORT_BYTES: Final = 384
_CHAIN_LENGTH: Final = range(2, 6)
_FIELDS_1_0: Final[tuple[tuple[str, int], ...]] = (
    ("tcb_svn", 16),
    ("mr_seam", 48),
    ("mrsigner_seam", 48),
    ("seam_attributes", 8),
    ("td_attributes", 8),
    ("xfam", 8),
    ("mr_td", 48),
    ("mr_config_id", 48),
    ("mr_owner", 48),
    ("mr_owner_config", 48),
    ("rtmr_0", 48),
    ("rtmr_1", 48),
    ("rtmr_2", 48),
    ("rtmr_3", 48),
    ("report_data", 64),
)
_FIELDS_1_5: Final = (*_FIELDS_1_0, ("tee_tcb_svn2", 16), ("mr_servicetd", 48))


class Quote(NamedTuple):
    """header, body: fields by the names of Trustee's claims. signed: the bytes under `signature`.

    descriptor: type and size of the body, as version 5 has them; empty in version 4."""

    version: int
    header: dict[str, bytes]
    descriptor: bytes
    body: dict[str, bytes]
    signed: bytes
    signature: bytes
    attestation_key: bytes
    qe_report: bytes
    qe_signature: bytes
    qe_authentication: bytes
    pck_chain: bytes


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        part = self.data[self.at : self.at + count]
        if len(part) != count:
            raise EvidenceInvalid("the quote is cut off")
        self.at += count
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")


def parse(data: bytes) -> Quote:
    """Raises EvidenceInvalid."""
    reader = _Reader(data)
    version, key_kind, tee, reserved, vendor, user = _HEADER.unpack(reader.take(_HEADER.size))
    if version not in (4, 5):
        raise EvidenceInvalid(f"the quote's version {version} is neither 4 nor 5")
    if tee != TEE_TDX or key_kind != _ECDSA_P256:
        raise EvidenceInvalid("the quote is not of TDX, signed with ECDSA P-256")
    descriptor, fields = b"", _FIELDS_1_0
    if version == 5:
        descriptor = reader.take(6)
        fields = _body_fields(descriptor)
    body = {name: reader.take(size) for name, size in fields}
    signed = data[: reader.at]
    reader = _Reader(reader.take(reader.number(4)))
    signature, attestation_key = reader.take(64), reader.take(64)
    certification = _certification(reader, _QE_REPORT_DATA)
    qe_report, qe_signature = certification.take(_QE_REPORT_BYTES), certification.take(64)
    qe_authentication = certification.take(certification.number(2))
    chain = _certification(certification, _PCK_CHAIN)
    return Quote(
        version=version,
        header={
            "version": version.to_bytes(2, "little"),
            "att_key_type": key_kind.to_bytes(2, "little"),
            "tee_type": tee.to_bytes(4, "little"),
            "reserved": reserved,
            "vendor_id": vendor,
            "user_data": user,
        },
        descriptor=descriptor,
        body=body,
        signed=signed,
        signature=signature,
        attestation_key=attestation_key,
        qe_report=qe_report,
        qe_signature=qe_signature,
        qe_authentication=qe_authentication,
        pck_chain=chain.data,
    )


def _body_fields(descriptor: bytes) -> tuple[tuple[str, int], ...]:
    kind, size = struct.unpack("<HI", descriptor)
    fields = {_TDX_1_0: _FIELDS_1_0, _TDX_1_5: _FIELDS_1_5}.get(kind)
    if fields is None or size != sum(length for _, length in fields):
        raise EvidenceInvalid(f"the quote's body of type {kind} and {size} bytes is unknown")
    return fields


def _certification(reader: _Reader, kind: int) -> _Reader:
    found, size = reader.number(2), reader.number(4)
    if found != kind:
        raise EvidenceInvalid(f"the quote's certification data is of kind {found}, not {kind}")
    return _Reader(reader.take(size))


def verify_signatures(quote: Quote, now: float, roots: Collection[str] = PINNED_ROOTS) -> None:
    """Rules 1 to 4. now: Unix time. roots: pins as in PINNED_ROOTS. Raises EvidenceInvalid."""
    verify_signed(quote, platform_key(quote.pck_chain, now, roots))


def verify_signed(quote: Quote, pck: ec.EllipticCurvePublicKey) -> None:
    """Rules 2 to 4, with the platform's key. Raises EvidenceInvalid."""
    if not _signed(pck, quote.qe_signature, quote.qe_report):
        raise EvidenceInvalid("the quoting enclave's report is not signed by the platform")
    bound = hashlib.sha256(quote.attestation_key + quote.qe_authentication).digest() + bytes(32)
    if not hmac.compare_digest(quote.qe_report[320:384], bound):
        raise EvidenceInvalid("the quoting enclave does not vouch for the attestation key")
    try:
        point = b"\4" + quote.attestation_key
        key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError as error:
        raise EvidenceInvalid("the quote's attestation key is no point of P-256") from error
    if not _signed(key, quote.signature, quote.signed):
        raise EvidenceInvalid("the quote's signature does not match")


def platform_key(
    pem: bytes, now: float, roots: Collection[str] = PINNED_ROOTS
) -> ec.EllipticCurvePublicKey:
    """Rule 1: the key that the chain's first certificate is for. Raises EvidenceInvalid."""
    try:
        return _platform_key(pem, now, roots)
    except (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        # Names, keys and extensions are read when they are asked for.
        raise EvidenceInvalid("the quote's certificate chain cannot be read") from error


def _platform_key(pem: bytes, now: float, roots: Collection[str]) -> ec.EllipticCurvePublicKey:
    chain = x509.load_pem_x509_certificates(pem.rstrip(b"\0"))
    if len(chain) not in _CHAIN_LENGTH or _fingerprint(chain[-1]) not in roots:
        raise EvidenceInvalid("the quote's certificate chain does not end in Intel's root")
    for certificate, issuer in zip(chain, [*chain[1:], chain[-1]], strict=True):
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begins.timestamp() <= now <= ends.timestamp():
            raise EvidenceInvalid("a certificate of the quote is not valid now")
        try:
            certificate.verify_directly_issued_by(issuer)
        except InvalidSignature as error:
            raise EvidenceInvalid("the quote's certificate chain is broken") from error
        if not _is_authority(issuer):
            raise EvidenceInvalid("the quote's certificate chain has an issuer that is none")
    key = chain[0].public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise EvidenceInvalid("the platform's certificate has no P-256 key")
    return key


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    return constraints.value.ca


def _fingerprint(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _signed(key: ec.EllipticCurvePublicKey, raw: bytes, data: bytes) -> bool:
    r, s = (int.from_bytes(half, "big") for half in (raw[:32], raw[32:]))
    try:
        key.verify(encode_dss_signature(r, s), data, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
