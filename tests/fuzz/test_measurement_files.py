"""Firmware, IGVM files and kernels come from elsewhere: a digest, or an error of ours, nothing else."""

from collections.abc import Callable

import pytest
from fixtures import firmware as firmwares
from hypothesis import given, settings
from hypothesis import strategies as st
from sealrun_vmm.errors import CannotMeasure
from sealrun_vmm.measurement import authenticode, bzimage, igvm, kernel_hashes, snp, tdx, vmsa
from sealrun_vmm.measurement.ovmf import Ovmf

HASHES = kernel_hashes.hash_all(b"kernel", b"initrd", "quiet")
SECTIONS = ((0x1000, 0x1000, 2), (0x2000, 0x1000, 3), (0x10000, 0x1000, 0x10))
TDX = ((0, 8192, (1 << 32) - 8192, 8192, 0, 1), (0, 0, 0x809000, 0x2000, 2, 0))
FIRMWARE = firmwares.ovmf(2, sev=SECTIONS, tdx=TDX)
IGVM = firmwares.igvm(bytes(4096), [vmsa.at_reset(vmsa.RESET_ADDRESS, 1)], SECTIONS)
KERNEL = firmwares.kernel()

Reader = Callable[[bytes], object]
READERS: dict[str, tuple[bytes, Reader]] = {
    "snp": (FIRMWARE, lambda data: snp.digest(Ovmf(data), HASHES, 2, "EPYC-v4")),
    "tdx": (FIRMWARE, lambda data: tdx.mrtd(Ovmf(data))),
    "igvm": (IGVM, lambda data: igvm.digest(igvm.parse(data), HASHES, 1)),
    "authenticode": (KERNEL, lambda data: authenticode.digest(data, "sha256")),
    "bzimage": (KERNEL, lambda data: bzimage.as_loaded(data, 4096, 512)),
}


def read(reader: Reader, data: bytes) -> None:
    try:
        reader(data)
    except CannotMeasure as error:
        assert str(error)


@pytest.mark.parametrize("name", READERS)
@settings(deadline=None)
@given(data=st.data())
def test_damaged_files(name: str, data: st.DataObject) -> None:
    whole, reader = READERS[name]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        # Where the tables are: at the end of a firmware, at the beginning of the others.
        distance = data.draw(st.integers(0, 0xC00 if name in ("snp", "tdx") else 0x300))
        position = len(whole) - 1 - distance if name in ("snp", "tdx") else distance
        damaged[position] = data.draw(st.integers(0, 255))
    read(reader, bytes(damaged[: data.draw(st.sampled_from([len(whole), len(whole) // 2, 100]))]))


@pytest.mark.parametrize("name", READERS)
@given(noise=st.binary(max_size=400))
def test_noise(name: str, noise: bytes) -> None:
    whole, reader = READERS[name]
    read(reader, noise)
    read(reader, noise + whole[len(noise) :])
