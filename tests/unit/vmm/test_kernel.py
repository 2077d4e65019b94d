"""Which kernels can be booted directly, and what damaged ones lead to."""

import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_vmm import kernel
from sealrun_vmm.cloud_hypervisor import landlock

GUEST = Path(__file__).parents[3] / "build/guest/vmlinux"
NO_ENTRY = "it has no PVH entry point"


def note(name: bytes, kind: int, content: bytes = b"\x40\x01\0\1") -> bytes:
    def padded(data: bytes) -> bytes:
        return data + bytes(-len(data) % 4)

    head = struct.pack("<III", len(name) + 1, len(content), kind)
    return head + padded(name + b"\0") + padded(content)


def elf(notes: bytes, kind: int = 4) -> bytes:
    """An ELF file with one segment."""
    head = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", kind, 4, 120, 0, 0, len(notes), len(notes), 4)
    return head + segment + notes


def judge(tmp_path: Path, data: bytes) -> str | None:
    path = tmp_path / "kernel"
    path.write_bytes(data)
    return kernel.obstacle(str(path))


def test_the_note_may_stand_behind_others(tmp_path: Path) -> None:
    assert judge(tmp_path, elf(note(b"Xen", 6) + note(b"GNU", 18) + note(b"Xen", 18))) is None


@pytest.mark.parametrize(
    "data",
    [
        elf(b""),
        elf(note(b"GNU", 18)),
        elf(note(b"Xen", 6)),
        elf(note(b"Xen", 18), kind=1),
    ],
)
def test_without_the_note(tmp_path: Path, data: bytes) -> None:
    assert judge(tmp_path, data) == NO_ENTRY


def test_a_bzimage(tmp_path: Path) -> None:
    assert judge(tmp_path, bytes(0x202) + b"HdrS" + bytes(2000)) is None


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100)])
def test_something_else(tmp_path: Path, data: bytes) -> None:
    assert judge(tmp_path, data) == "it is neither an ELF file for 64 bits nor a bzImage"


@given(st.binary(max_size=200), st.integers(0, 180))
def test_damage_is_said_and_never_raised(noise: bytes, position: int) -> None:
    data = bytearray(elf(note(b"Xen", 18)))
    data[position : position + len(noise)] = noise
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        assert isinstance(kernel.obstacle(file.name), str | None)


def test_a_cut_header_is_damage(tmp_path: Path) -> None:
    assert judge(tmp_path, elf(note(b"Xen", 18))[:100]) == "its ELF headers are damaged"


def test_no_file(tmp_path: Path) -> None:
    assert kernel.obstacle(str(tmp_path)) == "Is a directory"


@pytest.mark.skipif(not GUEST.is_file(), reason="the guest image is not built")
def test_our_own_guest_image() -> None:
    assert kernel.obstacle(str(GUEST)) is None


def test_landlock_of_too_old_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    if (found := landlock.obstacle()) is not None:
        pytest.skip(f"this host's kernel is such a case by itself: {found}")
    monkeypatch.setattr(landlock, "ABI", 1000)
    found = landlock.obstacle()
    assert found is not None
    assert found.endswith(", and it must be 1000 at least")
