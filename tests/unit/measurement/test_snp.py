"""SEV-SNP's launch digest; sev-snp-measure computes the same independently."""

from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from fixtures import snp_oracle
from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import kernel_hashes, snp
from sealrun_vmm.measurement.ovmf import Ovmf

CMDLINE = "console=ttyS0 quiet"
KERNEL, INITRD = b"a kernel" * 1000, b"an initrd" * 500


def oracle(tmp_path: Path, image: bytes, cpus: int) -> bytes:
    """What sev-snp-measure says of the same VM."""
    return snp_oracle.of_bytes(tmp_path, (image, KERNEL, INITRD), CMDLINE, cpus)


def ours(image: bytes, cpus: int) -> bytes:
    hashes = kernel_hashes.hash_all(KERNEL, INITRD, CMDLINE)
    return snp.digest(Ovmf(image), hashes, cpus, "EPYC-v4")


@pytest.mark.parametrize("cpus", [1, 2, 7])
@pytest.mark.parametrize("pages", [1, 16, 512])
def test_the_oracle_says_the_same(tmp_path: Path, cpus: int, pages: int) -> None:
    image = firmwares.ovmf(pages, seed=cpus)
    assert ours(image, cpus) == oracle(tmp_path, image, cpus)


def test_everything_that_is_measured_changes_it() -> None:
    image = firmwares.ovmf()
    hashes = kernel_hashes.hash_all(KERNEL, INITRD, CMDLINE)
    other = [
        kernel_hashes.hash_all(KERNEL + b"x", INITRD, CMDLINE),
        kernel_hashes.hash_all(KERNEL, INITRD + b"x", CMDLINE),
        kernel_hashes.hash_all(KERNEL, INITRD, CMDLINE + " x"),
    ]
    digests = {snp.digest(Ovmf(image), found, 1, "EPYC-v4") for found in (hashes, *other)}
    digests.add(snp.digest(Ovmf(image), hashes, 2, "EPYC-v4"))
    digests.add(snp.digest(Ovmf(firmwares.ovmf(seed=9)), hashes, 1, "EPYC-v4"))
    assert len(digests) == 6
    assert all(len(digest) == 48 for digest in digests)


def test_a_firmware_that_does_not_check_hashes_is_refused() -> None:
    image = firmwares.ovmf(sev=[s for s in firmwares.SEV_SECTIONS if s[2] != 0x10])
    with pytest.raises(CannotMeasure, match="does not compare kernel, initrd and command line"):
        ours(image, 1)


@pytest.mark.parametrize("name", ["OVMF.fd"])
def test_debians_firmware_is_one_of_those(name: str) -> None:
    path = Path("/usr/share/ovmf", name)
    assert path.exists(), "ovmf is not installed: run tests/run"
    with pytest.raises(CannotMeasure, match="does not compare"):
        ours(path.read_bytes(), 1)


def test_a_section_of_an_unknown_kind_is_refused() -> None:
    image = firmwares.ovmf(sev=[*firmwares.SEV_SECTIONS, (0x900000, 0x1000, 7)])
    with pytest.raises(CannotMeasure, match="the unknown kind 7"):
        ours(image, 1)


def test_a_cpu_without_a_known_signature_is_refused() -> None:
    hashes = kernel_hashes.hash_all(KERNEL, INITRD, CMDLINE)
    with pytest.raises(CannotMeasure, match="CPU model of the host"):
        snp.digest(Ovmf(firmwares.ovmf()), hashes, 1, "")


@pytest.mark.parametrize(
    "data", [b"", b"x" * 100, bytes(4096), bytes(8192), b"\xff" * 4096, bytes(4095)]
)
def test_what_is_no_firmware(data: bytes) -> None:
    with pytest.raises(CannotMeasure, match="no image of OVMF"):
        Ovmf(data)


def test_damaged_tables() -> None:
    """Any byte of the tables may be wrong: an error of ours, or a digest, never anything else."""
    image = firmwares.ovmf(1)
    for position in range(4096 - 0xC00, 4096, 5):
        for value in (0, 0xFF):
            damaged = image[:position] + bytes([value]) + image[position + 1 :]
            try:
                ours(damaged, 1)
            except CannotMeasure:
                continue
