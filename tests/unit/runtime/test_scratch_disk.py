"""The file that becomes a sandbox's scratch disk."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sealrun_runtime import scratch
from sealrun_runtime.settings import VmSettings
from sealrun_vmm.cloud_hypervisor import landlock
from sealrun_vmm.errors import HostUnfit, SpecRefused
from sealrun_vmm.spec import NO_SCRATCH


@pytest.mark.parametrize("supported", [True, False])
def test_it_is_sparse_private_and_has_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, supported: bool
) -> None:
    if not supported:  # as overlayfs of older kernels
        real = os.open

        def refuse(path: str, flags: int, mode: int = 0o777) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "not supported")
            return real(path, flags, mode)

        monkeypatch.setattr(os, "open", refuse)
    file = scratch.make(VmSettings(scratch=4096, scratch_directory=str(tmp_path)))
    try:
        status = os.fstat(file)
        assert status.st_size == 4096 << 20
        assert status.st_blocks < 64
        assert (status.st_mode & 0o777, status.st_nlink) == (0o600, 0)
        assert not os.get_inheritable(file)
        assert list(tmp_path.iterdir()) == []
        again = os.open(f"/proc/self/fd/{file}", os.O_RDWR)  # as a VMM does
        os.close(again)
    finally:
        os.close(file)


def test_none_is_made_where_none_is_wanted() -> None:
    assert scratch.make(VmSettings(scratch=0, scratch_directory="/nowhere")) == NO_SCRATCH


def test_what_cannot_be_made_is_told_with_its_size_and_place(tmp_path: Path) -> None:
    place = str(tmp_path / "missing")
    with pytest.raises(HostUnfit) as unfit:
        scratch.make(VmSettings(scratch=100, scratch_directory=place))
    assert (
        str(unfit.value)
        == f"cannot make a scratch disk of 100 MiB in {place}: No such file or directory"
    )
    assert "vm.scratch_directory" in unfit.value.remedy
    with pytest.raises(SpecRefused, match="of 15 MiB: it needs 16 MiB"):
        scratch.make(VmSettings(scratch=15, scratch_directory=str(tmp_path)))


CONFINED = r"""
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
file, access = int(sys.argv[1]), 2 | 4  # LANDLOCK_ACCESS_FS_WRITE_FILE, _READ_FILE
path = f"/proc/self/fd/{file}"
rules = libc.syscall(444, ctypes.create_string_buffer(struct.pack("=Q", access), 8), 8, 0)
rule = ctypes.create_string_buffer(struct.pack("=Qi", access, os.open(path, os.O_PATH)), 12)
assert libc.syscall(445, rules, 1, rule, 0) == 0
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.syscall(446, rules, 0) == 0
os.close(os.open(path, os.O_RDWR))
try:
    os.open("/dev/null", os.O_RDWR)
except PermissionError:
    print("confined")
"""


def test_landlock_can_name_what_has_no_name(tmp_path: Path) -> None:
    """By its path in /proc, as Cloud Hypervisor makes its rules (linux/landlock.h)."""
    if (obstacle := landlock.obstacle()) is not None:
        pytest.skip(f"Landlock cannot be used here: {obstacle}")
    file = scratch.make(VmSettings(scratch=16, scratch_directory=str(tmp_path)))
    try:
        command = [sys.executable, "-I", "-c", CONFINED, str(file)]
        done = subprocess.run(
            command, pass_fds=[file], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.stdout == "confined\n", done.stderr
    finally:
        os.close(file)
