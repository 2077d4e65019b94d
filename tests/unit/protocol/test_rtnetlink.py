"""rtnetlink's bytes: there and back, and data that no kernel would send."""

import os
import struct
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sealrun_protocol import rtnetlink
from sealrun_protocol.rtnetlink import Answer, Flag, Interrupted, Kind, Packet

VALUES = st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=40)), max_size=8)


@given(VALUES)
def test_attributes_there_and_back(values: list[tuple[int, bytes]]) -> None:
    data = b"".join(rtnetlink.attribute(kind, value) for kind, value in values)
    assert len(data) % 4 == 0
    assert list(rtnetlink.each_attribute(data)) == values


@given(st.binary(max_size=200))
def test_any_bytes_are_read_to_an_end(data: bytes) -> None:
    for kind, value in rtnetlink.each_attribute(data):
        assert 0 <= kind <= 0x3FFF
        assert len(value) <= len(data)
    answer = Answer(1)
    with suppress(OSError):  # what looks like a refusal
        answer.take(data)


def test_nested_ones_are_marked_by_the_kernel_and_known_all_the_same() -> None:
    data = struct.pack("=HH4s", 8, 0x8000 | 5, b"abcd")
    assert rtnetlink.attributes(data) == {5: b"abcd"}


def test_a_request_as_the_kernel_wants_it() -> None:
    data = rtnetlink.request(Kind.GET_LINK, Flag.REQUEST | Flag.DUMP, 7, b"body")
    assert data == struct.pack("=IHHII", 20, 18, 0x301, 7, 0) + b"body"


def message(kind: int, body: bytes = b"", *, sequence: int = 7, flags: int = 0) -> bytes:
    data = struct.pack("=IHHII", 16 + len(body), kind, flags, sequence, 0) + body
    return data + bytes(-len(data) % 4)


DONE = message(3, bytes(4))


def test_a_dump_in_several_datagrams() -> None:
    answer = Answer(7)
    assert not answer.take(message(16, b"one.") + message(16, b"two"))
    assert not answer.take(message(16, b"other", sequence=6))
    assert answer.take(DONE)
    assert answer.packets == [Packet(16, b"one."), Packet(16, b"two")]


def test_a_refusal() -> None:
    with pytest.raises(FileExistsError, match="File exists"):
        Answer(7).take(message(2, struct.pack("=i", -17) + bytes(16)))
    with pytest.raises(OSError, match="Operation not supported"):
        Answer(7).take(message(3, struct.pack("=i", -95)))


def test_an_acknowledgement() -> None:
    assert Answer(7).take(message(2, bytes(20)))


def test_a_dump_that_changed_under_way() -> None:
    answer = Answer(7)
    assert not answer.take(message(16, b"one.", flags=0x10))
    with pytest.raises(Interrupted):
        answer.take(DONE)


def test_the_loopback_of_this_machine() -> None:
    """The layouts are the kernel's: it tells of the loopback what we read."""
    import socket

    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as kernel:
        kernel.send(rtnetlink.request(Kind.GET_LINK, 0x301, 1, rtnetlink.link_body(0)))
        answer = Answer(1)
        while not answer.take(kernel.recv(rtnetlink.RECEIVE_BYTES)):
            pass
    links = [rtnetlink.link(packet.body) for packet in answer.packets]
    (loopback,) = (one for one in links if one.flags & rtnetlink.LinkFlag.LOOPBACK)
    name = loopback.attributes[rtnetlink.LinkAttribute.NAME].rstrip(b"\0").decode()
    assert socket.if_nametoindex(name) == loopback.number
    assert name in os.listdir("/sys/class/net")
