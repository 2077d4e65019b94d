"""Which errors are the file system's, and what is said of them."""

import errno
import os
from pathlib import Path

import pytest
from sealrun_agent.errors import PullError, StartError
from sealrun_agent.image import space
from sealrun_protocol.errors import ErrorCode, Phase


def error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_a_full_one_with_its_sizes(tmp_path: Path) -> None:
    failed = space.failure(error(errno.ENOSPC), str(tmp_path), "it cannot be done", StartError)
    assert failed is not None
    assert (failed.code, failed.phase) == (ErrorCode.NO_SPACE, Phase.START)
    total = os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize >> 20
    assert str(failed).startswith("it cannot be done: ")
    assert f" MiB of {total} MiB" in str(failed)


@pytest.mark.parametrize("number", [errno.EIO, errno.EROFS, errno.EILSEQ])
def test_one_whose_disk_fails(tmp_path: Path, number: int) -> None:
    failed = space.failure(error(number), str(tmp_path), "it cannot be done", PullError)
    assert failed is not None
    assert failed.code is ErrorCode.SCRATCH_UNUSABLE
    assert str(failed) == f"it cannot be done: the scratch disk fails: {os.strerror(number)}"


def test_others_are_not(tmp_path: Path) -> None:
    assert space.failure(error(errno.EINVAL), str(tmp_path), "it", PullError) is None
