"""What OVMF measures of a direct boot; a booted VM confirms it in tests/system/test_tpm.py."""

import dataclasses
import hashlib
from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import authenticode, bzimage, measured_boot, pcr
from sealrun_vmm.spec import VmSpec


def test_each_input_has_its_pcr(measured: VmSpec) -> None:
    def values(spec: VmSpec) -> dict[int, bytes]:
        return pcr.values(spec, pcr.events(spec))

    def changed(**changes: object) -> set[int]:
        other = values(dataclasses.replace(measured, **changes))  # type: ignore[arg-type]
        return {number for number, value in plain.items() if other[number] != value}

    plain = values(measured)
    assert set(plain) == {2, 3, 4, 5, 6, 7, 9}
    assert changed(cmdline="other") == {9}
    assert changed(memory_mib=2048) == {4}  # QEMU tells the kernel where the initrd is
    assert changed(cpus=2) == set()
    Path(measured.initrd).write_bytes(b"another")
    assert changed() == {4, 9}
    Path(measured.kernel).write_bytes(firmwares.kernel(8192 * 2))
    assert 4 in changed()


def test_the_firmware_may_take_2_gib_of_low_memory_at_most() -> None:
    kernel = firmwares.kernel()
    assert bzimage.as_loaded(kernel, 4096, 2816) == bzimage.as_loaded(kernel, 4096, 65536)
    assert bzimage.as_loaded(kernel, 4096, 2815) != bzimage.as_loaded(kernel, 4096, 2816)


def test_a_register_is_a_chain_of_hashes() -> None:
    first, second = hashlib.sha256(b"a").digest(), hashlib.sha256(b"b").digest()
    once = hashlib.sha256(bytes(32) + first).digest()
    assert measured_boot.replay([], "sha256") == bytes(32)
    assert measured_boot.replay([first, second], "sha256") == hashlib.sha256(once + second).digest()


def test_init_data_goes_into_pcr_8() -> None:
    digest = hashlib.sha256(b"init-data").digest()
    assert pcr.with_init_data(digest) == hashlib.sha256(bytes(32) + digest).digest()
    with pytest.raises(CannotMeasure, match="sha256 only"):
        pcr.with_init_data(bytes(48))


def test_without_firmware_the_launcher_measures(measured: VmSpec) -> None:
    """PCR 4 has the kernel, PCR 9 command line and initrd, and no other has anything."""
    spec = dataclasses.replace(measured, firmware="")
    kernel = hashlib.sha256(Path(spec.kernel).read_bytes()).digest()
    options = [
        hashlib.sha256(data).digest()
        for data in (spec.cmdline.encode(), Path(spec.initrd).read_bytes())
    ]
    assert pcr.values(spec, pcr.events(spec)) == dict.fromkeys(range(8), bytes(32)) | {
        4: measured_boot.replay([kernel], "sha256"),
        9: measured_boot.replay(options, "sha256"),
    }


def test_signatures_and_checksum_are_not_part_of_an_image() -> None:
    plain = firmwares.kernel()
    signed = firmwares.kernel(signatures=b"s" * 64)
    unsigned = bytearray(plain)
    unsigned[0x58 + 112 + 36 : 0x58 + 112 + 40] = signed[0x58 + 112 + 36 : 0x58 + 112 + 40]
    assert authenticode.digest(signed, "sha256") == authenticode.digest(plain, "sha256")
    changed = bytearray(plain)
    changed[0x58 + 64] ^= 1
    assert authenticode.digest(bytes(changed), "sha256") == authenticode.digest(plain, "sha256")
    changed[-1] ^= 1
    assert authenticode.digest(bytes(changed), "sha256") != authenticode.digest(plain, "sha256")


@pytest.mark.parametrize("data", [b"", b"MZ" * 50, firmwares.kernel()[:0x60], bytes(4096)])
def test_what_is_no_image(data: bytes) -> None:
    with pytest.raises(CannotMeasure, match="kernel"):
        authenticode.digest(data, "sha256")
    with pytest.raises(CannotMeasure, match="kernel"):
        bzimage.as_loaded(data[:0x202], 1, 512)
