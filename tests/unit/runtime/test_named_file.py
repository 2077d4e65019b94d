"""Whatever a path names, reading it ends, within a bound."""

import os
import socket
from pathlib import Path

import pytest
from sealrun_runtime import config, named_file
from sealrun_runtime.errors import ConfigError, cause


def refusal(path: object, *, pipe: bool = False) -> str:
    with pytest.raises(OSError) as raised:
        named_file.read(str(path), 10, pipe=pipe)
    return cause(raised.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "it is a pipe, not a file"
    assert refusal(tmp_path) == "is a directory"
    assert refusal(tmp_path / "missing") == "it does not exist"
    assert refusal("/dev/zero") == "it is larger than 10 bytes"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert refusal(tmp_path / "socket")


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert named_file.read(str(path), 10) == b"0123456789"
    path.write_bytes(b"0123456789a")
    assert refusal(path) == "it is larger than 10 bytes"
    assert named_file.read("/dev/null", 10) == b""


def test_pipes(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert named_file.read(str(tmp_path / "pipe"), 10, pipe=True) == b""
    reader, writer = os.pipe()
    os.write(writer, b"01234567890123")
    os.close(writer)
    assert refusal(f"/proc/self/fd/{reader}", pipe=True) == "it is larger than 10 bytes"
    os.close(reader)


def test_an_operator_s_file_may_be_masked_but_is_no_pipe(tmp_path: Path) -> None:
    path = tmp_path / "sealrun.toml"
    path.symlink_to("/dev/null")
    config.resolve([str(path)], {})
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"cannot read .*: it is a pipe, not a file"):
        config.resolve([str(path)], {})
