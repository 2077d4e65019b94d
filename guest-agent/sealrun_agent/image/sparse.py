"""The four forms in which GNU tar writes files with holes: where the data belongs.

Each reader returns the segments, in order and without overlap, and the file's real size. What lies
between the segments are holes (GNU tar manual, "Storing Sparse Files").
"""

from collections.abc import Iterator
from typing import Final, Protocol

from sealrun_protocol import limits

from sealrun_agent.errors import VerifyError

Segments = tuple[tuple[int, int], ...]
_BLOCK: Final = 512
_SEGMENTS: Final = 1 << 17  # 20 MiB of memory; a file that has more is no image's


class Source(Protocol):
    """The archive that is read."""

    def read(self, count: int) -> bytes:
        """The next bytes of the entry's data."""

    def malformed(self, cause: str) -> VerifyError:
        """An error that names the layer."""


def old_gnu(header: bytes, extensions: Iterator[bytes], source: Source) -> tuple[Segments, int]:
    """Type flag S: four pairs in the header, 21 in each extension block that follows it."""
    numbers: list[int] = []
    block, start, count, extended = header, 386, 4, header[482]
    while True:
        for pair in range(count):
            at = start + 24 * pair
            if block[at + 12] == 0:
                break
            numbers += [
                _binary(block[at : at + 12], source),
                _binary(block[at + 12 : at + 24], source),
            ]
        if not extended:
            break
        if len(numbers) > 2 * _SEGMENTS:
            raise _malformed(source)
        block, start, count = next(extensions), 0, 21
        extended = block[504]
    return _checked(numbers, _binary(header[483:495], source), source)


def pax(records: dict[bytes, bytes], source: Source) -> tuple[Segments, int]:
    """Formats 0.0 and 0.1 (the map is a record) and 1.0 (the map precedes the data)."""
    if records.get(b"GNU.sparse.major", b"0") == b"0":
        numbers = [
            _decimal(text, source)
            for text in records.get(b"GNU.sparse.map", b"").split(b",")
            if text
        ]
        size = records.get(b"GNU.sparse.size", b"")
    else:
        numbers = _leading_map(source)
        size = records.get(b"GNU.sparse.realsize", b"")
    return _checked(numbers, _decimal(size, source), source)


def _leading_map(source: Source) -> list[int]:
    """Decimal numbers on lines: the count of pairs, then the pairs; padded to a whole block."""
    text = b""
    lines: list[bytes] = []
    wanted = 1
    while len(lines) < wanted:
        text += source.read(_BLOCK)
        *complete, text = text.split(b"\n")
        lines += complete
        if lines and wanted == 1:
            wanted = 1 + 2 * _decimal(lines[0], source)
            if wanted > 2 * _SEGMENTS:
                raise _malformed(source)
        if len(text) > 20 and len(lines) < wanted:
            raise _malformed(source)
    return [_decimal(line, source) for line in lines[1:wanted]]


def _checked(numbers: list[int], size: int, source: Source) -> tuple[Segments, int]:
    if len(numbers) > 2 * _SEGMENTS:
        raise _malformed(source)
    segments = tuple(zip(numbers[::2], numbers[1::2], strict=False))
    position = 0
    for offset, length in segments:
        if offset < position or length < 0:
            raise _malformed(source)
        position = offset + length
    if len(numbers) % 2 or position > size or size > limits.LAYER_TAR_BYTES:
        raise _malformed(source)
    return segments, size


def _binary(field: bytes, source: Source) -> int:
    if field[0] & 0x80:
        return int.from_bytes(field[1:], "big")
    try:
        return int(field.strip(b" \0") or b"0", 8)
    except ValueError:
        raise _malformed(source) from None


def _decimal(text: bytes, source: Source) -> int:
    if not text.isdigit() or len(text) > 20:
        raise _malformed(source)
    return int(text)


def _malformed(source: Source) -> VerifyError:
    return source.malformed("a sparse map that cannot be read")
