#!/usr/bin/python3 -ISE
"""A network device of a simulated VM: a tap in the guest's network namespace, and the cable from it to the
tap that the VMM was given.

    simulated_nic.py TAP PID MAC

TAP: the inherited descriptor of the VMM's tap. PID: a process of the guest, which may be about to enter
namespaces of its own. Ends with either side.
"""

import contextlib
import fcntl
import os
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA  # linux/if_tun.h
_TAP, _NO_PI, _VNET_HDR = 0x0002, 0x1000, 0x4000
_SIOCSIFHWADDR = 0x8924
_ETHERNET = 1  # ARPHRD_ETHER
_FRAME = 1 << 17  # with its header, and what segmentation offload puts together
_SECONDS = 10.0


def main() -> None:
    """Make the device, and carry frames until one side is gone."""
    outer, pid = int(sys.argv[1]), sys.argv[2]
    _enter(f"/proc/{pid}/ns/net")
    inner = _device(bytes.fromhex(sys.argv[3].replace(":", "")))
    poll = select.poll()
    other = {outer: inner, inner: outer}
    for descriptor in other:
        poll.register(descriptor, select.POLLIN)
    with contextlib.suppress(OSError):
        while True:
            for descriptor, _ in poll.poll():
                frame = os.read(descriptor, _FRAME)
                # A side that is down loses what it is sent, as a cable does.
                with contextlib.suppress(OSError):
                    os.write(other[descriptor], frame)


def _enter(path: str) -> None:
    """The guest's network namespace, as soon as it has one of its own."""
    own, deadline = os.readlink("/proc/self/ns/net"), time.monotonic() + _SECONDS
    while os.readlink(path) == own:
        if time.monotonic() > deadline:
            sys.exit("simulated_nic: the guest has no network namespace")
        time.sleep(0.005)
    descriptor = os.open(path, os.O_RDONLY)
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        raise OSError(ctypes.get_errno(), "setns")
    os.close(descriptor)


def _device(mac: bytes) -> int:
    import socket

    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    wish = struct.pack("=16sH22x", b"eth%d", _TAP | _NO_PI | _VNET_HDR)
    name = fcntl.ioctl(descriptor, _TUNSETIFF, wish)[:16]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("=16sH6s16x", name, _ETHERNET, mac)
        fcntl.ioctl(any_socket, _SIOCSIFHWADDR, request)
    return descriptor


if __name__ == "__main__":
    main()
