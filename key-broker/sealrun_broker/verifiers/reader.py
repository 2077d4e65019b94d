"""What a TPM and a firmware write, taken apart byte by byte; what is cut off is refused."""

from typing import Literal

from sealrun_broker.verifiers.binding import EvidenceInvalid


class Reader:
    """what: as in "what is cut off". order: of the bytes of a number."""

    def __init__(self, data: bytes, what: str, order: Literal["big", "little"]) -> None:
        self._data, self._what, self._order = data, what, order
        self._at = 0

    def take(self, count: int) -> bytes:
        """The next bytes. Raises EvidenceInvalid."""
        part = self._data[self._at : self._at + count]
        if len(part) != count:
            raise EvidenceInvalid(f"{self._what} is cut off")
        self._at += count
        return part

    def number(self, size: int) -> int:
        """The next number, of `size` bytes. Raises EvidenceInvalid."""
        return int.from_bytes(self.take(size), self._order)

    def sized(self) -> bytes:
        """The bytes behind their length, a number of two. Raises EvidenceInvalid."""
        return self.take(self.number(2))

    def ahead(self, count: int) -> bytes:
        """At most so many of the next bytes, which stay."""
        return self._data[self._at : self._at + count]
