"""The file that becomes a sandbox's scratch disk."""

import errno
import os
from pathlib import Path

import pytest
from sealrun_runtime.settings import VmSettings
from sealrun_runtime.shim import scratch
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
