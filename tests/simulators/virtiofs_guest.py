"""A guest kernel gone bad, as virtiofsd sees it: a vhost-user front end that sends FUSE requests.

No VM is needed: the front end is what a VMM is to virtiofsd (vhost-user protocol: a unix socket, the
guest's memory as a file, event descriptors), and the requests are what a guest's kernel would write
into that memory, with names and flags that no honest kernel sends.
"""

import array
import ctypes
import errno
import mmap
import os
import select
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import Final, NamedTuple, Self

SECONDS: Final = 20.0
ROOT: Final = 1  # the node that every session starts from (FUSE_ROOT_ID)
SUBMOUNT: Final = 1  # FUSE_ATTR_SUBMOUNT

# vhost-user, front end to back end
_GET_FEATURES, _SET_FEATURES, _SET_OWNER, _SET_MEM_TABLE = 1, 2, 3, 5
_SET_VRING_NUM, _SET_VRING_ADDR, _SET_VRING_BASE = 8, 9, 10
_SET_VRING_KICK, _SET_VRING_CALL = 12, 13
_GET_PROTOCOL_FEATURES, _SET_PROTOCOL_FEATURES, _SET_VRING_ENABLE = 15, 16, 18
_VERSION: Final = 1
_F_VERSION_1: Final = 1 << 32
_F_PROTOCOL_FEATURES: Final = 1 << 30

_MEMORY: Final = 4 << 20
_BASE: Final = 0x7000_0000  # where the guest's memory is in the front end's address space
_QUEUE: Final = 16
_RING: Final = 0x1000  # bytes for each of the two rings
_REQUEST, _REPLY = 0x10_0000, 0x20_0000
_REPLY_BYTES: Final = 0x10_0000

_libc = ctypes.CDLL(None, use_errno=True)


class Node(NamedTuple):
    """What a lookup found. number: to be named in later requests; inode: on the server's host."""

    number: int
    inode: int
    mode: int
    rdev: int
    flags: int


class Guest:
    """One session. All methods raise OSError with what the server answered."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(SECONDS)
        self._socket.connect(path)
        self._file = os.memfd_create("guest-memory")
        os.ftruncate(self._file, _MEMORY)
        self._memory = mmap.mmap(self._file, _MEMORY)
        self._events: list[int] = []
        self._unique = self._next = 0
        self._negotiate()

    def __enter__(self) -> Self:
        self.init()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()
        self._memory.close()
        for fd in (self._file, *self._events):
            os.close(fd)

    # --- requests ---------------------------------------------------------------------------------

    def init(self) -> None:
        """FUSE_INIT."""
        flags = 0xFFFF_FFFF & ~(1 << 30)  # all there is but FUSE_INIT_EXT
        self.call(26, 0, struct.pack("=IIII", 7, 33, 0, flags))

    def lookup(self, parent: int, name: bytes) -> Node:
        """FUSE_LOOKUP."""
        return _entry(self.call(1, parent, name + b"\0"))

    def walk(self, path: str, start: int = ROOT) -> Node:
        """Look every component of a path up."""
        node = Node(start, 0, 0, 0, 0)
        for name in path.strip("/").split("/"):
            node = self.lookup(node.number, name.encode())
        return node

    def symlink(self, parent: int, name: bytes, target: bytes) -> Node:
        """FUSE_SYMLINK."""
        return _entry(self.call(6, parent, name + b"\0" + target + b"\0"))

    def readlink(self, node: int) -> bytes:
        """FUSE_READLINK."""
        return self.call(5, node, b"")

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0) -> Node:
        """FUSE_MKNOD. rdev: as the kernel's new_encode_dev."""
        return _entry(self.call(8, parent, struct.pack("=IIII", mode, rdev, 0, 0) + name + b"\0"))

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> Node:
        """FUSE_MKDIR."""
        return _entry(self.call(9, parent, struct.pack("=II", mode, 0) + name + b"\0"))

    def unlink(self, parent: int, name: bytes) -> None:
        """FUSE_UNLINK."""
        self.call(10, parent, name + b"\0")

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes) -> None:
        """FUSE_RENAME."""
        names = name + b"\0" + new_name + b"\0"
        self.call(12, parent, struct.pack("=Q", new_parent) + names)

    def link(self, node: int, new_parent: int, new_name: bytes) -> Node:
        """FUSE_LINK."""
        return _entry(self.call(13, new_parent, struct.pack("=Q", node) + new_name + b"\0"))

    def open(self, node: int, flags: int = os.O_RDONLY) -> int:
        """FUSE_OPEN; the handle."""
        handle: int = struct.unpack_from("=Q", self.call(14, node, struct.pack("=II", flags, 0)))[0]
        return handle

    def read(self, node: int, handle: int, size: int = 4096, offset: int = 0) -> bytes:
        """FUSE_READ."""
        return self.call(15, node, struct.pack("=QQIIQII", handle, offset, size, 0, 0, 0, 0))

    def write(self, node: int, handle: int, data: bytes, offset: int = 0) -> int:
        """FUSE_WRITE; how much was written."""
        about = struct.pack("=QQIIQII", handle, offset, len(data), 0, 0, 0, 0)
        written: int = struct.unpack_from("=I", self.call(16, node, about + data))[0]
        return written

    def create(self, parent: int, name: bytes, mode: int = 0o644) -> tuple[Node, int]:
        """FUSE_CREATE; the node and the open handle."""
        about = struct.pack("=IIII", os.O_RDWR | os.O_CREAT, mode, 0, 0)
        answer = self.call(35, parent, about + name + b"\0")
        return _entry(answer), struct.unpack_from("=Q", answer, 128)[0]

    def chmod(self, node: int, mode: int) -> None:
        """FUSE_SETATTR of the mode."""
        self._setattr(node, valid=1, mode=mode)

    def chown(self, node: int, uid: int, gid: int) -> None:
        """FUSE_SETATTR of owner and group."""
        self._setattr(node, valid=6, uid=uid, gid=gid)

    def truncate(self, node: int, size: int) -> None:
        """FUSE_SETATTR of the size."""
        self._setattr(node, valid=8, size=size)

    def touch(self, node: int) -> None:
        """FUSE_SETATTR of the times."""
        self._setattr(node, valid=0x30)

    def setxattr(self, node: int, name: bytes, value: bytes) -> None:
        """FUSE_SETXATTR, in its short form."""
        self.call(21, node, struct.pack("=II", len(value), 0) + name + b"\0" + value)

    def getxattr(self, node: int, name: bytes) -> bytes:
        """FUSE_GETXATTR."""
        return self.call(22, node, struct.pack("=II", 65536, 0) + name + b"\0")

    def names(self, node: int) -> set[bytes]:
        """FUSE_OPENDIR and FUSE_READDIR."""
        handle = struct.unpack_from("=Q", self.call(27, node, struct.pack("=II", 0, 0)))[0]
        about = struct.pack("=QQIIQII", handle, 0, 65536, 0, 0, 0, 0)
        data, found, at = self.call(28, node, about), set(), 0
        while at < len(data):
            length = struct.unpack_from("=QQII", data, at)[2]
            found.add(data[at + 24 : at + 24 + length])
            at += (24 + length + 7) & ~7
        return found - {b".", b".."}

    def _setattr(
        self, node: int, *, valid: int, size: int = 0, mode: int = 0, uid: int = 0, gid: int = 0
    ) -> None:
        about = struct.pack(
            "=IIQQQQQQIIIIIIII", valid, 0, 0, size, 0, 0, 0, 0, 0, 0, 0, mode, 0, uid, gid, 0
        )
        self.call(4, node, about)

    # --- the queue --------------------------------------------------------------------------------

    def call(self, opcode: int, node: int, body: bytes, uid: int = 0, gid: int = 0) -> bytes:
        """One request on the request queue, and its answer without the header."""
        self._unique += 1
        header = struct.pack(
            "=IIQQIIII", 40 + len(body), opcode, self._unique, node, uid, gid, os.getpid(), 0
        )
        # virtiofsd wants what READ and WRITE carry apart from their headers, and takes no more of it
        # than the request says.
        parts = [header, *([body[:40], body[40:]] if opcode == 16 else [body])]
        room = struct.unpack_from("=QQI", body)[2] if opcode in (15, 28) else 0
        sizes = [16, room] if room else [_REPLY_BYTES]
        self._submit(parts, sizes)
        reply = self._memory[_REPLY : _REPLY + _REPLY_BYTES]
        length, error, unique = struct.unpack_from("=IiQ", reply)
        assert unique == self._unique, (unique, self._unique)
        if error:
            raise OSError(-error, os.strerror(-error), f"opcode {opcode}")
        return bytes(reply[16:length])

    def _submit(self, parts: Sequence[bytes], sizes: Sequence[int]) -> None:
        """Put one chain of descriptors into queue 1 and wait until it was used."""
        chain, at = [], _REQUEST
        for part in filter(None, parts):
            self._memory[at : at + len(part)] = part
            chain.append((at, len(part), 0))
            at += len(part)
        at = _REPLY
        self._memory[_REPLY : _REPLY + 16] = bytes(16)
        for size in sizes:
            chain.append((at, size, 2))  # VRING_DESC_F_WRITE
            at += size
        ring = _RING
        for index, (address, size, flags) in enumerate(chain):
            last = index == len(chain) - 1
            struct.pack_into(
                "=QIHH",
                self._memory,
                ring + 16 * index,
                address,
                size,
                flags | (not last),
                index + 1,
            )
        available = ring + 16 * _QUEUE
        struct.pack_into("=H", self._memory, available + 4 + 2 * (self._next % _QUEUE), 0)
        self._next = (self._next + 1) & 0xFFFF
        struct.pack_into("=HH", self._memory, available, 0, self._next)
        os.eventfd_write(self._events[2], 1)
        used = ring + 0x800
        while struct.unpack_from("=H", self._memory, used + 2)[0] != self._next:
            ready, _, _ = select.select([self._events[3], self._socket], [], [], SECONDS)
            if not ready:
                raise TimeoutError("the server does not answer")
            if self._socket in ready and not self._socket.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError(errno.ECONNRESET, "the server is gone")
            if self._events[3] in ready:
                os.eventfd_read(self._events[3])

    # --- vhost-user -------------------------------------------------------------------------------

    def _negotiate(self) -> None:
        offered = self._ask(_GET_FEATURES)
        self._tell(
            _SET_FEATURES, struct.pack("=Q", offered & (_F_VERSION_1 | _F_PROTOCOL_FEATURES))
        )
        self._ask(_GET_PROTOCOL_FEATURES)
        self._tell(_SET_PROTOCOL_FEATURES, struct.pack("=Q", 0))
        self._tell(_SET_OWNER)
        region = struct.pack("=IIQQQQ", 1, 0, 0, _MEMORY, _BASE, 0)
        self._tell(_SET_MEM_TABLE, region, self._file)
        for queue in (0, 1):
            ring = _BASE + queue * _RING
            kick, call = os.eventfd(0), os.eventfd(0)
            self._events += [kick, call]
            self._tell(_SET_VRING_NUM, struct.pack("=II", queue, _QUEUE))
            self._tell(_SET_VRING_BASE, struct.pack("=II", queue, 0))
            addresses = (ring, ring + 0x800, ring + 16 * _QUEUE, 0)
            self._tell(_SET_VRING_ADDR, struct.pack("=IIQQQQ", queue, 0, *addresses))
            self._tell(_SET_VRING_CALL, struct.pack("=Q", queue), call)
            self._tell(_SET_VRING_KICK, struct.pack("=Q", queue), kick)
            self._tell(_SET_VRING_ENABLE, struct.pack("=II", queue, 1))

    def _tell(self, request: int, payload: bytes = b"", fd: int = -1) -> None:
        message = struct.pack("=III", request, _VERSION, len(payload)) + payload
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))] if fd >= 0 else []
        self._socket.sendmsg([message], rights)

    def _ask(self, request: int) -> int:
        self._tell(request)
        answer = b""
        while len(answer) < 20:
            part = self._socket.recv(20 - len(answer))
            if not part:
                raise ConnectionResetError(errno.ECONNRESET, "the server is gone")
            answer += part
        value: int = struct.unpack_from("=Q", answer, 12)[0]
        return value


def _entry(answer: bytes) -> Node:
    """A fuse_entry_out: nodeid, generation, 2 validities, their nanoseconds, the attributes."""
    number = struct.unpack_from("=Q", answer)[0]
    inode = struct.unpack_from("=Q", answer, 40)[0]
    mode, _links, _uid, _gid, rdev, _size, flags = struct.unpack_from("=7I", answer, 40 + 48 + 12)
    return Node(number, inode, mode, rdev, flags)
