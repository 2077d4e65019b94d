"""The SEV-SNP attestation report: its bytes, and the JSON that the evidence carries (kbs-protocol, 7.1).

Layout: AMD's SEV-SNP firmware ABI (56860), ATTESTATION_REPORT, versions 2 to 5. The signature is
over bytes, the evidence has members: they are put back into bytes, and everything is then read from
those, so that nothing counts that was not signed. What is reserved becomes zero.
"""

import struct
from typing import Final, NamedTuple

import msgspec

from sealrun_broker.verifiers.binding import EvidenceInvalid

REPORT_BYTES: Final = 1184
SIGNED_BYTES: Final = 0x2A0
VERSIONS: Final = range(2, 6)

_SCALAR_BYTES: Final = 72  # r and s, little-endian, padded
_POLICY_SMT, _POLICY_MIGRATE, _POLICY_DEBUG, _POLICY_SOCKET = 1 << 16, 1 << 18, 1 << 19, 1 << 20
_PLATFORM_SMT, _PLATFORM_TSME = 1, 2


class Tcb(NamedTuple):
    """Security version numbers. fmc: from Turin on."""

    fmc: int | None
    bootloader: int
    tee: int
    snp: int
    microcode: int


class _TcbJson(msgspec.Struct, frozen=True):
    bootloader: int
    tee: int
    snp: int
    microcode: int
    fmc: int | None = None


class _VersionJson(msgspec.Struct, frozen=True):
    major: int
    minor: int
    build: int


class _SignatureJson(msgspec.Struct, frozen=True):
    r: list[int]
    s: list[int]


class ReportJson(msgspec.Struct, frozen=True):
    """`attestation_report` as the sev crate writes it: byte arrays are arrays of numbers."""

    version: int
    guest_svn: int
    policy: int
    family_id: list[int]
    image_id: list[int]
    vmpl: int
    sig_algo: int
    current_tcb: _TcbJson
    plat_info: int
    key_info: int
    report_data: list[int]
    measurement: list[int]
    host_data: list[int]
    id_key_digest: list[int]
    author_key_digest: list[int]
    report_id: list[int]
    report_id_ma: list[int]
    reported_tcb: _TcbJson
    chip_id: list[int]
    committed_tcb: _TcbJson
    current: _VersionJson
    committed: _VersionJson
    launch_tcb: _TcbJson
    signature: _SignatureJson
    cpuid_fam_id: int | None = None
    cpuid_mod_id: int | None = None
    cpuid_step: int | None = None
    launch_mit_vector: int | None = None
    current_mit_vector: int | None = None


class Report(NamedTuple):
    """What the signed bytes say. cpuid: (family, model), from version 3 on. r, s: the signature."""

    raw: bytes
    version: int
    policy: int
    vmpl: int
    sig_algo: int
    plat_info: int
    report_data: bytes
    measurement: bytes
    host_data: bytes
    chip_id: bytes
    cpuid: tuple[int, int] | None
    r: int
    s: int

    @property
    def signed(self) -> bytes:
        """The bytes under the signature."""
        return self.raw[:SIGNED_BYTES]

    @property
    def debug_allowed(self) -> bool:
        """Whether the host may read the VM's memory."""
        return bool(self.policy & _POLICY_DEBUG)

    @property
    def migration_allowed(self) -> bool:
        """Whether a migration agent may move the VM."""
        return bool(self.policy & _POLICY_MIGRATE)

    def reported_tcb(self, turin: bool) -> Tcb:
        """The TCB that the signing key was derived from; its layout depends on the product."""
        tcb = self.raw[0x180:0x188]
        if turin:
            return Tcb(tcb[0], tcb[1], tcb[2], tcb[3], tcb[7])
        return Tcb(None, tcb[0], tcb[1], tcb[6], tcb[7])


def from_json(report: ReportJson) -> bytes:
    """The report's bytes. Raises EvidenceInvalid for members of a wrong size."""
    has_cpuid = report.version >= 3
    has_vectors = report.version >= 5
    parts = [
        ("version", _number(report.version, 4), 0x000),
        ("guest_svn", _number(report.guest_svn, 4), 0x004),
        ("policy", _number(report.policy, 8), 0x008),
        ("family_id", _bytes(report.family_id, 16), 0x010),
        ("image_id", _bytes(report.image_id, 16), 0x020),
        ("vmpl", _number(report.vmpl, 4), 0x030),
        ("sig_algo", _number(report.sig_algo, 4), 0x034),
        ("current_tcb", _tcb(report.current_tcb), 0x038),
        ("plat_info", _number(report.plat_info, 8), 0x040),
        ("key_info", _number(report.key_info, 4), 0x048),
        ("report_data", _bytes(report.report_data, 64), 0x050),
        ("measurement", _bytes(report.measurement, 48), 0x090),
        ("host_data", _bytes(report.host_data, 32), 0x0C0),
        ("id_key_digest", _bytes(report.id_key_digest, 48), 0x0E0),
        ("author_key_digest", _bytes(report.author_key_digest, 48), 0x110),
        ("report_id", _bytes(report.report_id, 32), 0x140),
        ("report_id_ma", _bytes(report.report_id_ma, 32), 0x160),
        ("reported_tcb", _tcb(report.reported_tcb), 0x180),
        ("cpuid_fam_id", _optional(report.cpuid_fam_id, 1, has_cpuid), 0x188),
        ("cpuid_mod_id", _optional(report.cpuid_mod_id, 1, has_cpuid), 0x189),
        ("cpuid_step", _optional(report.cpuid_step, 1, has_cpuid), 0x18A),
        ("chip_id", _bytes(report.chip_id, 64), 0x1A0),
        ("committed_tcb", _tcb(report.committed_tcb), 0x1E0),
        ("current", _version(report.current), 0x1E8),
        ("committed", _version(report.committed), 0x1EC),
        ("launch_tcb", _tcb(report.launch_tcb), 0x1F0),
        ("launch_mit_vector", _optional(report.launch_mit_vector, 8, has_vectors), 0x1F8),
        ("current_mit_vector", _optional(report.current_mit_vector, 8, has_vectors), 0x200),
        ("signature.r", _bytes(report.signature.r, _SCALAR_BYTES), SIGNED_BYTES),
        ("signature.s", _bytes(report.signature.s, _SCALAR_BYTES), SIGNED_BYTES + _SCALAR_BYTES),
    ]
    raw = bytearray(REPORT_BYTES)
    for name, part, offset in parts:
        if part is None:
            raise EvidenceInvalid(f"the report's {name} has a wrong size")
        raw[offset : offset + len(part)] = part
    return bytes(raw)


def parse(raw: bytes) -> Report:
    """Raises EvidenceInvalid."""
    if len(raw) != REPORT_BYTES:
        raise EvidenceInvalid(f"the report has {len(raw)} bytes, not {REPORT_BYTES}")
    version, _, policy = struct.unpack_from("<IIQ", raw)
    if version not in VERSIONS:
        raise EvidenceInvalid(f"the report's version {version} is not one of 2 to 5")
    vmpl, sig_algo = struct.unpack_from("<II", raw, 0x30)
    (plat_info,) = struct.unpack_from("<Q", raw, 0x40)
    scalars = raw[SIGNED_BYTES : SIGNED_BYTES + 2 * _SCALAR_BYTES]
    return Report(
        raw=raw,
        version=version,
        policy=policy,
        vmpl=vmpl,
        sig_algo=sig_algo,
        plat_info=plat_info,
        report_data=raw[0x50:0x90],
        measurement=raw[0x90:0xC0],
        host_data=raw[0xC0:0xE0],
        chip_id=raw[0x1A0:0x1E0],
        cpuid=(raw[0x188], raw[0x189]) if version >= 3 else None,
        r=int.from_bytes(scalars[:_SCALAR_BYTES], "little"),
        s=int.from_bytes(scalars[_SCALAR_BYTES:], "little"),
    )


def claims(report: Report, tcb: Tcb) -> dict[str, object]:
    """In the names of Trustee's verifier; bytes in hex."""
    return {
        "policy_abi_major": report.policy >> 8 & 0xFF,
        "policy_abi_minor": report.policy & 0xFF,
        "policy_smt_allowed": bool(report.policy & _POLICY_SMT),
        "policy_migrate_ma": report.migration_allowed,
        "policy_debug_allowed": report.debug_allowed,
        "policy_single_socket": bool(report.policy & _POLICY_SOCKET),
        "reported_tcb_bootloader": tcb.bootloader,
        "reported_tcb_tee": tcb.tee,
        "reported_tcb_snp": tcb.snp,
        "reported_tcb_microcode": tcb.microcode,
        "platform_tsme_enabled": bool(report.plat_info & _PLATFORM_TSME),
        "platform_smt_enabled": bool(report.plat_info & _PLATFORM_SMT),
        "measurement": report.measurement.hex(),
        "report_data": report.report_data.hex(),
        "init_data": report.host_data.hex(),
        "chip_id": report.chip_id.hex(),
    }


def _number(value: int, size: int) -> bytes | None:
    return value.to_bytes(size, "little") if 0 <= value < 1 << 8 * size else None


def _optional(value: int | None, size: int, known: bool) -> bytes | None:
    """A member that a report of an older version does not have."""
    return _number(value or 0, size) if known or not value else None


def _bytes(values: list[int], size: int) -> bytes | None:
    if len(values) != size or not all(0 <= value < 256 for value in values):
        return None
    return bytes(values)


def _tcb(tcb: _TcbJson) -> bytes | None:
    if tcb.fmc is None:
        values = [tcb.bootloader, tcb.tee, 0, 0, 0, 0, tcb.snp, tcb.microcode]
    else:
        values = [tcb.fmc, tcb.bootloader, tcb.tee, tcb.snp, 0, 0, 0, tcb.microcode]
    return _bytes(values, 8)


def _version(version: _VersionJson) -> bytes | None:
    return _bytes([version.build, version.minor, version.major], 3)
