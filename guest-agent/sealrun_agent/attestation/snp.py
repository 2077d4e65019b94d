"""The `snp` attester: the report of AMD SEV-SNP by configfs-tsm, else by /dev/sev-guest.

The evidence is the report member by member, as the sev crate writes it, and the certificates that the
host has put beside it (kbs-protocol, 7.1). SNP has no register that a guest could extend, so there is
no event log: HOST_DATA, the digest of the init-data, is all that it binds besides the launch.
"""

import fcntl
import mmap
import os
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation import tsm
from sealrun_agent.attestation.attester import Attester, mismatch, unavailable
from sealrun_agent.errors import AttestError

DEVICE: Final = "/dev/sev-guest"
REPORT_BYTES: Final = 1184
DATA_BYTES: Final = 64

_PROVIDER: Final = "sev_guest"
_HOST_DATA: Final = slice(0x0C0, 0x0E0)
# linux/sev-guest.h
_GET_EXT_REPORT: Final = 0xC0205302
_REQUEST: Final = struct.Struct("<BxxxxxxxQQQ")  # version, request, response, error of the firmware
_REPORT_REQUEST: Final = struct.Struct(
    "<64sI28xQI4x"
)  # data, VMPL; address and size of certificates
_RESPONSE_BYTES: Final = 4000
_RESPONSE_HEAD: Final = 32  # status, size of the report
_CERTIFICATE_BYTES: Final = 16 * 1024  # the most that the kernel takes
# AMD's SEV-SNP GHCB specification, 2.3.1: guid, offset, length; a zero guid ends the table.
_TABLE_ENTRY: Final = struct.Struct("<16sII")
_KINDS: Final = {
    "c0b406a4a803495297433fb6014cd0ae": "ARK",
    "4ab7b379bbac4fe4a02f05aef327c782": "ASK",
    "63da758de6644564adc5f4b93be8accd": "VCEK",
    "a8074bc2a25a483eaae639c045a0b8a1": "VLEK",
    "92f81bc358114d3d97ffd19f88dc67ea": "CRL",
}


class Signed(NamedTuple):
    """report: as the firmware signed it. table: the host's certificates, may be empty."""

    report: bytes
    table: bytes


Ask = Callable[[bytes], Signed]
"""A report over 64 bytes of data. Raises OSError."""


class SnpAttester(Attester):
    """ask: how a report is had."""

    tee = "snp"

    def __init__(self, ask: Ask) -> None:
        super().__init__()
        self._ask = ask

    def quote(self, report_data: bytes, entries: bytes) -> dict[str, object]:
        """{"attestation_report", "cert_chain"}; the latter is null where the host has none."""
        signed = self._signed(report_data)
        return {
            "attestation_report": members(signed.report),
            "cert_chain": certificates(signed.table) or None,
        }

    def bind(self, init_data: InitData) -> None:
        """Compare with HOST_DATA: zeros where there is no init-data."""
        field = self._signed(b"").report[_HOST_DATA]
        if init_data.digest[: len(field)].ljust(len(field), b"\0") != field:
            raise mismatch(self.tee, "HOST_DATA")

    def _signed(self, data: bytes) -> Signed:
        try:
            signed = self._ask(data[:DATA_BYTES].ljust(DATA_BYTES, b"\0"))
        except OSError as error:
            raise unavailable("get a report of SEV-SNP", error) from error
        if len(signed.report) != REPORT_BYTES:
            raise AttestError(
                ErrorCode.TEE_UNAVAILABLE,
                f"the report of SEV-SNP has {len(signed.report)} bytes, not {REPORT_BYTES}",
            )
        return signed


def members(report: bytes) -> dict[str, object]:
    """`attestation_report` of KBS's evidence; all of the 1184 bytes but what is reserved."""

    def number(offset: int, size: int) -> int:
        return int.from_bytes(report[offset : offset + size], "little")

    def octets(offset: int, size: int) -> list[int]:
        return list(report[offset : offset + size])

    version = number(0x000, 4)
    turin = _is_turin(report)
    cpuid, vectors = version >= 3, version >= 5
    return {
        "version": version,
        "guest_svn": number(0x004, 4),
        "policy": number(0x008, 8),
        "family_id": octets(0x010, 16),
        "image_id": octets(0x020, 16),
        "vmpl": number(0x030, 4),
        "sig_algo": number(0x034, 4),
        "current_tcb": _tcb(report[0x038:0x040], turin),
        "plat_info": number(0x040, 8),
        "key_info": number(0x048, 4),
        "report_data": octets(0x050, 64),
        "measurement": octets(0x090, 48),
        "host_data": octets(0x0C0, 32),
        "id_key_digest": octets(0x0E0, 48),
        "author_key_digest": octets(0x110, 48),
        "report_id": octets(0x140, 32),
        "report_id_ma": octets(0x160, 32),
        "reported_tcb": _tcb(report[0x180:0x188], turin),
        "cpuid_fam_id": number(0x188, 1) if cpuid else None,
        "cpuid_mod_id": number(0x189, 1) if cpuid else None,
        "cpuid_step": number(0x18A, 1) if cpuid else None,
        "chip_id": octets(0x1A0, 64),
        "committed_tcb": _tcb(report[0x1E0:0x1E8], turin),
        "current": _firmware(report[0x1E8:0x1EB]),
        "committed": _firmware(report[0x1EC:0x1EF]),
        "launch_tcb": _tcb(report[0x1F0:0x1F8], turin),
        "launch_mit_vector": number(0x1F8, 8) if vectors else None,
        "current_mit_vector": number(0x200, 8) if vectors else None,
        "signature": {"r": octets(0x2A0, 72), "s": octets(0x2E8, 72)},
    }


def _is_turin(report: bytes) -> bool:
    """Whether TCBs have the layout of Turin: by the CPU's family, which version 2 does not say; there by
    the chip id, of which Turin uses 8 bytes."""
    if int.from_bytes(report[:4], "little") >= 3:
        return report[0x188] >= 0x1A
    return not any(report[0x1A8:0x1E0])


def _tcb(tcb: bytes, turin: bool) -> dict[str, int | None]:
    names = ("fmc", "bootloader", "tee", "snp", "microcode")
    if turin:
        return dict(zip(names, (tcb[0], tcb[1], tcb[2], tcb[3], tcb[7]), strict=True))
    return dict(zip(names, (None, tcb[0], tcb[1], tcb[6], tcb[7]), strict=True))


def _firmware(version: bytes) -> dict[str, int]:
    return {"major": version[2], "minor": version[1], "build": version[0]}


def certificates(table: bytes) -> list[dict[str, object]]:
    """`cert_chain` of KBS's evidence, one of each kind. What the host wrote wrongly is left out: the broker
    judges."""
    found: dict[str, dict[str, object]] = {}
    for at in range(0, len(table) - _TABLE_ENTRY.size + 1, _TABLE_ENTRY.size):
        guid, offset, length = _TABLE_ENTRY.unpack_from(table, at)
        if not any(guid):
            break
        kind = _KINDS.get(guid.hex())
        data = table[offset : offset + length]
        if kind is not None and kind not in found and len(data) == length:
            found[kind] = {"cert_type": kind, "data": list(data)}
    return list(found.values())


def attester(root: str = "") -> SnpAttester:
    """What `attester.detect` calls."""
    reports = root + tsm.REPORTS
    if tsm.offers(_PROVIDER, reports):
        return SnpAttester(lambda data: Signed(*tsm.report(data, reports)))
    return SnpAttester(lambda data: _by_device(root + DEVICE, data))


def _by_device(path: str, data: bytes) -> Signed:
    """SNP_GET_EXT_REPORT for VMPL 0. Raises OSError."""
    response = bytearray(_RESPONSE_BYTES)
    with mmap.mmap(-1, _CERTIFICATE_BYTES) as table:  # its address must be a page's
        wanted = bytearray(_REPORT_REQUEST.pack(data, 0, _address(table), _CERTIFICATE_BYTES))
        request = bytearray(_REQUEST.pack(1, _address(wanted), _address(response), 0))
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _GET_EXT_REPORT, request)
        finally:
            os.close(descriptor)
        written = table[:_CERTIFICATE_BYTES]
    status, size = struct.unpack_from("<II", response)
    if status != 0:
        raise OSError(0, f"the firmware answers {status}")
    return Signed(bytes(response[_RESPONSE_HEAD : _RESPONSE_HEAD + size]), written)


def _address(buffer: "bytearray | mmap.mmap") -> int:
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
