"""A maker of TDX quotes and Intel's collateral for them, with a root of its own.

Everything is of the real form and really signed; only the root is not Intel's, so that a verifier
has to be told to trust it.
"""

import datetime
import hashlib
import json
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

NOW = 1_760_000_000.0
FMSPC = "00806f050000"
INTEL_QE = bytes.fromhex("939a7233f79c4ca9940a0db3957f0607")

_SGX = "1.2.840.113741.1.13.1"
_BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(2049, 1, 1, tzinfo=datetime.UTC)
_ISSUED, _NEXT = "2025-09-01T00:00:00Z", "2025-12-01T00:00:00Z"
Key = ec.EllipticCurvePrivateKey


def _tlv(tag: int, content: bytes) -> bytes:
    size = len(content)
    if size < 128:
        return bytes((tag, size)) + content
    encoded = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((tag, 0x80 | len(encoded))) + encoded + content


def _oid(text: str) -> bytes:
    numbers = [int(part) for part in text.split(".")]
    content = bytes((numbers[0] * 40 + numbers[1],))
    for number in numbers[2:]:
        groups = [number & 0x7F]
        while number := number >> 7:
            groups.insert(0, number & 0x7F | 0x80)
        content += bytes(groups)
    return _tlv(6, content)


def _pair(oid: str, value: bytes) -> bytes:
    return _tlv(0x30, _oid(oid) + value)


def _sgx_extension(tcb: int) -> bytes:
    components = b"".join(_pair(f"{_SGX}.2.{i}", _tlv(2, bytes((tcb,)))) for i in range(1, 17))
    components += _pair(f"{_SGX}.2.17", _tlv(2, b"\x0b"))
    components += _pair(f"{_SGX}.2.18", _tlv(4, bytes((tcb,)) * 16))
    return _tlv(
        0x30,
        _pair(f"{_SGX}.1", _tlv(4, bytes(16)))
        + _pair(f"{_SGX}.2", _tlv(0x30, components))
        + _pair(f"{_SGX}.3", _tlv(4, bytes(2)))
        + _pair(f"{_SGX}.4", _tlv(4, bytes.fromhex(FMSPC)))
        + _pair(f"{_SGX}.5", _tlv(10, b"\0")),
    )


def _raw(key: Key, data: bytes) -> bytes:
    r, s = decode_dss_signature(key.sign(data, ec.ECDSA(SHA256())))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def _point(key: Key) -> bytes:
    encoded = key.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    return encoded[1:]


def _name(common: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, common),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Intel Corporation"),
        ]
    )


@dataclass
class Body:
    """What the TD is; sizes as in the quote."""

    report_data: bytes = bytes(64)
    mr_config_id: bytes = bytes(48)
    mr_td: bytes = b"\x11" * 48
    rtmr: tuple[bytes, ...] = (bytes(48),) * 4
    td_attributes: bytes = b"\0\0\0\x10\0\0\0\0"
    xfam: bytes = bytes.fromhex("e742060000000000")
    tcb_svn: bytes = b"\x05" + bytes(15)

    def encode(self, kind: int) -> bytes:
        """kind: 2 for TDX 1.0, 3 for TDX 1.5."""
        body = self.tcb_svn + bytes(48 + 48 + 8) + self.td_attributes + self.xfam + self.mr_td
        body += self.mr_config_id + bytes(48 + 48) + b"".join(self.rtmr) + self.report_data
        return body + (self.tcb_svn + bytes(48) if kind == 3 else b"")


@dataclass
class Intel:
    """Root, authorities, a platform of `tcb` and its quoting enclave."""

    tcb: int = 3
    root: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    platform: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    pck: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    signer: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    attestation: Key = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))

    def __post_init__(self) -> None:
        root, platform = _name("Intel SGX Root CA"), _name("Intel SGX PCK Platform CA")
        self.root_certificate = self._certificate(root, root, self.root, self.root, ca=True)
        self.platform_certificate = self._certificate(
            platform, root, self.platform, self.root, ca=True
        )
        self.pck_certificate = self._certificate(
            _name("Intel SGX PCK Certificate"),
            platform,
            self.pck,
            self.platform,
            ca=False,
            sgx=True,
        )
        self.signer_certificate = self._certificate(
            _name("Intel SGX TCB Signing"), root, self.signer, self.root, ca=False
        )

    @property
    def pin(self) -> str:
        """As in PINNED_ROOTS."""
        spki = self.root.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()

    @property
    def root_der(self) -> bytes:
        """The root's certificate."""
        return self.root_certificate.public_bytes(Encoding.DER)

    def quote(self, body: Body, version: int = 4, kind: int = 2) -> bytes:
        """A quote of the TD, of version 4, or of version 5 with a body of this kind."""
        header = struct.pack("<HHI", version, 2, 0x81) + bytes(4) + INTEL_QE + bytes(20)
        content = body.encode(kind)
        if version == 5:
            header += struct.pack("<HI", kind, len(content))
        signed = header + content
        authentication = bytes(range(32))
        bound = hashlib.sha256(_point(self.attestation) + authentication).digest() + bytes(32)
        report = self._qe_report(bound)
        chain = b"".join(
            certificate.public_bytes(Encoding.PEM)
            for certificate in (
                self.pck_certificate,
                self.platform_certificate,
                self.root_certificate,
            )
        )
        inner = report + _raw(self.pck, report) + struct.pack("<H", 32) + authentication
        inner += struct.pack("<HI", 5, len(chain)) + chain
        data = _raw(self.attestation, signed) + _point(self.attestation)
        data += struct.pack("<HI", 6, len(inner)) + inner
        return signed + struct.pack("<I", len(data)) + data

    def collateral(self, status: str = "UpToDate", next_update: str = _NEXT) -> str:
        """Collateral for the platform, in dcap-qvl's JSON."""
        tcb_info = json.dumps(self._tcb_info(status, next_update), separators=(",", ":"))
        identity = json.dumps(self._qe_identity(next_update), separators=(",", ":"))
        chain = "".join(
            certificate.public_bytes(Encoding.PEM).decode()
            for certificate in (self.signer_certificate, self.root_certificate)
        )
        pck_chain = "".join(
            certificate.public_bytes(Encoding.PEM).decode()
            for certificate in (self.platform_certificate, self.root_certificate)
        )
        return json.dumps(
            {
                "pck_crl_issuer_chain": pck_chain,
                "root_ca_crl": self._crl(_name("Intel SGX Root CA"), self.root).hex(),
                "pck_crl": self._crl(_name("Intel SGX PCK Platform CA"), self.platform).hex(),
                "tcb_info_issuer_chain": chain,
                "tcb_info": tcb_info,
                "tcb_info_signature": _raw(self.signer, tcb_info.encode()).hex(),
                "qe_identity_issuer_chain": chain,
                "qe_identity": identity,
                "qe_identity_signature": _raw(self.signer, identity.encode()).hex(),
            }
        )

    def _qe_report(self, report_data: bytes) -> bytes:
        report = bytes((self.tcb,)) * 16 + bytes(4 + 28) + bytes.fromhex("11" + "00" * 15)
        report += b"\x22" * 32 + bytes(32) + b"\x33" * 32 + bytes(96)
        report += struct.pack("<HH", 2, 5) + bytes(60) + report_data
        assert len(report) == 384
        return report

    def _tcb_info(self, status: str, next_update: str) -> dict[str, Any]:
        components = [{"svn": self.tcb} for _ in range(16)]
        level = {
            "tcb": {
                "sgxtcbcomponents": components,
                "pcesvn": 11,
                "tdxtcbcomponents": [{"svn": 5}] + [{"svn": 0}] * 15,
            },
            "tcbDate": "2025-03-12T00:00:00Z",
            "tcbStatus": status,
            "advisoryIDs": [] if status == "UpToDate" else ["INTEL-SA-01036"],
        }
        module = {
            "mrsigner": "00" * 48,
            "attributes": "00" * 8,
            "attributesMask": "ff" * 8,
        }
        return {
            "id": "TDX",
            "version": 3,
            "issueDate": _ISSUED,
            "nextUpdate": next_update,
            "fmspc": FMSPC.upper(),
            "pceId": "0000",
            "tcbType": 0,
            "tcbEvaluationDataNumber": 17,
            "tdxModule": module,
            "tdxModuleIdentities": [],
            "tcbLevels": [level],
        }

    @staticmethod
    def _qe_identity(next_update: str) -> dict[str, Any]:
        return {
            "id": "TD_QE",
            "version": 2,
            "issueDate": _ISSUED,
            "nextUpdate": next_update,
            "tcbEvaluationDataNumber": 17,
            "miscselect": "00000000",
            "miscselectMask": "FFFFFFFF",
            "attributes": "11000000000000000000000000000000",
            "attributesMask": "FBFFFFFFFFFFFFFF0000000000000000",
            "mrsigner": "33" * 32,
            "isvprodid": 2,
            "tcbLevels": [
                {
                    "tcb": {"isvsvn": 4},
                    "tcbDate": "2025-03-12T00:00:00Z",
                    "tcbStatus": "UpToDate",
                }
            ],
        }

    @staticmethod
    def _crl(issuer: x509.Name, key: Key) -> bytes:
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer)
            .last_update(_BEGIN)
            .next_update(_END)
            .add_extension(x509.CRLNumber(1), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
        )
        return builder.sign(key, SHA256()).public_bytes(Encoding.DER)

    def _certificate(
        self,
        subject: x509.Name,
        issuer: x509.Name,
        key: Key,
        issuer_key: Key,
        *,
        ca: bool,
        sgx: bool = False,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(_BEGIN)
            .not_valid_after(_END)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(_usage(ca), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False
            )
        )
        if sgx:
            value = _sgx_extension(self.tcb)
            builder = builder.add_extension(
                x509.UnrecognizedExtension(x509.ObjectIdentifier(_SGX), value), critical=False
            )
        return builder.sign(issuer_key, SHA256())


def _usage(ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=not ca,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )
