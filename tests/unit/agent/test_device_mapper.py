"""What the kernel's device mapper is asked (linux/dm-ioctl.h)."""

import struct

import pytest
from sealrun_agent import device_mapper
from sealrun_agent.device_mapper import Target


def test_a_request_without_a_table() -> None:
    data = device_mapper.request("scratch")
    assert len(data) == 312
    assert struct.unpack_from("=6I", data) == (4, 0, 0, 312, 312, 0)
    assert struct.unpack_from("=I", data, 28) == (0,)  # flags
    assert data[48:56] == b"scratch\0"


@pytest.mark.parametrize("length", range(1, 18))
def test_a_table_is_a_text_that_ends_and_is_padded(length: int) -> None:
    parameters = b"x" * length
    data = device_mapper.request("d", Target(4096, "crypt", parameters))
    size, start, count = struct.unpack_from("=3I", data, 12)
    assert (size, start, count) == (len(data), 312, 1)
    assert struct.unpack_from("=I", data, 28) == (1 << 15,)  # the kernel wipes what it was given
    first, sectors, status, following, kind = struct.unpack_from("=QQiI16s", data, start)
    assert (first, sectors, status, kind.rstrip(b"\0")) == (0, 4096, 0, b"crypt")
    assert following == len(data) - start
    assert following % 8 == 0
    text = bytes(data[start + 40 :])
    assert text.rstrip(b"\0") == parameters
    assert text.endswith(b"\0")
