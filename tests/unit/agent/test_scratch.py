"""The scratch disk's tables, and how it is found. What they do is asked in a VM (system/test_scratch.py)."""

import struct
from pathlib import Path

import pytest
from sealrun_agent import scratch


def test_the_disk_is_found_by_its_serial(tmp_path: Path) -> None:
    for name, serial in (("vda", "layer"), ("vdb", "scratch"), ("vdc", "scratch-too")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serial").write_text(serial + "\n")
    (tmp_path / "dm-0").mkdir()
    assert scratch.find(str(tmp_path)) == "/dev/vdb"
    (tmp_path / "vdb/serial").write_bytes(b"scr\xff\xfe")
    assert scratch.find(str(tmp_path)) == ""


def test_the_key_is_in_the_table_of_the_encryption_only() -> None:
    key = bytes(range(32))
    target = scratch.encryption("/dev/dm-0", 4096, key)
    assert (
        target.parameters
        == (
            f"capi:gcm(aes)-random {key.hex()} 0 /dev/dm-0 0 2 integrity:28:aead sector_size:4096"
        ).encode()
    )
    below = scratch.integrity("/dev/vda", 8)
    assert below.parameters.startswith(b"/dev/vda 0 28 D ")
    assert key.hex().encode() not in below.parameters


def test_what_was_never_written_is_zeros_by_a_table_in_memory() -> None:
    target = scratch.sparse("/dev/dm-2", "/dev/dm-1", 4096)
    assert (target.length, target.kind) == (4096, "snapshot")
    assert target.parameters == b"/dev/dm-2 /dev/dm-1 N 64"


@pytest.mark.parametrize(("found", "usable"), [(8, 8), (4097, 4096), (1 << 40, 1 << 40)])
def test_whole_sectors_are_used(found: int, usable: int) -> None:
    block = struct.pack("<8sBBHIQ", b"integrt\0", 5, 3, 28, 1, found).ljust(4096, b"\0")
    assert scratch.usable_sectors(block) == usable


@pytest.mark.parametrize("block", [bytes(4096), b"\xff" * 4096, b"integrt\1" + bytes(4088)])
def test_a_disk_that_was_not_laid_out_is_refused(block: bytes) -> None:
    with pytest.raises(OSError, match="no superblock"):
        scratch.usable_sectors(block)
