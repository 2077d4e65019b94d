"""A maker of SEV-SNP reports and of certificates for them, with a root of its own instead of AMD's.

Reports of all versions and products, really signed; `as_json` writes the members as the sev crate
does, by a table of its own.
"""

import datetime
import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

NOW = 1_760_000_000.0
CPUID = {"Milan": (0x19, 0x01), "Genoa": (0x19, 0x11), "Turin": (0x1A, 0x02)}

_AMD = "1.3.6.1.4.1.3704.1"
_BEGIN = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
_END = datetime.datetime(2045, 1, 1, tzinfo=datetime.UTC)
_PSS = padding.PSS(padding.MGF1(SHA384()), salt_length=48)


def _rsa() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)  # AMD's have 4096 bits, which take long to make


@dataclass
class Amd:
    """Root, authority and the key of one chip (VCEK) or of a loader (VLEK)."""

    product: str = "Milan"
    kind: str = "VCEK"
    tcb: tuple[int, int, int, int] = (3, 0, 20, 209)  # boot loader, TEE, SNP, microcode
    fmc: int = 1
    chip_id: bytes = b""
    ark: rsa.RSAPrivateKey = field(default_factory=_rsa)
    ask: rsa.RSAPrivateKey = field(default_factory=_rsa)
    vek: ec.EllipticCurvePrivateKey = field(
        default_factory=lambda: ec.generate_private_key(ec.SECP384R1())
    )

    def __post_init__(self) -> None:
        turin = self.product == "Turin"
        self.chip_id = self.chip_id or bytes(range(1, 9)) + (
            bytes(56) if turin else bytes(range(56))
        )
        root, authority = _name(f"ARK-{self.product}"), _name(f"SEV-{self.product}")
        self.root = _certificate(root, root, self.ark.public_key(), self.ark)
        self.authority = _certificate(authority, root, self.ask.public_key(), self.ark)
        extensions = {
            f"{_AMD}.3.{part}": bytes((2, 1, spl)) if spl < 128 else bytes((2, 2, 0, spl))
            for part, spl in zip((1, 2, 3, 8), self.tcb, strict=True)
        }
        if turin:
            extensions[f"{_AMD}.3.9"] = bytes((2, 1, self.fmc))
        if self.kind == "VCEK":
            extensions[f"{_AMD}.4"] = self.chip_id[:8] if turin else self.chip_id
        self.endorsement = _certificate(
            _name(f"SEV-{self.kind}"), authority, self.vek.public_key(), self.ask, extensions
        )

    @property
    def pin(self) -> str:
        """As in PINNED_ROOTS."""
        spki = self.ark.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return hashlib.sha256(spki).hexdigest()

    def chain(self) -> list[dict[str, Any]]:
        """`cert_chain` of the evidence."""
        return [
            {"cert_type": kind, "data": list(certificate.public_bytes(Encoding.DER))}
            for kind, certificate in (
                (self.kind, self.endorsement),
                ("ASK", self.authority),
                ("ARK", self.root),
            )
        ]

    def report(self, version: int = 3, **members: Any) -> bytes:
        """A signed report; members: policy, vmpl, report_data, measurement, host_data, plat_info,
        tcb, cpuid, chip_id."""
        raw = bytearray(1184)
        struct.pack_into("<IIQ", raw, 0, version, 0, members.get("policy", 0x30000))
        struct.pack_into("<II", raw, 0x30, members.get("vmpl", 0), 1)
        struct.pack_into("<Q", raw, 0x40, members.get("plat_info", 1))
        raw[0x50:0x90] = members.get("report_data", b"").ljust(64, b"\0")
        raw[0x90:0xC0] = members.get("measurement", b"\xaa" * 48)
        raw[0xC0:0xE0] = members.get("host_data", bytes(32))
        tcb = self._tcb(members.get("tcb", self.tcb))
        for offset in (0x38, 0x180, 0x1E0, 0x1F0):
            raw[offset : offset + 8] = tcb
        if version >= 3:
            raw[0x188:0x18B] = bytes((*members.get("cpuid", CPUID[self.product]), 1))
        raw[0x1A0:0x1E0] = members.get("chip_id", self.chip_id)
        raw[0x1E8:0x1EB], raw[0x1EC:0x1EF] = bytes((29, 55, 1)), bytes((29, 55, 1))
        if version >= 5:
            struct.pack_into("<QQ", raw, 0x1F8, 0xFF, 0xFE)
        r, s = decode_dss_signature(self.vek.sign(bytes(raw[:0x2A0]), ec.ECDSA(SHA384())))
        raw[0x2A0:0x2E8], raw[0x2E8:0x330] = r.to_bytes(72, "little"), s.to_bytes(72, "little")
        return bytes(raw)

    def _tcb(self, tcb: tuple[int, int, int, int]) -> bytes:
        loader, tee, snp, microcode = tcb
        if self.product == "Turin":
            return bytes((self.fmc, loader, tee, snp, 0, 0, 0, microcode))
        return bytes((loader, tee, 0, 0, 0, 0, snp, microcode))


NUMBERS = {
    "version": (0x000, 4), "guest_svn": (0x004, 4), "policy": (0x008, 8), "vmpl": (0x030, 4),
    "sig_algo": (0x034, 4), "plat_info": (0x040, 8), "key_info": (0x048, 4),
}  # fmt: skip
ARRAYS = {
    "family_id": (0x010, 16), "image_id": (0x020, 16), "report_data": (0x050, 64),
    "measurement": (0x090, 48), "host_data": (0x0C0, 32), "id_key_digest": (0x0E0, 48),
    "author_key_digest": (0x110, 48), "report_id": (0x140, 32), "report_id_ma": (0x160, 32),
    "chip_id": (0x1A0, 64),
}  # fmt: skip
TCBS = {"current_tcb": 0x038, "reported_tcb": 0x180, "committed_tcb": 0x1E0, "launch_tcb": 0x1F0}
LATER = {  # offset, size, the first version that has it
    "cpuid_fam_id": (0x188, 1, 3), "cpuid_mod_id": (0x189, 1, 3), "cpuid_step": (0x18A, 1, 3),
    "launch_mit_vector": (0x1F8, 8, 5), "current_mit_vector": (0x200, 8, 5),
}  # fmt: skip


def as_json(raw: bytes, turin: bool = False) -> dict[str, Any]:
    """`attestation_report` of the evidence."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(raw[offset : offset + size], "little")

    def tcb(offset: int) -> dict[str, Any]:
        names = ("fmc", "bootloader", "tee", "snp", "microcode")
        places = (0, 1, 2, 3, 7) if turin else (None, 0, 1, 6, 7)
        return {
            name: None if place is None else raw[offset + place]
            for name, place in zip(names, places, strict=True)
        }

    def firmware(offset: int) -> dict[str, int]:
        return dict(zip(("build", "minor", "major"), raw[offset : offset + 3], strict=True))

    return {
        **{name: number(*place) for name, place in NUMBERS.items()},
        **{name: list(raw[at : at + size]) for name, (at, size) in ARRAYS.items()},
        **{name: tcb(offset) for name, offset in TCBS.items()},
        **{
            name: number(offset, size) if number(0, 4) >= first else None
            for name, (offset, size, first) in LATER.items()
        },
        "current": firmware(0x1E8),
        "committed": firmware(0x1EC),
        "signature": {"r": list(raw[0x2A0:0x2E8]), "s": list(raw[0x2E8:0x330])},
    }


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey,
    signer: rsa.RSAPrivateKey,
    extensions: dict[str, bytes] | None = None,
) -> x509.Certificate:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(1)
        .not_valid_before(_BEGIN)
        .not_valid_after(_END)
    )
    for oid, value in (extensions or {}).items():
        builder = builder.add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), value), critical=False
        )
    return builder.sign(signer, SHA384(), rsa_padding=_PSS)
