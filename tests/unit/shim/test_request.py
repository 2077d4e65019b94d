"""The small files of the host that travel with CreateContainer."""

import os
from pathlib import Path

import pytest
from sealrun_protocol import limits
from sealrun_runtime.oci_config import Mount
from sealrun_runtime.shim import request
from sealrun_runtime.shim.errors import HostFailed


def bind(destination: str, source: Path, **how: object) -> Mount:
    return Mount(destination=destination, source=str(source), **how)  # type: ignore[arg-type]


def test_only_binds_of_the_three_files(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    mounts = (
        bind("/etc/hosts", file, type="bind"),
        bind("/etc/hostname", file, type="none", options=("rbind", "ro")),
        bind("/etc/resolv.conf", file, type="tmpfs"),
        bind("/etc/shadow", file, type="bind"),
        bind("/etc/hosts/../shadow", file, type="bind"),
    )
    assert request.files(mounts) == {"/etc/hosts": b"x", "/etc/hostname": b"x"}


def test_a_file_at_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(limits.FILE_BYTES))
    mounts = (bind("/etc/hosts", file, type="bind"),)
    assert len(request.files(mounts)["/etc/hosts"]) == limits.FILE_BYTES
    file.write_bytes(bytes(limits.FILE_BYTES + 1))
    with pytest.raises(HostFailed, match="is larger than"):
        request.files(mounts)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(HostFailed, match="cannot read"):
        request.files((bind("/etc/hosts", tmp_path / "none", type="bind"),))


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    assert request.files((bind("/etc/hosts", fifo, type="bind"),)) == {"/etc/hosts": b""}
