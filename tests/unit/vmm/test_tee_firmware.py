"""Firmware of the wrong kind is noticed before anything starts, with the reason and the remedy."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from fixtures import firmware as firmwares
from sealrun_vmm.driver import DriverName
from sealrun_vmm.errors import HostUnfit
from sealrun_vmm.measurement import vmsa
from sealrun_vmm.spec import Tee
from sealrun_vmm.tee import choice
from sealrun_vmm.tee.launch import Options

PLAIN = firmwares.ovmf(4, sev=())
SEV = firmwares.ovmf(4)
TDX = firmwares.ovmf(4, tdx=[(0, 0x4000, (1 << 32) - 0x4000, 0x4000, 0, 1)])
IGVM = firmwares.igvm(SEV, [vmsa.at_reset(vmsa.RESET_ADDRESS, 0x800F12)])
KERNEL = firmwares.kernel()

SNP_BY_CH = (Tee.SNP, DriverName.CLOUD_HYPERVISOR)
SNP_BY_QEMU = (Tee.SNP, DriverName.QEMU)
TDX_BY_QEMU = (Tee.TDX, DriverName.QEMU)
TPM_BY_QEMU = (Tee.TPM, DriverName.QEMU)
ALL = (SNP_BY_CH, SNP_BY_QEMU, TDX_BY_QEMU, TPM_BY_QEMU)
Way = tuple[Tee, DriverName]
by_each = pytest.mark.parametrize("way", ALL, ids="-".join)


def launched(way: Way, path: str) -> str:
    """The firmware that is taken where the operator names `path`."""
    tee, driver = way
    return choice.load(tee).launch(driver, Options(firmware=path)).firmware


def refused(way: Way, path: str) -> str:
    with pytest.raises(HostUnfit) as caught:
        launched(way, path)
    assert "vm.firmware in sealrun.toml" in caught.value.remedy
    return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> Callable[[bytes], str]:
    def write(content: bytes) -> str:
        (tmp_path / "firmware").write_bytes(content)
        return str(tmp_path / "firmware")

    return write


@pytest.mark.parametrize(
    ("way", "content"),
    [(SNP_BY_CH, IGVM), (SNP_BY_QEMU, SEV), (TDX_BY_QEMU, TDX), (TPM_BY_QEMU, PLAIN)],
)
def test_the_right_kind(way: Way, content: bytes, file: Callable[[bytes], str]) -> None:
    path = file(content)
    assert launched(way, path) == path


@pytest.mark.parametrize(
    ("way", "content", "why"),
    [
        (SNP_BY_CH, SEV, "it does not begin with IGVM"),
        (SNP_BY_CH, KERNEL, "it does not begin with IGVM"),
        (SNP_BY_CH, firmwares.igvm(SEV, [], platform=3), "it is not for SEV-SNP"),
        (SNP_BY_QEMU, IGVM, "the firmware is no image of OVMF"),
        (SNP_BY_QEMU, KERNEL, "the firmware is no image of OVMF: it has no table at its end"),
        (SNP_BY_QEMU, PLAIN, "does not compare kernel, initrd and command line with hashes"),
        (TDX_BY_QEMU, SEV, "the firmware has no TDVF metadata"),
        (TDX_BY_QEMU, IGVM, "the firmware is no image of OVMF"),
        (TPM_BY_QEMU, IGVM, "the firmware is no image of OVMF"),
        (TPM_BY_QEMU, KERNEL, "the firmware is no image of OVMF"),
    ],
)
def test_the_wrong_kind(way: Way, content: bytes, why: str, file: Callable[[bytes], str]) -> None:
    path = file(content)
    text = refused(way, path)
    assert text.startswith(f"cannot use {path} as ")
    assert why in text


@by_each
def test_nothing_in_it(way: Way, file: Callable[[bytes], str]) -> None:
    for content in (b"", bytes(1 << 20), b"\xff" * (1 << 20), b"IGVM", b"x"):
        assert refused(way, file(content)).startswith("cannot use ")


@pytest.mark.parametrize("size", [3, 8, 23, 24, 30, 200, len(IGVM) - 1])
def test_an_igvm_file_that_was_cut(size: int, file: Callable[[bytes], str]) -> None:
    assert "cannot read the IGVM file: " in refused(SNP_BY_CH, file(IGVM[:size]))


def test_an_igvm_file_whose_headers_lie(file: Callable[[bytes], str]) -> None:
    """The checksum is right, and the first header longer than all of them."""
    damaged = bytearray(IGVM)
    struct.pack_into("<I", damaged, 28, 0xFFFFFFFF)
    (length,) = struct.unpack_from("<I", damaged, 12)
    checksum = zlib.crc32(damaged[:20] + bytes(4) + damaged[24 : 24 + length])
    struct.pack_into("<I", damaged, 20, checksum)
    assert "its headers are damaged" in refused(SNP_BY_CH, file(bytes(damaged)))


@by_each
def test_what_is_no_file(way: Way, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("/nowhere")
    assert "there is no /nowhere/fw" in refused(way, "/nowhere/fw")
    assert refused(way, str(tmp_path)).endswith(": it is no file")
    assert refused(way, str(tmp_path / "pipe")).endswith(": it is no file")
    assert refused(way, "/dev/zero").endswith(": it is no file")
    assert refused(way, str(tmp_path / "dangling")).endswith(": it is a link to nothing")
    with open(tmp_path / "large", "wb") as large:
        large.truncate(1 << 40)
    assert refused(way, str(tmp_path / "large")).endswith(": it is larger than 64 MiB")


def test_this_machines_ovmf_is_for_a_tpm_only() -> None:
    """Debian 12's has no metadata of SEV or TDX that a VM of ours could be started with."""
    assert launched(TPM_BY_QEMU, "") == "/usr/share/ovmf/OVMF.fd"
    refused(SNP_BY_QEMU, "/usr/share/ovmf/OVMF.fd")
