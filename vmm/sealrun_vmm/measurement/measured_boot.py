"""The events that OVMF and the kernel's EFI stub measure of a direct boot (QEMU's -kernel), in order.

TCG PC Client Platform Firmware Profile, 3.3.4: which event goes into which PCR. On TDX the same events
go into RTMRs: PCRs 2 to 6 are RTMR 1, PCRs 8 to 15 RTMR 2 (UEFI specification, 38.4.1).
"""

import hashlib
import struct
import uuid
from typing import Final, NamedTuple

from sealrun_vmm.measurement import authenticode, bzimage
from sealrun_vmm.spec import VmSpec

_GLOBAL: Final = uuid.UUID("8be4df61-93ca-11d2-aa0d-00e098032b8c")
_DATABASE: Final = uuid.UUID("d719b2cb-3d3a-4596-a3bc-dad00e67656f")
_SEPARATOR: Final = bytes(4)
_STUB_INITRD: Final = (
    " initrd=initrd"  # OVMF adds it, for kernels that look for a file of that name
)


class Event(NamedTuple):
    """pcr: the register. what: one line for a person. digest: of the algorithm asked for."""

    pcr: int
    what: str
    digest: bytes


class _Log:
    def __init__(self, algorithm: str) -> None:
        self._algorithm = algorithm
        self.events: list[Event] = []

    def add(self, pcr: int, what: str, data: bytes) -> None:
        """An event whose digest is that of `data`."""
        self.events.append(Event(pcr, what, hashlib.new(self._algorithm, data).digest()))


def events(spec: VmSpec, algorithm: str) -> list[Event]:
    """What is measured of `spec`, but for PCRs 0 and 1. Raises CannotMeasure, OSError."""
    with open(spec.kernel, "rb") as stream:
        kernel = stream.read()
    with open(spec.initrd, "rb") as stream:
        initrd = stream.read()
    log = _Log(algorithm)
    for name, guid, value in (
        ("SecureBoot", _GLOBAL, b"\0"),
        ("PK", _GLOBAL, b""),
        ("KEK", _GLOBAL, b""),
        ("db", _DATABASE, b""),
        ("dbx", _DATABASE, b""),
    ):
        log.add(7, f"variable {name}: {'off' if value else 'empty'}", _variable(name, guid, value))
    log.add(7, "separator", _SEPARATOR)
    loaded = bzimage.as_loaded(kernel, len(initrd), spec.memory_mib)
    image = authenticode.digest(loaded, algorithm)
    log.events.append(Event(4, f"kernel {spec.kernel}, as QEMU hands it over", image))
    log.add(4, "action", b"Calling EFI Application from Boot Option")
    for pcr in range(2, 7):
        log.add(pcr, "separator", _SEPARATOR)
    options = (spec.cmdline + _STUB_INITRD).encode("utf-16-le") + b"\0\0"
    log.add(9, f"command line: {spec.cmdline}{_STUB_INITRD}", options)
    log.add(9, f"initrd {spec.initrd}", initrd)
    log.add(5, "action", b"Exit Boot Services Invocation")
    log.add(5, "action", b"Exit Boot Services Returned with Success")
    return log.events


def replay(digests: list[bytes], algorithm: str) -> bytes:
    """The register after all of `digests` extended it."""
    value = bytes(hashlib.new(algorithm).digest_size)
    for digest in digests:
        value = hashlib.new(algorithm, value + digest).digest()
    return value


def _variable(name: str, guid: uuid.UUID, value: bytes) -> bytes:
    """UEFI_VARIABLE_DATA."""
    head = guid.bytes_le + struct.pack("<QQ", len(name), len(value))
    return head + name.encode("utf-16-le") + value
