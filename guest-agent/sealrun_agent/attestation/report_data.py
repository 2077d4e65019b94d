"""What the evidence is bound to: hash(JCS(R1)) (kbs-protocol, 2.4).

R1 = {"additional-evidence", "nonce", "tee-pubkey"}; RFC 8785 for objects of strings with ASCII
names is sorted names, no white space, and JSON's shortest escapes.
"""

import hashlib
from collections.abc import Mapping
from typing import Final

import msgspec

DEFAULT_ALGORITHM: Final = "sha384"
ALGORITHMS: Final = ("sha256", "sha384", "sha512")

Json = str | Mapping[str, "Json"]


def canonical(value: Json) -> bytes:
    """RFC 8785 of nested objects of strings; their names are ASCII."""
    return msgspec.json.encode(value, order="sorted")


def report_data(
    nonce: str,
    tee_pubkey: Mapping[str, str],
    additional_evidence: str = "",
    algorithm: str = DEFAULT_ALGORITHM,
) -> bytes:
    """The hash that goes into the primary evidence. `algorithm` is one of ALGORITHMS."""
    bound: Json = {
        "additional-evidence": additional_evidence,
        "nonce": nonce,
        "tee-pubkey": tee_pubkey,
    }
    return hashlib.new(algorithm, canonical(bound)).digest()
