"""ELF files, on those of this machine: readelf (or the loader) has the last word."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from sealrun_guest_image import elf
from sealrun_guest_image.errors import BuildError

PROGRAM = Path(os.path.realpath("/usr/bin/python3"))


def test_needed_names_the_interpreter_and_the_libraries() -> None:
    names = elf.needed(PROGRAM.read_bytes())
    assert names[0].startswith("/lib")
    assert "libc.so.6" in names
    listed = subprocess.run(["ldd", PROGRAM], capture_output=True, text=True, check=True).stdout
    for name in names:
        assert name in listed


def test_a_program_runs_without_its_sections(tmp_path: Path) -> None:
    data = elf.without_sections(PROGRAM.read_bytes())
    stripped = tmp_path / "python"
    stripped.write_bytes(data)
    stripped.chmod(0o755)
    command = [stripped, "-IS", "-c", "import sys; sys.stdout.write('runs')"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.stdout == "runs", result.stderr
    assert elf.needed(data) == elf.needed(PROGRAM.read_bytes())


def test_a_library_loads_without_its_sections(tmp_path: Path) -> None:
    import msgspec._core

    original = Path(msgspec._core.__file__)
    (tmp_path / original.name).write_bytes(elf.without_sections(original.read_bytes()))
    code = (
        "import importlib.machinery as m, importlib.util as u\n"
        f"l = m.ExtensionFileLoader('msgspec._core', {str(tmp_path / original.name)!r})\n"
        "import msgspec\n"
        "print(u.module_from_spec(u.spec_from_loader('msgspec._core', l)).__file__)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(tmp_path / original.name), result.stderr


@pytest.mark.parametrize("data", [b"", b"#!/bin/sh\n", b"\x7fELF\x01\x01" + bytes(100)])
def test_what_is_no_elf(data: bytes) -> None:
    assert not elf.is_elf(data)
    with pytest.raises(BuildError, match="not 64-bit little-endian"):
        elf.needed(data)
