"""Reading a layer's tar as a stream: headers in, `Entry` values and file data out.

POSIX ustar and pax, GNU (long names, base-256 numbers, sparse), as Go's archive/tar reads them,
which is what wrote nearly every layer there is; so global pax headers are not applied, and the
order of precedence is header < GNU long name < pax. Names are bytes: a file name has no encoding.
Nothing here touches the file system. Every malformed input raises LAYER_MALFORMED.
"""

import os
from collections.abc import Iterator
from typing import Final, NamedTuple
from zlib import adler32

from sealrun_protocol import limits
from sealrun_protocol.errors import ErrorCode

from sealrun_agent.errors import VerifyError
from sealrun_agent.image import sparse
from sealrun_agent.image.stream import Chunks

BLOCK: Final = 512
EXTENSION_BYTES: Final = 1 * limits.MIB  # a pax header or long name; Go's limit as well
_ZERO_BLOCK: Final = bytes(BLOCK)
_XATTR: Final = b"SCHILY.xattr."
_HEADER_ONLY: Final = frozenset(b"123456")  # their size member means nothing


class Entry(NamedTuple):
    """One member of the archive.

    kind: the type flag: 0 file, 1 hard link, 2 symlink, 3 and 4 devices, 5 directory, 6 fifo.
    size: bytes of data that follow in the archive. real_size: of the file; it differs for sparse ones.
    segments: (offset, length) of a sparse file's data, in order; None where it is not sparse.
    """

    name: bytes
    kind: int
    size: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    link: bytes
    device: tuple[int, int]
    xattrs: dict[bytes, bytes]
    real_size: int
    segments: tuple[tuple[int, int], ...] | None


class Archive:
    """Iterate over it for the entries; `copy` and `read` deliver the data of the last one.

    Whatever the caller leaves of an entry's data is skipped. The iteration ends at the archive's
    end; `drain` then reads what follows, so that the stages below come to their checks.
    """

    def __init__(self, chunks: Chunks, what: str) -> None:
        self._chunks = chunks
        self._what = what
        self._chunk = b""
        self._position = 0
        self._data = 0  # bytes of the current entry's data that are not read yet
        self._padding = 0

    def __iter__(self) -> Iterator[Entry]:
        while (block := self._next_block()) is not None:
            yield self._entry(block)

    def copy(self, fd: int, count: int) -> None:
        """Write the next `count` bytes of the entry's data to `fd` at its position."""
        if count > self._data:
            raise self.malformed("a sparse map beyond the data")
        self._data -= count
        while count:
            view = self._available(count)
            count -= len(view)
            while view:
                view = view[os.write(fd, view) :]

    def read(self, count: int) -> bytes:
        """The next `count` bytes of the entry's data; for what is small."""
        if count > self._data:
            raise self.malformed("an entry shorter than it should be")
        self._data -= count
        return self._exactly(count)

    def drain(self) -> None:
        """Read to the end of the stream."""
        self._chunk = b""
        for _ in self._chunks:
            pass

    def malformed(self, cause: str) -> VerifyError:
        """An error that names the layer."""
        return VerifyError(ErrorCode.LAYER_MALFORMED, f"{self._what} cannot be unpacked: {cause}")

    def exceeds(self, what: str) -> VerifyError:
        """An error that names the layer, which has more than it may."""
        return VerifyError(ErrorCode.LIMIT_EXCEEDED, f"{self._what} has {what}")

    # --- bytes -----------------------------------------------------------------------------------

    def _available(self, count: int) -> memoryview:
        """At least one and at most `count` bytes."""
        while self._position >= len(self._chunk):
            try:
                self._chunk = next(self._chunks)
            except StopIteration:
                raise self.malformed("the tar ends early") from None
            self._position = 0
        view = memoryview(self._chunk)[self._position : self._position + count]
        self._position += len(view)
        return view

    def _exactly(self, count: int) -> bytes:
        end = self._position + count
        if end <= len(self._chunk):
            data = self._chunk[self._position : end]
            self._position = end
            return data
        parts = []
        while count:
            view = self._available(count)
            parts.append(view)
            count -= len(view)
        return b"".join(parts)

    def _at_end(self) -> bool:
        while self._position >= len(self._chunk):
            chunk = next(self._chunks, None)
            if chunk is None:
                return True
            self._chunk, self._position = chunk, 0
        return False

    def _skip(self, count: int) -> None:
        while count:
            count -= len(self._available(count))

    # --- headers ---------------------------------------------------------------------------------

    def _next_block(self) -> bytes | None:
        """The next header; None at the end: two zero blocks, or one, or none, then nothing."""
        self._skip(self._data + self._padding)
        self._data = self._padding = 0
        if self._at_end():
            return None
        block = self._exactly(BLOCK)
        if block != _ZERO_BLOCK:
            return block
        if not self._at_end() and self._exactly(BLOCK) != _ZERO_BLOCK:
            raise self.malformed("a header after a block of zeros")
        return None

    def _entry(self, block: bytes) -> Entry:
        """The entry that starts with this header, its extensions merged."""
        pax: dict[bytes, bytes] = {}
        long_name = long_link = None
        while True:
            kind = self._begin(block)
            if kind in b"xX":
                pax = self._pax(self._extension())
            elif kind in b"LK":
                text = self._extension().partition(b"\0")[0]
                long_name, long_link = (text, long_link) if kind == 0x4C else (long_name, text)
            elif kind == 0x67:  # 'g'
                self._extension()
            else:
                break
            following = self._next_block()
            if following is None:
                raise self.malformed("an extension header without an entry")
            block = following
        return self._merged(block, kind, pax, long_name, long_link)

    def _begin(self, block: bytes) -> int:
        """Check a header, set the length of its data, return its type flag."""
        stored = self._number(block[148:156])
        total = _sum(block) - sum(block[148:156]) + 8 * 0x20
        if stored != total:
            raise self.malformed("a header with a wrong checksum")
        kind = block[156]
        if kind in b"\x007":
            kind = 0x30
        self._set_data(0 if kind in _HEADER_ONLY else self._number(block[124:136]))
        return kind

    def _set_data(self, size: int) -> None:
        if not 0 <= size <= limits.LAYER_TAR_BYTES:
            raise self.malformed(f"an entry of {size} bytes")
        self._data = size
        self._padding = -size % BLOCK

    def _extension(self) -> bytes:
        if self._data > EXTENSION_BYTES:
            raise self.malformed(f"an extension header of {self._data} bytes")
        return self.read(self._data)

    def _merged(
        self,
        block: bytes,
        kind: int,
        pax: dict[bytes, bytes],
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        if kind not in b"0123456S":
            raise self.malformed(f"an entry of unknown type {chr(kind)!a}")
        if b"size" in pax and kind not in _HEADER_ONLY:
            self._set_data(self._decimal(pax[b"size"]))
        name = pax.get(b"path") or long_name or self._name(block)
        link = pax.get(b"linkpath") or long_link or _text(block[157:257])
        segments, real_size = None, self._data
        if kind == 0x53:  # 'S'
            extended = iter(lambda: self._exactly(BLOCK), None)
            segments, real_size = sparse.old_gnu(block, extended, self)
        elif b"GNU.sparse.major" in pax or b"GNU.sparse.map" in pax or b"GNU.sparse.size" in pax:
            segments, real_size = sparse.pax(pax, self)
            name = pax.get(b"GNU.sparse.name") or name
        if kind in b"0S":
            kind = 0x35 if name.endswith(b"/") and kind == 0x30 else 0x30
        if not name or b"\0" in name or b"\0" in link:
            raise self.malformed("an entry whose name is empty or has a NUL in it")
        return Entry(
            name,
            kind,
            self._data,
            self._number(block[100:108]) & 0o7777,
            self._id(pax.get(b"uid"), block[108:116]),
            self._id(pax.get(b"gid"), block[116:124]),
            self._mtime(pax.get(b"mtime"), block[136:148]),
            link,
            (self._number(block[329:337]), self._number(block[337:345]))
            if kind in b"34"
            else (0, 0),
            {k[len(_XATTR) :]: v for k, v in pax.items() if k.startswith(_XATTR)} if pax else {},
            real_size,
            segments,
        )

    def _name(self, block: bytes) -> bytes:
        name = _text(block[0:100])
        if block[257:263] == b"ustar\0" and block[345]:
            width = 131 if block[508:512] == b"tar\0" else 155  # star puts times behind the prefix
            return _text(block[345 : 345 + width]) + b"/" + name
        return name

    def _pax(self, records: bytes) -> dict[bytes, bytes]:
        """`length key=value newline`, again and again (POSIX pax, extended header)."""
        found: dict[bytes, bytes] = {}
        offsets: list[bytes] = []
        position = 0
        while position < len(records):
            space = records.find(b" ", position, position + 21)
            digits = records[position:space] if space > 0 else b""
            end = position + int(digits) if digits.isdigit() else 0
            key, equals, value = records[space + 1 : end - 1].partition(b"=")
            if not (position < space < end <= len(records) and equals and records[end - 1] == 0x0A):
                raise self.malformed("a pax header that cannot be read")
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                offsets.append(value)  # format 0.0 repeats them
            elif value:
                found[key] = value
            else:
                found.pop(key, None)  # an empty value unsets
            position = end
        if offsets:
            found[b"GNU.sparse.map"] = b",".join(offsets)
        return found

    # --- numbers ---------------------------------------------------------------------------------

    def _number(self, field: bytes) -> int:
        """Octal text, or GNU's base-256 where the first bit is set."""
        if field[0] & 0x80:
            value = int.from_bytes(field, "big")
            bits = 8 * len(field)
            # The first bit is the mark, the second the sign.
            return value - (1 << bits) if field[0] & 0x40 else value - (1 << (bits - 1))
        text = field.strip(b" \0")
        try:
            return int(text, 8) if text else 0
        except ValueError:
            raise self.malformed("a header with a number that cannot be read") from None

    def _decimal(self, text: bytes) -> int:
        if not text.isdigit() or len(text) > 20:
            raise self.malformed("a pax header with a number that cannot be read")
        return int(text)

    def _id(self, decimal: bytes | None, field: bytes) -> int:
        number = self._number(field) if decimal is None else self._decimal(decimal)
        if not 0 <= number < 0xFFFFFFFF:
            raise self.malformed(f"an owner {number} that Linux does not have")
        return number

    def _mtime(self, decimal: bytes | None, field: bytes) -> int:
        """Nanoseconds since the epoch."""
        if decimal is None:
            seconds, fraction, sign = self._number(field), b"", 1
        else:
            whole, _, fraction = decimal.partition(b".")
            sign = -1 if whole.startswith(b"-") else 1
            seconds = sign * self._decimal(whole.lstrip(b"-") or b"0")
        nanoseconds = self._decimal((fraction + b"0" * 9)[:9])
        if abs(seconds) >= 1 << 33:
            raise self.malformed("an entry whose time Linux does not have")
        return seconds * 1_000_000_000 + sign * nanoseconds


def _sum(block: bytes) -> int:
    """Of a block's bytes. Adler-32's lower half is one more than the sum, as long as that is below
    65521: it is for half a block."""
    half = BLOCK // 2
    return (adler32(block[:half]) & 0xFFFF) + (adler32(block[half:]) & 0xFFFF) - 2


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
