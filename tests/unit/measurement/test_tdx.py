"""MRTD, by a second calculation that follows the specification's text; the order of events, by the log
of a real TD.

Not verified on hardware: no MRTD that a CPU reported of a known firmware was at hand."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import tdx
from sealrun_vmm.measurement.ovmf import Ovmf
from sealrun_vmm.spec import VmSpec

BOOT, CONFIGURATION, HOB, MEMORY = 0, 1, 2, 3
PAGES = 8
SIZE = PAGES * 4096
BASE = (1 << 32) - SIZE
SECTIONS = (
    (4096, SIZE - 4096, BASE + 4096, SIZE - 4096, BOOT, 1),
    (0, 4096, BASE, 4096, CONFIGURATION, 0),
    (0, 0, 0x810000, 0x10000, MEMORY, 0),
    (0, 0, 0x809000, 0x2000, HOB, 0),
    (0, 0, 0x900000, 0x1000, MEMORY, 2),
)


def by_the_book(image: bytes) -> bytes:
    """MRTD of `image` with SECTIONS, written out."""
    record = b""
    for offset, _, address, size, _, attributes in SECTIONS:
        if attributes == 2:
            continue
        for page in range(size // 4096):
            at = (address + 4096 * page).to_bytes(8, "little")
            record += b"MEM.PAGE.ADD" + bytes(4) + at + bytes(104)
            if attributes == 1:
                for chunk in range(16):
                    at = (address + 4096 * page + 256 * chunk).to_bytes(8, "little")
                    start = offset + 4096 * page + 256 * chunk
                    record += b"MR.EXTEND" + bytes(7) + at + bytes(104)
                    record += image[start : start + 256]
    return hashlib.sha384(record).digest()


def test_mrtd() -> None:
    image = firmwares.ovmf(PAGES, tdx=SECTIONS)
    assert tdx.mrtd(Ovmf(image)) == by_the_book(image)


def test_what_is_not_measured_does_not_change_it() -> None:
    image = firmwares.ovmf(PAGES, tdx=SECTIONS)
    other = bytes([image[0] ^ 1]) + image[1:]  # the store of variables
    assert tdx.mrtd(Ovmf(other)) == tdx.mrtd(Ovmf(image))
    other = image[:5000] + bytes([image[5000] ^ 1]) + image[5001:]
    assert tdx.mrtd(Ovmf(other)) != tdx.mrtd(Ovmf(image))


@pytest.mark.parametrize(
    "section",
    [
        (0, SIZE + 1, BASE, SIZE, BOOT, 1),
        (0, 4096, BASE, 100, BOOT, 1),
        (4096, SIZE, BASE, SIZE, BOOT, 1),
        (0, 8192, BASE, 4096, BOOT, 1),
    ],
)
def test_damaged_metadata(section: tuple[int, int, int, int, int, int]) -> None:
    with pytest.raises(CannotMeasure, match="damaged"):
        tdx.mrtd(Ovmf(firmwares.ovmf(PAGES, tdx=[section])))


def test_metadata_that_asks_for_all_memory() -> None:
    section = (0, 0, 0, 1 << 62, MEMORY, 0)
    with pytest.raises(CannotMeasure, match="more memory than any needs"):
        tdx.mrtd(Ovmf(firmwares.ovmf(PAGES, tdx=[section])))


def test_a_firmware_that_is_not_for_tdx() -> None:
    with pytest.raises(CannotMeasure, match="no TDVF metadata"):
        tdx.mrtd(Ovmf(firmwares.ovmf(PAGES)))


def test_the_real_one_orders_its_events_like_this(measured: VmSpec) -> None:
    log = Path(__file__).parents[4] / "shared/vectors/tdx/ccel_ovmf.bin"
    if not log.exists():
        pytest.skip(f"{log} is not there")
    recorded = [e for e in firmwares.events(log.read_bytes()) if e[0] in (2, 3)]
    found = tdx.events(measured)
    # Of an older firmware: no separator in RTMR 1.
    ours = [(2 if e.pcr < 8 else 3, e) for e in found if e.what != "separator"]
    assert [register for register, _ in ours] == [register for register, *_ in recorded]
    for (_, event), (_, _, digest, _) in zip(ours, recorded, strict=True):
        if event.what == "action":
            assert event.digest == digest


def test_rtmrs(measured: VmSpec) -> None:
    found = tdx.events(measured)
    values = tdx.rtmr1(found, tdx.plain_kernel(measured))
    assert len({value.value for value in values}) == 4
    other = tdx.events(dataclasses.replace(measured, cmdline="other"))
    assert tdx.rtmr2(other) != tdx.rtmr2(found)
    assert tdx.rtmr1(other, b"")[0] == tdx.rtmr1(found, b"")[0]
    # QEMU's entries in the kernel's header depend on the memory's size.
    larger = tdx.events(dataclasses.replace(measured, memory_mib=2048))
    assert tdx.rtmr1(larger, b"")[0].value != values[0].value
