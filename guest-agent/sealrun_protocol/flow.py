"""Byte credit of one stream, without I/O. Both sides use it; see the rules in messages.py."""

from sealrun_protocol import limits
from sealrun_protocol.messages import ProtocolViolation


class SendWindow:
    """How much may still be sent in one direction of a stream."""

    def __init__(self, window: int = limits.STREAM_WINDOW_BYTES) -> None:
        self._window = window
        self._credit = window

    @property
    def available(self) -> int:
        """Bytes that the next StreamData may carry: 0 means wait for credit."""
        return min(self._credit, limits.STREAM_CHUNK_BYTES)

    def sent(self, count: int) -> None:
        """Record a StreamData of `count` bytes that was sent."""
        assert 0 < count <= self.available, "the caller reads no more than `available`"
        self._credit -= count

    def credited(self, count: int) -> None:
        """Record a StreamCredit. Raises ProtocolViolation where the peer returns what it never got."""
        if count <= 0 or self._credit + count > self._window:
            raise ProtocolViolation(f"credit of {count} bytes for a stream that owes less")
        self._credit += count


class ReceiveWindow:
    """How much the peer may still send, and when to return credit."""

    def __init__(self, window: int = limits.STREAM_WINDOW_BYTES) -> None:
        self._window = window
        self._outstanding = 0  # received and not yet credited back
        self._passed = 0  # of these, passed on

    def received(self, count: int) -> None:
        """Record a StreamData. Raises ProtocolViolation where it exceeds chunk size or credit."""
        if count > limits.STREAM_CHUNK_BYTES:
            raise ProtocolViolation(f"stream data of {count} bytes in one message")
        if self._outstanding + count > self._window:
            raise ProtocolViolation("stream data beyond the credit that was given")
        self._outstanding += count

    def passed_on(self, count: int) -> int:
        """Record that `count` received bytes left for their destination.

        Returns the credit to send now, 0 where it is not worth a message yet (a quarter window)."""
        self._passed += count
        if self._passed < self._window // 4:
            return 0
        credit, self._passed = self._passed, 0
        self._outstanding -= credit
        return credit
