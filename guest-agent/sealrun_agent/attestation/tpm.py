"""The `tpm` attester: a quote over all PCRs by a key that the TPM derives from its seed.

Raw TPM 2.0 commands to /dev/tpm0 (sealrun_protocol/tpm2.py). PCR 8 has the init-data, PCR 13 what the
agent records. CoCo's attester uses a persistent key at 0x81010002 that somebody has to put there; a
primary key of a known template needs no provisioning, and its public half is as well known.
"""

import binascii
import hashlib
import os
import time
from collections.abc import Callable
from typing import Final

from sealrun_protocol import tpm2
from sealrun_protocol.errors import ErrorCode
from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation import event_log
from sealrun_agent.attestation.attester import Attester, mismatch, unavailable
from sealrun_agent.errors import AttestError

DEVICE: Final = "/dev/tpm0"
FIRMWARE_LOG: Final = "/sys/kernel/security/tpm0/binary_bios_measurements"
INIT_DATA_PCR: Final = 8
AGENT_PCR: Final = 13
RETRY_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.05
_UNTOUCHED: Final = bytes(tpm2.DIGEST_BYTES)

Transact = Callable[[bytes], bytes]
"""Sends one command and returns its answer. Raises OSError."""


class TpmAttester(Attester):
    """transact: how the TPM is spoken to; firmware_log: path of the log that the kernel was given."""

    tee = "tpm"
    algorithm = "sha256"

    def __init__(self, transact: Transact, firmware_log: str = FIRMWARE_LOG) -> None:
        super().__init__(AGENT_PCR)
        self._transact = transact
        self._firmware_log = firmware_log

    def quote(self, report_data: bytes, entries: bytes) -> dict[str, object]:
        """{"tpm_quote", "ak_public", "event_log"}: the last is ours, Trustee passes over it."""
        data = report_data[: tpm2.DIGEST_BYTES].ljust(tpm2.DIGEST_BYTES, b"\0")
        try:
            key = tpm2.created(self._ask(tpm2.create_attestation_key()))
            try:
                pcrs = self._pcrs()
                quote = tpm2.quoted(self._ask(tpm2.quote(key.handle, data)))
            finally:
                self._ask(tpm2.flush(key.handle))
            log = event_log.joined(self._firmware(), self.algorithm, entries)
        except OSError as error:
            raise unavailable("get a quote of the TPM", error) from error
        except (tpm2.TpmError, ValueError) as error:
            raise AttestError(ErrorCode.TEE_UNAVAILABLE, f"cannot get a quote: {error}") from error
        return {
            "tpm_quote": {
                "signature": _base64(quote.signature),
                "message": _base64(quote.message),
                "pcrs": [pcr.hex() for pcr in pcrs],
            },
            "ak_public": _base64(key.public),
            "event_log": _base64(log),
        }

    def bind(self, init_data: InitData) -> None:
        """Extend PCR 8, which nobody may have touched before; where there is no init-data it stays so."""
        if init_data.text and init_data.algorithm != "sha256":
            raise AttestError(
                ErrorCode.INIT_DATA_INVALID,
                f"the init-data: algorithm is {init_data.algorithm}; a TPM takes sha256",
            )
        self._expect(_UNTOUCHED)
        if init_data.text:
            self._extend(INIT_DATA_PCR, init_data.digest)
            self._expect(hashlib.sha256(_UNTOUCHED + init_data.digest).digest())

    def _expect(self, value: bytes) -> None:
        """Raises AttestError."""
        if self._pcrs()[INIT_DATA_PCR] != value:
            raise mismatch(self.tee, f"PCR {INIT_DATA_PCR}")

    def extend(self, digest: bytes) -> None:
        """Raises AttestError(TEE_UNAVAILABLE)."""
        self._extend(AGENT_PCR, digest)

    def _extend(self, pcr: int, digest: bytes) -> None:
        try:
            tpm2.done(self._ask(tpm2.extend(pcr, digest)), f"extend PCR {pcr}")
        except OSError as error:
            raise unavailable(f"extend PCR {pcr}", error) from error
        except tpm2.TpmError as error:
            raise AttestError(ErrorCode.TEE_UNAVAILABLE, str(error)) from error

    def _pcrs(self) -> list[bytes]:
        """All of the SHA-256 bank. Raises AttestError."""
        values: dict[int, bytes] = {}
        try:
            while missing := [number for number in range(tpm2.PCRS) if number not in values]:
                given = tpm2.pcrs(self._ask(tpm2.read_pcrs(missing)))
                if not set(given) & set(missing):
                    raise tpm2.TpmError("the TPM does not give all its PCRs")
                values |= given
        except OSError as error:
            raise unavailable("read the TPM's PCRs", error) from error
        except tpm2.TpmError as error:
            raise AttestError(ErrorCode.TEE_UNAVAILABLE, str(error)) from error
        return [values[number] for number in range(tpm2.PCRS)]

    def _ask(self, command: bytes) -> bytes:
        """The answer to `command`, which a TPM that is slow wants to be sent again; the kernel does so for
        3 seconds. Raises OSError."""
        deadline = time.monotonic() + RETRY_SECONDS
        while (answer := self._transact(command)) == tpm2.AGAIN and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS)
        return answer

    def _firmware(self) -> bytes:
        try:
            with open(self._firmware_log, "rb") as stream:
                return stream.read()
        except FileNotFoundError:  # the VMM started the kernel itself
            return b""


def attester(root: str = "") -> TpmAttester:
    """What `attester.detect` calls."""
    device = root + DEVICE

    def transact(command: bytes) -> bytes:
        # An answer has to be read before the next command; one open file per command cannot mix them.
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.write(descriptor, command)
            return os.read(descriptor, tpm2.RESPONSE_BYTES)
        finally:
            os.close(descriptor)

    return TpmAttester(transact, root + FIRMWARE_LOG)


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()
