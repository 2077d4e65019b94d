"""Reports by the kernel's common interface: configfs-tsm (Documentation/ABI/testing/configfs-tsm-report).

A report is a directory that is made, given its input (`inblob`), and read (`outblob`). The kernel
counts the inputs (`generation`): had somebody else written one in between, the numbers would differ.
"""

import os
from typing import Final, NamedTuple

REPORTS: Final = "/sys/kernel/config/tsm/report"


class Report(NamedTuple):
    """out: what the TEE signed. auxiliary: certificates that the host has for it, if any."""

    out: bytes
    auxiliary: bytes


def offers(provider: str, reports: str = REPORTS) -> bool:
    """Whether the kernel gives reports of this provider: sev_guest, tdx_guest."""
    directory = f"{reports}/sealrun-probe"
    try:
        os.mkdir(directory)
    except OSError:
        return False
    try:
        return _read(f"{directory}/provider").strip() == provider.encode()
    except OSError:
        return False
    finally:
        os.rmdir(directory)


def report(data: bytes, reports: str = REPORTS) -> Report:
    """A report over 64 bytes of `data`, asked for by the most privileged level that may.

    Raises OSError. One caller at a time."""
    directory = f"{reports}/sealrun"
    os.mkdir(directory)
    try:
        _write(f"{directory}/inblob", data)
        generation = _read(f"{directory}/generation")
        out = _read(f"{directory}/outblob")
        auxiliary = _optional(f"{directory}/auxblob")
        if _read(f"{directory}/generation") != generation:
            raise OSError(0, "somebody else asked for a report at the same time")
        return Report(out, auxiliary)
    finally:
        os.rmdir(directory)


def _read(path: str) -> bytes:
    with open(path, "rb") as stream:
        return stream.read()


def _write(path: str, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY)  # one write is one input
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def _optional(path: str) -> bytes:
    try:
        return _read(path)
    except OSError:
        return b""
