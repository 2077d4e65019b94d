"""The `tdx` attester: the quote of Intel TDX by configfs-tsm, the firmware's event log (CCEL) beside it.

MRCONFIGID is read from the kernel's measurements (Linux 6.16) or from a TDREPORT, which only the CPU
itself can make and which never leaves the VM. RTMR 3 is extended through the kernel's measurements;
an older kernel has no way to do it, and then the agent records nothing (kbs-protocol, 7.2 and 9).
"""

import binascii
import fcntl
import os
from typing import Final

from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation import event_log, tsm
from sealrun_agent.attestation.attester import Attester, mismatch, unavailable
from sealrun_agent.errors import AttestError

DEVICE: Final = "/dev/tdx_guest"
MEASUREMENTS: Final = "/sys/devices/virtual/misc/tdx_guest/measurements"
CCEL: Final = "/sys/firmware/acpi/tables/data/CCEL"
DATA_BYTES: Final = 64

_PROVIDER: Final = "tdx_guest"
_REGISTER: Final = 4  # RTMR 3, in the numbers of event logs
# linux/tdx-guest.h
_GET_REPORT: Final = 0xC4405401
_REPORT_REQUEST_BYTES: Final = DATA_BYTES + 1024
# TDREPORT: 512 bytes before TDINFO; in it attributes, XFAM and MRTD before MRCONFIGID.
_MRCONFIGID: Final = slice(DATA_BYTES + 512 + 8 + 8 + 48, DATA_BYTES + 512 + 8 + 8 + 96)


class TdxAttester(Attester):
    """root: put before the paths of the kernel's interfaces."""

    tee = "tdx"

    def __init__(self, root: str = "") -> None:
        self._root = root
        self._measurements = root + MEASUREMENTS
        super().__init__(_REGISTER if os.path.isdir(self._measurements) else None)

    def quote(self, report_data: bytes, entries: bytes) -> dict[str, object]:
        """{"quote", "cc_eventlog"}; the latter is null where nothing was measured."""
        data = report_data[:DATA_BYTES].ljust(DATA_BYTES, b"\0")
        try:
            signed = tsm.report(data, self._root + tsm.REPORTS)
            log = event_log.joined(self._firmware(), self.algorithm, entries)
        except OSError as error:
            raise unavailable("get a quote of TDX", error) from error
        except ValueError as error:
            raise AttestError(ErrorCode.TEE_UNAVAILABLE, f"cannot get a quote: {error}") from error
        return {"quote": _base64(signed.out), "cc_eventlog": _base64(log) if log else None}

    def bind(self, init_data: InitData) -> None:
        """Compare with MRCONFIGID: zeros where there is no init-data."""
        try:
            field = self._config_id()
        except OSError as error:
            raise unavailable("read MRCONFIGID", error) from error
        if init_data.digest[: len(field)].ljust(len(field), b"\0") != field:
            raise mismatch(self.tee, "MRCONFIGID")

    def extend(self, digest: bytes) -> None:
        """Raises AttestError(TEE_UNAVAILABLE)."""
        path = f"{self._measurements}/rtmr{_REGISTER - 1}:{self.algorithm}"
        try:
            descriptor = os.open(path, os.O_WRONLY)
            try:
                os.write(descriptor, digest)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise unavailable(f"extend RTMR {_REGISTER - 1}", error) from error

    def _config_id(self) -> bytes:
        """48 bytes. Raises OSError."""
        if self.register is not None:
            with open(f"{self._measurements}/mrconfigid", "rb") as stream:
                return stream.read()
        request = bytearray(_REPORT_REQUEST_BYTES)
        descriptor = os.open(self._root + DEVICE, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(descriptor, _GET_REPORT, request)
        finally:
            os.close(descriptor)
        return bytes(request[_MRCONFIGID])

    def _firmware(self) -> bytes:
        try:
            with open(self._root + CCEL, "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return b""


def attester(root: str = "") -> TdxAttester:
    """What `attester.detect` calls. Raises AttestError where the kernel has no way to a quote."""
    if not tsm.offers(_PROVIDER, root + tsm.REPORTS):
        raise AttestError(
            ErrorCode.TEE_UNAVAILABLE, "cannot get a quote of TDX: the kernel has no configfs-tsm"
        )
    return TdxAttester(root)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()
