"""The operator's collateral: what verifiers need besides the evidence. Nothing is ever fetched.

    collateral/snp/*.pem                     AMD's ASK, ARK and ASVK (any of them, any product)
    collateral/snp/vcek/HWID/blNN_teeNN_snpNN_ucodeNN[_fmcNN]_vcek.der, else .../vcek.der
    collateral/tdx/FMSPC.json                TCB info, QE identity, CRLs and their issuers, in the
                                             form of dcap-qvl's QuoteCollateralV3

The VCEKs lie where Trustee's offline store has them (kbs-protocol, 7.1). Files are read when they
are asked for, so that what the operator renews counts at once.
"""

import glob
import os
import re

from cryptography import x509

from sealrun_broker.errors import BrokerError
from sealrun_broker.verifiers import snp_chain
from sealrun_broker.verifiers.snp_report import Tcb

_HEX = re.compile(r"[0-9A-Fa-f]{1,128}")


class Collateral:
    """Reads below `path`, which need not be there."""

    def __init__(self, path: str) -> None:
        self.path = path

    def snp_authorities(self) -> list[x509.Certificate]:
        """All certificates of AMD's authorities. Raises BrokerError for a file that is not PEM."""
        found: list[x509.Certificate] = []
        for name in sorted(glob.glob(f"{glob.escape(self.path)}/snp/*.pem")):
            try:
                with open(name, "rb") as stream:
                    found += snp_chain.load_pem(stream.read())
            except (OSError, ValueError) as error:
                raise BrokerError(f"cannot read the collateral {name}: {error}") from error
        return found

    def vcek(self, hwid: str, tcb: Tcb) -> bytes | None:
        """The DER certificate of a chip's key at this TCB, if it is there. hwid: hex.

        Raises BrokerError."""
        name = f"bl{tcb.bootloader:02}_tee{tcb.tee:02}_snp{tcb.snp:02}_ucode{tcb.microcode:02}"
        if tcb.fmc is not None:
            name += f"_fmc{tcb.fmc:02}"
        folder = f"{self.path}/snp/vcek/{hwid}"
        return self._read(f"{folder}/{name}_vcek.der") or self._read(f"{folder}/vcek.der")

    def tdx(self, fmspc: str) -> str | None:
        """The collateral of a platform as JSON text, if it is there. fmspc: hex.

        Raises BrokerError."""
        assert _HEX.fullmatch(fmspc)
        text = self._read(f"{self.path}/tdx/{fmspc.upper()}.json")
        if text is None:
            return None
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise BrokerError(f"cannot read the collateral of {fmspc}: it is not text") from error

    @staticmethod
    def _read(name: str) -> bytes | None:
        try:
            with open(name, "rb") as stream:
                return stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BrokerError(
                f"cannot read the collateral {os.path.basename(name)}: {error.strerror}"
            ) from error
