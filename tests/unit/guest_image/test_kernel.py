"""Kernel modules in order, and the ELF inside a bzImage."""

import gzip
import lzma
import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_guest_image import kernel
from sealrun_guest_image.errors import BuildError

NEEDS = {
    "virtio_pci": ["virtio", "virtio_ring"],
    "virtio": ["virtio_ring"],
    "virtio_ring": [],
    "virtio_net": ["net_failover", "virtio", "virtio_ring"],
    "net_failover": ["failover"],
    "failover": [],
}


def needs(name: str) -> list[str]:
    if name not in NEEDS:
        raise BuildError(f"no module {name}")
    return NEEDS[name]


def test_each_module_comes_behind_what_it_needs() -> None:
    order = kernel.load_order(["virtio_net", "virtio_pci"], set(), needs)
    assert sorted(order) == sorted(NEEDS)
    for position, name in enumerate(order):
        assert set(NEEDS[name]) <= set(order[:position])


@given(st.permutations(sorted(NEEDS)))
def test_any_order_of_wishes_gives_a_right_one(wanted: list[str]) -> None:
    order = kernel.load_order(wanted, set(), needs)
    assert len(order) == len(set(order)) == len(NEEDS)
    for position, name in enumerate(order):
        assert set(NEEDS[name]) <= set(order[:position])


def test_what_is_built_in_is_not_loaded() -> None:
    assert kernel.load_order(["virtio_pci"], {"virtio", "virtio_ring"}, needs) == ["virtio_pci"]
    assert kernel.load_order(["not_a_module"], {"not_a_module"}, needs) == []


def test_a_module_that_is_not_there() -> None:
    with pytest.raises(BuildError, match="no module nowhere"):
        kernel.load_order(["nowhere"], set(), needs)


def test_a_circle() -> None:
    with pytest.raises(BuildError, match="a needs itself"):
        kernel.load_order(["a"], set(), {"a": ["b"], "b": ["a"]}.__getitem__)


def test_the_kernels_spelling() -> None:
    assert kernel.canonical("virtio-rng.ko") == "virtio_rng"


ELF = b"\x7fELF\x02\x01" + bytes(range(256)) * 40 + b"\0" * 5000 + b"abcabcabcabc" * 700


def bzimage(payload: bytes) -> bytes:
    """The smallest thing with a setup header: one setup sector, then 16 bytes, then the payload."""
    image = bytearray(2 * 512 + 16)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    payload += struct.pack("<I", len(ELF))
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + payload


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress], ids=["gzip", "xz"])
def test_the_elf_is_found(compress) -> None:
    assert kernel.vmlinux(bzimage(compress(ELF))) == ELF


@pytest.mark.skipif(shutil.which("lz4") is None, reason="the lz4 program writes the input")
@pytest.mark.parametrize("level", ["-1", "-9"])
def test_lz4_as_debian_compresses(level: str) -> None:
    command = ["lz4", "-l", level, "-c"]
    data = subprocess.run(command, input=ELF * 30, capture_output=True, check=True).stdout
    assert kernel.vmlinux(bzimage(data)) == ELF * 30


def test_a_compression_that_this_python_does_not_know() -> None:
    assert kernel.vmlinux(bzimage(b"\x28\xb5\x2f\xfd zstd")) is None


def test_what_is_no_kernel() -> None:
    with pytest.raises(BuildError, match="no bzImage"):
        kernel.vmlinux(b"\0" * 4096)
    with pytest.raises(BuildError, match="no ELF"):
        kernel.vmlinux(bzimage(gzip.compress(b"something else")))
