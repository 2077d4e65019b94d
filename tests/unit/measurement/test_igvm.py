"""The launch digest of an IGVM file; sev-snp-measure says the same of the firmware that it holds.

Cloud Hypervisor on KVM launches what QEMU launches of the same firmware, so that the tool, which
knows no IGVM, is an oracle for it (its authors tested it that way)."""

import struct
from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from fixtures import snp_oracle
from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import igvm, kernel_hashes, vmsa

SECTIONS = (
    (0x1000, 0x4000, 1),
    (0x5000, 0x1000, 2),
    (0x6000, 0x1000, 3),
    (0x10000, 0x1000, 0x10),
    (0x11000, 0x2000, 1),
)
SIGNATURE = 0x00800F12
KERNEL, INITRD, CMDLINE = b"a kernel" * 100, b"an initrd", "quiet"
HASHES = kernel_hashes.hash_all(KERNEL, INITRD, CMDLINE)


def states(cpus: int) -> list[bytes]:
    addresses = [vmsa.RESET_ADDRESS, *[firmwares.RESET] * (cpus - 1)]
    return [vmsa.at_reset(address, SIGNATURE) for address in addresses]


def image(monkeypatch: pytest.MonkeyPatch) -> bytes:
    monkeypatch.setattr(firmwares, "HASH_TABLE", igvm.HASHES_ADDRESS)
    return firmwares.ovmf(8, sev=SECTIONS)


@pytest.mark.parametrize("cpus", [1, 3])
def test_the_oracle_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpus: int
) -> None:
    firmware = image(monkeypatch)
    expected = snp_oracle.of_bytes(tmp_path, (firmware, KERNEL, INITRD), CMDLINE, cpus)
    file = igvm.parse(firmwares.igvm(firmware, states(cpus), SECTIONS))
    assert igvm.digest(file, HASHES, cpus) == expected


def test_a_file_without_a_page_for_the_hashes_gets_one() -> None:
    sections = [section for section in SECTIONS if section[2] != 0x10]
    file = igvm.parse(firmwares.igvm(bytes(4096), states(1), sections))
    one = igvm.digest(file, HASHES, 1)
    other = igvm.digest(file, HASHES._replace(cmdline=bytes(32)), 1)
    assert one != other


def test_the_number_of_cpus_is_part_of_the_file() -> None:
    file = igvm.parse(firmwares.igvm(bytes(4096), states(2), SECTIONS))
    with pytest.raises(CannotMeasure, match="for 2 CPUs, and the VM has 4") as caught:
        igvm.digest(file, HASHES, 4)
    assert "vm.cpus" in caught.value.remedy


def test_registers_that_a_vmm_cannot_set_are_kvms() -> None:
    context = bytearray(states(1)[0])
    struct.pack_into("<Q", context, 0x3B0, 0x7F)  # SEV features
    struct.pack_into("<Q", context, 0x0D0, 0)  # EFER
    assert vmsa.from_context(bytes(context)) == states(1)[0]
    struct.pack_into("<Q", context, 0x178, 0x1234)  # RIP
    assert vmsa.from_context(bytes(context)) != states(1)[0]


def test_a_parameter_area_is_not_measured_but_has_a_place() -> None:
    area = (0x301, struct.pack("<QII", 0x2000, 0, 0))
    insert = (0x303, struct.pack("<QII", 0x40000, 1, 0))
    plain = igvm.parse(firmwares.igvm(bytes(4096), states(1), SECTIONS))
    file = igvm.parse(firmwares.igvm(bytes(4096), states(1), SECTIONS, more=[area, insert]))
    assert len(file.pages) == len(plain.pages) + 2
    assert igvm.digest(file, HASHES, 1) != igvm.digest(plain, HASHES, 1)


def test_parameters_cannot_lie_over_the_hashes() -> None:
    area = (0x301, struct.pack("<QII", 0x2000, 0, 0))
    insert = (0x303, struct.pack("<QII", 0x10000, 1, 0))
    with pytest.raises(CannotMeasure, match="where the table of hashes has to be"):
        igvm.parse(firmwares.igvm(bytes(4096), states(1), SECTIONS, more=[area, insert]))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "does not begin with IGVM"),
        (b"IGVM", "headers are damaged"),
        (b"IGVM" + bytes(40), "its header is damaged"),
        (firmwares.igvm(bytes(4096), [], platform=3), "not for SEV-SNP"),
        (firmwares.igvm(bytes(4096), [], more=[(0x310, b"")]), "a header of type 0x310"),
        (firmwares.igvm(bytes(4096), [])[:-1], "its header is damaged"),
    ],
)
def test_what_is_no_such_file(data: bytes, words: str) -> None:
    with pytest.raises(CannotMeasure, match=words):
        igvm.parse(data)


def test_a_changed_header_is_noticed() -> None:
    data = bytearray(firmwares.igvm(bytes(4096), states(1), SECTIONS))
    data[100] ^= 1
    with pytest.raises(CannotMeasure, match="its checksum is wrong"):
        igvm.parse(bytes(data))
