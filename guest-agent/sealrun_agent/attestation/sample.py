"""Sample evidence: the form of evidence without its substance. It proves nothing.

CoCo's `sample` TEE (kbs-protocol, 7), for development, demo and tests.
"""

import binascii

from sealrun_protocol.init_data import InitData

from sealrun_agent.attestation.attester import Attester


class SampleAttester(Attester):
    """Anybody can make the same. To be used only where the tenant's init-data asks for it."""

    tee = "sample"

    def quote(self, report_data: bytes, entries: bytes) -> dict[str, object]:
        """{"svn", "report_data"}; the hash is not padded."""
        return {
            "svn": "1",
            "report_data": binascii.b2a_base64(report_data, newline=False).decode(),
        }

    def bind(self, init_data: InitData) -> None:
        """There is nothing that it could be compared with."""
