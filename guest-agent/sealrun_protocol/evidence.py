"""What evidence is bound to that a person asks a running sandbox for (`sealrun attest`). No I/O.

Never to bytes of the asker's choice: what the handshake with a key broker binds evidence to is such a
hash too, and whoever could have it signed would be given the VM's keys. The two cannot be the same: they
are hashes over texts that begin differently (kbs-protocol, 2.4: `{"additional-evidence"`).
"""

import hashlib
from typing import Final

NONCE_BYTES: Final = range(16, 65)
_TEXT: Final = b"sealrun attest: fresh evidence over the nonce "


def bound_to(nonce: bytes) -> bytes:
    """The report data, 48 bytes, for a nonce."""
    return hashlib.sha384(_TEXT + nonce.hex().encode()).digest()
