#!/usr/bin/python3 -ISE
"""Starts the real Cloud Hypervisor and writes down what is said on its REST interface.

    recorder.py BINARY DIRECTORY ARGUMENTS...       ARGUMENTS: with --api-socket fd=N

This process becomes BINARY, so that whoever started it has its pid, its ends and its descriptors. Another one,
a child of nobody's, passes on between the socket that was given and BINARY's, byte for byte and with the open files; each
message is a line of JSON in DIRECTORY/PID before it arrives: first line's words, number of open files, body. It ends
with either side. What is made of it: fixtures/recording.py.
"""

import contextlib
import json
import os
import re
import select
import socket
import sys
from collections.abc import Iterator

API = "--api-socket"
LENGTH = re.compile(rb"^content-length: *(\d+)", re.I | re.M)
END = b"\r\n\r\n"


class Messages:
    """Takes one direction's bytes apart."""

    def __init__(self) -> None:
        self._data, self._descriptors = bytearray(), 0

    def feed(self, data: bytes, descriptors: int) -> Iterator[bytes]:
        """What was completed by them, as lines."""
        self._data += data
        self._descriptors += descriptors
        while (end := self._data.find(END)) >= 0:
            head = bytes(self._data[:end])
            found = LENGTH.search(head)
            whole = end + len(END) + (int(found[1]) if found else 0)
            if len(self._data) < whole:
                return
            body = self._data[end + len(END) : whole].decode("utf-8", "replace")
            words = head.partition(b"\r\n")[0].decode("latin-1").split(" ")
            yield json.dumps([words, self._descriptors, body]).encode() + b"\n"
            del self._data[:whole]
            self._descriptors = 0


def pass_on(client: socket.socket, vmm: socket.socket, record: int) -> None:
    """Until one of them has no more to say."""
    ends = {client: (vmm, Messages()), vmm: (client, Messages())}
    while True:
        for source in select.select(list(ends), [], [])[0]:
            target, messages = ends[source]
            data, descriptors, _, _ = socket.recv_fds(source, 1 << 16, 253)
            if not data:
                return
            for line in messages.feed(data, len(descriptors)):
                os.write(record, line)
            sent = socket.send_fds(target, [data], descriptors) if descriptors else 0
            target.sendall(data[sent:])
            for descriptor in descriptors:
                os.close(descriptor)


def stand_between(given: socket.socket, vmm: socket.socket, record: int) -> None:
    """As a process that nothing belongs to but these."""
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard)
    kept = {given.fileno(), vmm.fileno(), record}
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor not in kept:
            with contextlib.suppress(OSError):  # that of the listing
                os.close(descriptor)
    client, _ = given.accept()
    given.close()
    pass_on(client, vmm, record)


def main() -> None:
    """Never returns."""
    binary, directory, *arguments = sys.argv[1:]
    place = arguments.index(API) + 1
    given = socket.socket(fileno=int(arguments[place].removeprefix("fd=")))
    listener, vmm = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    listener.bind("")  # to a name that the kernel chooses
    listener.listen(1)
    vmm.connect(listener.getsockname())
    record = os.open(f"{directory}/{os.getpid()}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if (child := os.fork()) == 0:
        try:
            if os.fork() == 0:
                stand_between(given, vmm, record)
        except OSError:
            pass  # a side is gone
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    given.close()
    listener.set_inheritable(True)
    arguments[place] = f"fd={listener.fileno()}"
    os.execv(binary, [binary, *arguments])


if __name__ == "__main__":
    main()
