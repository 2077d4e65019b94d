"""The event monitor: what the VMM tells unasked, as JSON objects with an empty line behind each.

The VMM does not wait for its reader: what finds the pipe full is lost. So it is drained whenever
there is anything, and nothing is done with an event that could take time.
"""

import asyncio
import os
from collections.abc import Callable
from typing import Final

import msgspec

EVENT_BYTES: Final = 64 << 10
_READ_BYTES: Final = 64 << 10
_END: Final = b"\n\n"


class Event(msgspec.Struct, frozen=True):
    """source: "vm", "vmm", "guest", "virtio-device", …; event: what happened to it."""

    source: str
    event: str
    properties: dict[str, str] | None = None


class Garbled(Exception):
    """The stream holds something that is no event."""


class Decoder:
    """Bytes to events."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Event]:
        """The events that `data` completes. Raises Garbled; then nothing more can be had."""
        *texts, self._rest = (self._rest + data).split(_END)
        if len(self._rest) > EVENT_BYTES:
            raise Garbled("an event does not end")
        try:
            return [msgspec.json.decode(text, type=Event) for text in texts if text.strip()]
        except msgspec.DecodeError as error:
            raise Garbled("an event cannot be read") from error


class Monitor:
    """The reading end of the pipe, watched in the event loop until `close` or the VMM's end.

    on_event is called for each event; on_garbled at most once, after which nothing is called."""

    def __init__(
        self, reader: int, on_event: Callable[[Event], None], on_garbled: Callable[[], None]
    ) -> None:
        """reader: a descriptor, not blocking; closed by the Monitor."""
        self._reader: int | None = reader
        self._decoder = Decoder()
        self._on_event, self._on_garbled = on_event, on_garbled
        asyncio.get_running_loop().add_reader(reader, self._readable)

    def drain(self) -> None:
        """Take what is there, and close where that is the end."""
        while self._readable():
            pass

    def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._reader is not None:
            asyncio.get_running_loop().remove_reader(self._reader)
            os.close(self._reader)
            self._reader = None

    def _readable(self) -> bool:
        """Whether there may be more."""
        if self._reader is None:
            return False
        try:
            data = os.read(self._reader, _READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        try:
            events = self._decoder.feed(data)
        except Garbled:
            self.close()
            self._on_garbled()
            return False
        for event in events:
            self._on_event(event)
        return True
