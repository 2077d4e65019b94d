"""AMD's certificates: from a chip's or loader's key (VCEK, VLEK) to a pinned root (ARK).

The roots are pinned by the digest of their public key; certificates come from the evidence or from
the operator's collateral. Chain: ARK signs itself and the ASK (for a VLEK: the ASVK), which signs
the VEK. All RSA signatures are PSS with SHA-384 (AMD 57230, 1.3).
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import NameOID

from sealrun_broker.verifiers.binding import EvidenceInvalid
from sealrun_broker.verifiers.snp_report import Tcb

# SHA-256 of the root's SubjectPublicKeyInfo. They are the anchors of all trust in SNP evidence:
# compare them with AMD's key distribution service before a release.
PINNED_ROOTS: Final = {
    "9f056bee44377e29308cb5ffa895bdfb62d18881fa6bed8d6f075b0204089cb9": "Milan",
    "429a69c9422aa258ee4d8db5fcda9c6470ef15f8cd5a9cebd6cbc7d90b863831": "Genoa",
    "4f125410563a2ab9a50356f9243f6fe0b6f73de98603f53f90339c70e9d7ad08": "Turin",
}

_AMD: Final = "1.3.6.1.4.1.3704.1"
_HWID: Final = x509.ObjectIdentifier(f"{_AMD}.4")
# Boot loader, TEE, SNP, microcode: in the order of Tcb. FMC: Turin only.
_SPL: Final = tuple(x509.ObjectIdentifier(f"{_AMD}.3.{part}") for part in (1, 2, 3, 8))
_FMC: Final = x509.ObjectIdentifier(f"{_AMD}.3.9")
_HWID_BYTES: Final = {"Milan": 64, "Genoa": 64, "Turin": 8}


class EndorsementKey(NamedTuple):
    """A VCEK or VLEK whose chain was checked. hwid: of the chip; None for a VLEK, which has none."""

    key: ec.EllipticCurvePublicKey
    product: str
    tcb: Tcb
    hwid: bytes | None


def load(der: bytes) -> x509.Certificate:
    """Raises EvidenceInvalid."""
    try:
        with warnings.catch_warnings():
            # AMD's VCEKs have the serial number 0. cryptography says that it will not read such
            # certificates some day: its version is capped in pyproject.toml.
            warnings.simplefilter("ignore", CryptographyDeprecationWarning)
            return x509.load_der_x509_certificate(der)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise EvidenceInvalid("a certificate of the evidence cannot be read") from error


def load_pem(pem: bytes) -> list[x509.Certificate]:
    """All certificates of a file. Raises ValueError."""
    return x509.load_pem_x509_certificates(pem)


def endorse(
    vek: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    now: float,
    roots: Mapping[str, str] = PINNED_ROOTS,
) -> EndorsementKey:
    """Check the chain from `vek` by way of `authorities` (in any order) to a root of `roots`, which
    are as PINNED_ROOTS. Raises EvidenceInvalid."""
    try:
        return _endorse(vek, authorities, now, roots)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        # Names, keys and extensions are read when they are asked for.
        raise EvidenceInvalid("a certificate of the chain cannot be read") from error


def _endorse(
    vek: x509.Certificate,
    authorities: Sequence[x509.Certificate],
    now: float,
    roots: Mapping[str, str],
) -> EndorsementKey:
    issuer = _issuer(vek, authorities, "the chip's certificate")
    root = _issuer(issuer, authorities, "AMD's signing certificate")
    product = roots.get(fingerprint(root))
    if product is None:
        raise EvidenceInvalid("the certificate chain does not end in a root of AMD's")
    for certificate in (vek, issuer, root):
        if not _valid_at(certificate, now):
            raise EvidenceInvalid(f"the certificate {_common_name(certificate)} is not valid now")
    key = vek.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise EvidenceInvalid("the chip's certificate has no P-384 key")
    kind = _common_name(vek)
    if kind not in ("SEV-VCEK", "SEV-VLEK"):
        raise EvidenceInvalid("the chip's certificate is neither a VCEK nor a VLEK")
    hwid = _hwid(vek, product) if kind == "SEV-VCEK" else None
    return EndorsementKey(key, product, _tcb(vek, product), hwid)


def _issuer(
    certificate: x509.Certificate, authorities: Sequence[x509.Certificate], what: str
) -> x509.Certificate:
    """The one that signed it. By trial: names and key identifiers are only hints."""
    for authority in authorities:
        if authority.subject == certificate.issuer and signed(certificate, authority):
            return authority
    raise EvidenceInvalid(f"the issuer of {what} is neither in the evidence nor in the collateral")


def signed(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether the authority's key signed the certificate."""
    key = authority.public_key()
    if not isinstance(key, rsa.RSAPublicKey) or not _one_algorithm(certificate):
        return False
    pss = padding.PSS(padding.MGF1(SHA384()), salt_length=48)
    try:
        key.verify(certificate.signature, certificate.tbs_certificate_bytes, pss, SHA384())
    except InvalidSignature:
        return False
    return True


def _one_algorithm(certificate: x509.Certificate) -> bool:
    """Whether what it says unsigned of its signature's algorithm is what it says signed, byte by byte (RFC
    5280, 4.1.1.2). The signature is its end, behind a header of 4 bytes and the count of unused bits."""
    encoded, signed_part = certificate.public_bytes(Encoding.DER), certificate.tbs_certificate_bytes
    begins = encoded.index(signed_part) + len(signed_part)
    algorithm = encoded[begins : -(len(certificate.signature) + 5)]
    return bool(algorithm) and algorithm in signed_part


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of its public key, in hex, as roots are pinned."""
    key = certificate.public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def _valid_at(certificate: x509.Certificate, now: float) -> bool:
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begins.timestamp() <= now <= ends.timestamp()


def _common_name(certificate: x509.Certificate) -> str:
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def _extension(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> bytes:
    try:
        value = certificate.extensions.get_extension_for_oid(oid).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError) as error:
        raise EvidenceInvalid(f"the chip's certificate has no extension {oid}") from error
    assert isinstance(value, x509.UnrecognizedExtension)
    return value.value


def _tcb(certificate: x509.Certificate, product: str) -> Tcb:
    fmc = _integer(_extension(certificate, _FMC)) if product == "Turin" else None
    return Tcb(fmc, *(_integer(_extension(certificate, oid)) for oid in _SPL))


def _integer(der: bytes) -> int:
    """A DER INTEGER of 0 to 255: 02 01 nn, or 02 02 00 nn."""
    if der[:2] == b"\x02\x01" and len(der) == 3 and der[2] < 0x80:
        return der[2]
    if der[:3] == b"\x02\x02\x00" and len(der) == 4 and der[3] >= 0x80:
        return der[3]
    raise EvidenceInvalid("the chip's certificate has a version number that is not a byte")


def _hwid(certificate: x509.Certificate, product: str) -> bytes:
    """Raw, or as a DER octet string (kbs-protocol, 7.1)."""
    value, size = _extension(certificate, _HWID), _HWID_BYTES[product]
    if len(value) == size + 2 and value[:2] == bytes((0x04, size)):
        value = value[2:]
    if len(value) not in (size, 64):
        raise EvidenceInvalid("the chip's certificate has a hardware id of a wrong length")
    return value.ljust(64, b"\0")
